"""Every example means what its first line says, and can be written down and read back."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special

from eqsat import text
from eqsat.array import Array
from eqsat.oracle import evaluate
from eqsat.trace import as_program
from tests.strategies import example_inputs

FOLDER = Path(__file__).parent.parent / "examples"


def builder(name: str) -> Any:
    """Load an example by its file."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rms(x: Any) -> Any:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def _silu(x: Any) -> Any:
    return x * special.expit(x)


def _gelu(x: Any) -> Any:
    return x * special.ndtr(x)


def _layer_norm_gelu(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return _gelu(normal * weight + bias) + residual


ROWS = {"rows": 3, "columns": 8}
LAYER = {"rows": 3, "inner": 8, "columns": 5}
CASES: dict[str, tuple[dict[str, Any], Callable[..., Any]]] = {
    "softmax": (ROWS, lambda x: special.softmax(x, -1)),
    "rmsnorm": (ROWS, lambda x, weight: _rms(x) * weight),
    "layernorm_gelu_residual": (ROWS, _layer_norm_gelu),
    "swiglu": (ROWS, lambda gate, up: _silu(gate) * up),
    "matmul": ({"m": 3, "n": 4, "k": 5}, lambda a, b: a @ b),
    "rms_matmul_silu": (LAYER, lambda x, g, w: _silu((_rms(x) * g) @ w)),
    "rmsnorm_linear": (LAYER, lambda x, g, w: (_rms(x) * g) @ w),
    "gated_mlp": (LAYER, lambda x, gate, up: _silu(x @ gate) * (x @ up)),
    "matmul_chain_vec": ({"size": 5}, lambda a, b, v: a @ (b @ v)),
    "linear_sum": (LAYER, lambda x, w: (x @ w.T).sum(1)),
    "lora": ({**LAYER, "rank": 2}, lambda x, w, a, b: x @ w + x @ a @ b),
    "gelu_fused": (ROWS, lambda x, s, b, y, r: _gelu(x * s + b) * y + r),
    "attention": (
        {"batch": 2, "heads": 2, "length": 5, "width": 4},
        lambda q, k, v: special.softmax(q @ k.swapaxes(-1, -2) / 2, -1) @ v,
    ),
    "own_rule": (ROWS, lambda x, s: np.cos(x * s).sum(1)),
}


@pytest.mark.parametrize("name", CASES)
def test_an_example_computes_what_numpy_computes(name: str) -> None:
    sizes, reference = CASES[name]
    program = as_program(builder(name).build(**sizes, dtype="f64"))
    inputs = example_inputs(program)
    (value,) = evaluate(program, inputs)
    np.testing.assert_allclose(value, reference(*inputs.values()), rtol=1e-12, atol=1e-12)


def test_every_example_that_builds_is_compared() -> None:
    building = {path.stem for path in FOLDER.glob("*.py") if "\ndef build(" in path.read_text()}
    assert building == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_an_example_builds_at_the_size_of_the_board_and_reads_back(name: str) -> None:
    module = builder(name)
    value = module.build(**module.BOARD)
    assert isinstance(value, Array)
    program = as_program(value)
    assert text.loads(text.dumps(program)) == program
