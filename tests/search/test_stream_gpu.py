"""On a real GPU: streams of big matrices in equal shares, in whole tiles and in clusters, verified and timed as in a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from eqsat.codegen.cuda.skinny import SkinnyFamily, SkinnyTile
from eqsat.codegen.cuda.stream import StreamFamily, StreamTile
from eqsat.codegen.kernel import KernelBinary, Schedule
from eqsat.codegen.problem import contract_problem
from eqsat.ir import Program
from eqsat.search.cuda_device import CudaDevice
from tests.codegen.contract_problems import F16, batched, gated, linear, rms_linear, scaled_max, transposed_left, two_products
from tests.codegen.grouped_problems import projections, with_epilogues

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    with CudaDevice(limit_s=10.0) as made:
        yield made


EVEN, ALONE, TWO = StreamTile(64, 64, 4, 0, 227, 1), StreamTile(64, 64, 4, 0, 113, 2, 1), StreamTile(64, 64, 4, 0, 227, 1, 2)
SHORT, WIDE = StreamTile(64, 64, 4, 0, 64, 1), StreamTile(128, 64, 8, 0, 227, 1)
CASES: dict[str, tuple[Program, tuple[StreamTile, ...]]] = {
    "plain": (linear(16, 4096, 2048), (EVEN, ALONE, TWO, SHORT, WIDE)),
    "k contiguous": (linear(11, 1000, 2048, w="jk"), (EVEN, ALONE, TWO, StreamTile(32, 256, 2, 0, 227, 1))),
    "f16, one row": (linear(1, 512, 4096, dtype=F16), (EVEN, TWO)),
    "sixty-four rows": (linear(64, 1024, 1024), (EVEN, ALONE, TWO)),
    "statistic and gain": (rms_linear(16, 2048, 2048), (EVEN, ALONE, TWO, dataclasses.replace(SHORT, ring=100))),
    "two statistics": (scaled_max(9, 1024, 1024), (EVEN, TWO)),
    "fetched left operand": (transposed_left(6, 256, 2048), (EVEN, TWO)),
    "gated": (gated(8, 2048, 1024), (EVEN, ALONE, TWO)),
    "batched": (batched(3, 4, 512, 512), (EVEN, TWO)),
    "a sum of products": (two_products(16, 2048, 1024, 16), (EVEN, ALONE, TWO)),
    "several outputs": (projections(8, (1024, 256, 200), 1024), (EVEN, TWO)),
    "an epilogue for each": (with_epilogues(6, (512, 264, 136), 512), (EVEN, ALONE)),
}


@pytest.mark.parametrize("name", CASES)
def test_streams_are_right(device: CudaDevice, name: str) -> None:
    program, schedules = CASES[name]
    family, problem = StreamFamily(), contract_problem(program)
    assert not isinstance(problem, str), problem
    fitting = [s for t in schedules for s in (t, dataclasses.replace(t, stagers=3)) if family.legal(problem, s) is None]
    assert len(fitting) == len(schedules)
    made = dict(device.compile([family.emit(problem, s) for s in fitting]))
    binaries = [b for _, b in sorted(made.items()) if isinstance(b, KernelBinary)]
    assert len(binaries) == len(fitting), made
    trials = device.sweep(program, binaries)
    assert all(t is not None and t.status == "ok" for t in trials), [t and t.note for t in trials]


def test_a_cluster_of_three_adds_an_odd_number_of_statistics(device: CudaDevice) -> None:
    program, family = rms_linear(1, 1024, 4096), SkinnyFamily()
    problem, schedule = contract_problem(program), SkinnyTile(8, 1, 4, 3, 2, 2, 2, 0, 1)
    assert not isinstance(problem, str), problem
    points: list[Schedule] = [schedule]
    (made,) = dict(device.compile([family.emit(problem, s) for s in points])).values()
    assert isinstance(made, KernelBinary), made
    (trial,) = device.sweep(program, [made])
    assert trial is not None
    assert trial.status == "ok", trial.note
