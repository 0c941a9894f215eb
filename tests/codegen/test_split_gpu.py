"""On a real GPU: f32 contractions as f16 products pass every suite, sizes of all kinds among them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eqsat.codegen.cuda.split import SplitFamily, SplitTile
from eqsat.codegen.problem import contract_problem
from eqsat.ir import Program
from eqsat.search.cuda_device import CudaDevice
from eqsat.trace import tensor, to_program

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    with CudaDevice(limit_s=10.0) as made:
        yield made


def product(m: int, n: int, k: int, x_turned: bool = False, w_turned: bool = False) -> Program:
    x = tensor("x", (k, m)).mT if x_turned else tensor("x", (m, k))
    w = tensor("w", (n, k)).mT if w_turned else tensor("w", (k, n))
    return to_program(x @ w)


CASES: dict[str, tuple[Program, tuple[SplitTile, ...]]] = {
    "nn": (
        product(516, 1024, 640),
        (SplitTile(128, 128, 32, 1, 8, 1), SplitTile(128, 128, 64, 1, 8, 0), SplitTile(128, 96, 96, 1, 8, 1)),
    ),
    "nt, odd columns": (product(133, 77, 1000, w_turned=True), (SplitTile(64, 64, 64, 3, 8, 0), SplitTile(64, 96, 96, 1, 8, 1))),
    "tn": (product(260, 136, 2048, x_turned=True), (SplitTile(128, 64, 64, 7, 8, 1), SplitTile(128, 128, 32, 1, 8, 1))),
    "tt": (
        product(132, 300, 68, x_turned=True, w_turned=True),
        (SplitTile(128, 128, 32, 1, 8, 1), SplitTile(64, 32, 32, 1, 8, 1)),
    ),
}


@pytest.mark.parametrize(("program", "schedules"), CASES.values(), ids=CASES)
def test_kernels_pass_every_suite(device: CudaDevice, program: Program, schedules: tuple[SplitTile, ...]) -> None:
    problem, family = contract_problem(program), SplitFamily()
    assert not isinstance(problem, str)
    binaries = dict(device.compile([family.emit(problem, s) for s in schedules]))
    trials = device.sweep(program, [b for b in binaries.values() if not isinstance(b, Exception)])
    assert len(trials) == len(schedules)
    assert [t.status for t in trials if t is not None] == ["ok"] * len(schedules)
