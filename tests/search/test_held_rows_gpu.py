"""On a real GPU: rows and columns that clusters, teams of blocks and shared memory hold, verified and timed as in a search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from eqsat import numpy_like as xp
from eqsat.codegen.cuda.point import PointFamily, PointSweepTile
from eqsat.codegen.cuda.reduce import ReduceFamily
from eqsat.codegen.cuda.reduce_schedule import HeldColumnTile, HeldGridTile, ParkedRowTile, RowTile
from eqsat.codegen.kernel import Family, KernelBinary, Schedule
from eqsat.codegen.problem import Problem, point_problem, reduce_problem
from eqsat.ir import Program
from eqsat.search.cuda_device import CudaDevice
from eqsat.trace import tensor, to_program

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    with CudaDevice(limit_s=10.0) as made:
        yield made


def softmax(rows: int, length: int) -> Program:
    return to_program(xp.softmax(tensor("x", (rows, length))))


def layer_norm(rows: int, length: int) -> Program:
    return to_program(xp.layer_norm(tensor("x", (rows, length)), tensor("g", (length,)), tensor("c", (length,))))


def columns(length: int, rows: int) -> Program:
    return to_program(xp.softmax(tensor("x", (length, rows)), axis=0))


def scaled(rows: int, length: int) -> Program:
    return to_program(tensor("x", (rows, length)) * tensor("g", (length,)) + tensor("c", (length,)))


def losses(rows: int, classes: int) -> Program:
    x, label = tensor("x", (rows, classes)), tensor("label", (rows,), "i32")
    own = xp.where(xp.iota(classes).reshape(1, classes) == label.reshape(rows, 1), x, 0.0).sum(-1)
    return to_program(xp.logsumexp(x, axis=-1) - own, inputs=[x, label])


REDUCE, POINT = ReduceFamily(), PointFamily()
CASES: dict[str, tuple[Family, Program, tuple[Schedule, ...]]] = {
    "one block after another": (REDUCE, softmax(700, 8192), (HeldGridTile(256, 1, 264, 16, 1, 0), HeldGridTile(128, 1, 132, 16, 1, 1))),
    "clusters": (REDUCE, softmax(300, 65536), (
        HeldGridTile(512, 2, 132, 16, 1, 0), HeldGridTile(256, 8, 32, 16, 1, 0), HeldGridTile(128, 16, 16, 16, 1, 0), RowTile(8, 1, 16, 16, 0, 0),
    )),
    "teams that meet": (REDUCE, layer_norm(12, 1 << 20), (HeldGridTile(512, 64, 1, 16, 1, 0), HeldGridTile(512, 66, 2, 16, 0, 0), HeldGridTile(256, 132, 1, 16, 1, 0))),
    "parked": (REDUCE, softmax(300, 393216), (ParkedRowTile(16, 16, 16, 8, 3, 0), ParkedRowTile(8, 16, 16, 10, 3, 0))),
    "columns": (REDUCE, columns(4096, 1024), (HeldColumnTile(16, 32, 8, 16, 0), HeldColumnTile(8, 128, 4, 16, 0), HeldColumnTile(16, 16, 16, 16, 1))),
    "losses": (REDUCE, losses(500, 32000), (RowTile(8, 1, 16, 1, 0, 0), RowTile(16, 1, 16, 2, 0, 0), HeldGridTile(512, 1, 132, 16, 1, 0))),
    "shared parts": (POINT, scaled(1000, 4096), (PointSweepTile(256, 4, 16, 0), PointSweepTile(128, 8, 16, 0))),
}  # fmt: skip


def problem_of(family: Family, program: Program) -> Problem:
    found = reduce_problem(program) if family is REDUCE else point_problem(program)
    assert not isinstance(found, str), found
    return found


def compiled(device: CudaDevice, family: Family, program: Program, schedules: Sequence[Schedule]) -> list[KernelBinary]:
    problem = problem_of(family, program)
    assert [family.legal(problem, s) for s in schedules] == [None] * len(schedules)
    made = dict(device.compile([family.emit(problem, s) for s in schedules]))
    assert all(isinstance(b, KernelBinary) for b in made.values()), made
    return [b for _, b in sorted(made.items()) if isinstance(b, KernelBinary)]


@pytest.mark.parametrize("name", CASES)
def test_kernels_that_hold_what_they_read_are_right(device: CudaDevice, name: str) -> None:
    family, program, schedules = CASES[name]
    trials = device.sweep(program, compiled(device, family, program, schedules))
    assert all(t is not None and t.status == "ok" for t in trials), [t and t.note for t in trials]
