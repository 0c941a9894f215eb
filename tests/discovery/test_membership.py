"""Saturation reaches the forms that experts write: they are in the program's class, whatever the choice by cost makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eqsat import numpy_like as np
from eqsat.array import Array
from eqsat.search.discovery import Chooser, rows_named
from eqsat.search.rulebase import declarations
from eqsat.trace import tensor, to_program
from tests.discovery.membership import Members

REACHED: dict[str, Callable[..., Any]] = {
    "rmsnorm_linear": lambda x, g, w: (x @ (g.reshape(-1, 1) * w)) * np.rsqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6),
    "matrices_times_vector": lambda a, b, v: a @ (b @ v),
    "chain_3": lambda a, b, c: a @ (b @ c),
    "shared_factor_of_four": lambda a, b, c, d, e: a @ (b + c + d + e),
    "stacked_linear": lambda x, w1, b1, w2, b2: x @ (w1 @ w2) + (b1 @ w2 + b2),
    "dequantised_linear": lambda x, sx, w, sw: (x.astype("f32") @ w.astype("f32")) * sx * sw,
    "lora": lambda x, w, a, b: x @ w + (x @ a) @ b,
    "sum_of_product": lambda a, b: np.sum(np.sum(a, axis=0) * np.sum(b, axis=1)),
}
NOT_REACHED: dict[str, Callable[..., Any]] = {  # other values
    "matrices_times_vector": lambda a, b, v: b @ (a @ v),
    "shared_factor_of_four": lambda a, b, c, d, e: a @ (b + c + d - e),
}


@pytest.fixture(scope="module")
def chooser(own_cache: object) -> Iterator[Chooser]:
    with Chooser() as open_chooser:
        yield open_chooser


def members(name: str, expert: Callable[..., Array], chooser: Chooser) -> tuple[Members, int, Any]:
    """Return the e-graph of a row, the class of its output, and the expert's expression over the same inputs."""
    (row,) = (r for r in rows_named([name]) if r.name == name)
    program = row.program()
    _, frozen = chooser.session.saturate(program, chooser.ruleset.rules, declarations=declarations(chooser.ruleset))
    inputs = [tensor(i.name, i.shape, i.dtype, i.constant) for i in program.inputs]
    return Members(frozen), frozen.roots[0], to_program(expert(*inputs), inputs=inputs).outputs[0].expr


@pytest.mark.parametrize("name", REACHED)
def test_the_experts_form_is_in_the_class_of_the_program(name: str, chooser: Chooser) -> None:
    found, root, expert = members(name, REACHED[name], chooser)
    assert root in found.classes(expert)


@pytest.mark.parametrize("name", NOT_REACHED)
def test_another_value_is_not(name: str, chooser: Chooser) -> None:
    found, root, expert = members(name, NOT_REACHED[name], chooser)
    assert root not in found.classes(expert)
