"""Every example runs on this CPU at a small size and gives what the oracle gives."""

import numpy as np
import pytest

from eqsat import optimize
from eqsat.oracle import evaluate
from eqsat.trace import as_program
from tests.strategies import example_inputs
from tests.test_examples import CASES, builder


@pytest.mark.parametrize("name", CASES)
def test_the_example_runs_on_the_cpu(name: str) -> None:
    example = builder(name)
    program = as_program(example.build(**CASES[name][0]))
    best = optimize(
        program, target="cpu", budget="4s", rules=[getattr(example, "RULES", ())] if hasattr(example, "RULES") else ()
    )
    inputs = example_inputs(program)
    found = best(*(inputs[i.name] for i in program.inputs))
    (expected,) = evaluate(program, inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert best.receipt.derivation["status"] == "derived"


def test_the_own_rule_is_used_by_the_search() -> None:
    example = builder("own_rule")
    best = optimize(example.build(rows=8, columns=64), target="cpu", budget="4s", rules=[example.RULES])
    assert "own_rule/cos-of-minus" in {s["rule"] for s in best.receipt.derivation["steps"]}
