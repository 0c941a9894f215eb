"""Every example runs on the GPU at the size of the board: verified as a whole, timed, and called with device arrays."""

import pytest

from eqsat import optimize
from eqsat.search.verify import Suite
from eqsat.trace import as_program
from tests.test_examples import CASES, builder

pytestmark = pytest.mark.device


@pytest.mark.parametrize("name", CASES)
def test_the_example_runs_on_the_gpu(name: str) -> None:
    import cupy

    example = builder(name)
    program = as_program(example.build(**example.BOARD))
    rules = [example.RULES] if hasattr(example, "RULES") else []
    best = optimize(program, budget="20s", rules=rules)
    assert best.receipt.target != "cpu"
    assert all(check["passed"] for check in best.receipt.verification["checks"])
    rejected, tried = best.receipt.verification["power"]
    assert rejected == tried
    found = best(*Suite("normal", 0, program).inputs(cupy).values())
    assert found.shape == program.outputs[0].shape
    assert bool(cupy.isfinite(found.astype(cupy.float32)).all()) or found.dtype == cupy.uint16
