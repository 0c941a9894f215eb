"""What the check says of averages over many keys: right kernels in any order pass, and what such kernels get wrong is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from eqsat.errorbound import Rounding, evaluate_with_bound
from eqsat.ir import Input, Output, Program, apply, const, read
from eqsat.search.faults import power
from eqsat.search.verify import Prepared, check_outputs, prepare
from eqsat.types import DType
from tests.codegen.online_problems import attention

F32, F16, BF16 = DType.F32, DType.F16, DType.BF16
TILE = 64
M, KEYS, D = 8, 4096, 64

Array = np.ndarray
State = tuple[Array, Array, Array]  # maximum, sum of weights, weighted sum of values


def _round(x: Array, dtype: DType) -> Array:
    return x.astype(dtype.numpy).astype(np.float32)


def _tile(q: Array, k: Array, v: Array, state: State, dtype: DType, fault: str = "") -> State:
    """Add a tile of keys to the sums as a kernel does: f32 throughout, weights rounded on their way into the matrix unit."""
    top, total, sums = state
    s = (q @ k.T) * np.float32(D**-0.5)
    most = np.maximum(top, s.max(1))
    rebase = np.ones_like(top) if fault == "sums not scaled anew" else np.exp(top - most)
    weights = np.exp(s - (top if fault == "stale maximum" else most)[:, None])
    return most, total * rebase + weights.sum(1), sums * rebase[:, None] + _round(weights, dtype) @ v


def _join(states: Sequence[State], fault: str = "") -> State:
    most = states[0][0] if fault == "joined by the first maximum" else np.max([s[0] for s in states], axis=0)
    factors = [np.ones_like(most) if fault == "parts not scaled" else np.exp(s[0] - most) for s in states]
    total = sum((s[1] * f for s, f in zip(states, factors, strict=True)), np.zeros_like(most))
    return most, total, sum((s[2] * f[:, None] for s, f in zip(states, factors, strict=True)), np.zeros_like(states[0][2]))


def _kernel(p: Prepared, dtype: DType, order: Callable[[range], Sequence[int]], parts: int, fault: str = "") -> Array:
    q, k, v = (p.inputs[n].astype(np.float32) for n in "qKV")
    tiles = list(order(range(KEYS // TILE)))
    if fault == "a tile left out":
        tiles.remove(KEYS // TILE // 2)
    if fault == "a tile taken twice":
        tiles.append(tiles[3])
    states: list[State] = []
    for part in range(parts):
        state = np.full(M, -3e38, np.float32), np.zeros(M, np.float32), np.zeros((M, D), np.float32)
        for n, t in enumerate(tiles[part::parts]):
            here = slice(t * TILE, (t + 1) * TILE)
            wrong = fault if n and fault in ("sums not scaled anew", "stale maximum") else ""
            state = _tile(q, k[here], v[here], state, dtype, wrong)
        states.append(state)
    if fault == "a part left out":
        states.pop()
    _, total, sums = _join(states, fault)
    return (sums / total[:, None]).astype(dtype.numpy)


ORDERS: dict[str, tuple[Callable[[range], Sequence[int]], int]] = {
    "forwards": (list, 1), "backwards": (lambda r: list(r)[::-1], 1), "in eight parts": (list, 8),
    "shuffled in three": (lambda r: list(np.random.default_rng(3).permutation(list(r))), 3),
}  # fmt: skip
FAULTS = (
    "a tile left out", "a tile taken twice", "a part left out", "sums not scaled anew", "stale maximum", "parts not scaled",
    "joined by the first maximum",
)  # fmt: skip


@pytest.fixture(scope="module", params=[F16, BF16], ids=str)
def prepared(request: pytest.FixtureRequest) -> tuple[DType, list[Prepared]]:
    dtype: DType = request.param
    return dtype, prepare(attention(dtype, M, KEYS, D, D), seed=2)


@pytest.mark.parametrize("name", ORDERS)
def test_right_kernels_pass_in_any_order(prepared: tuple[DType, list[Prepared]], name: str) -> None:
    dtype, suites = prepared
    assert {"normal", "uniform", "edges"} <= {p.suite.name for p in suites}
    with np.errstate(all="ignore"):
        for p in suites:
            check = check_outputs([_kernel(p, dtype, *ORDERS[name])], p.expected, p.suite)
            assert check.passed, (p.suite.name, check.note)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_such_kernels_get_wrong_is_seen(prepared: tuple[DType, list[Prepared]], fault: str) -> None:
    dtype, suites = prepared
    with np.errstate(all="ignore"):
        found = [check_outputs([_kernel(p, dtype, list, 4, fault)], p.expected, p.suite).passed for p in suites]
    assert not all(found)


@pytest.mark.parametrize(("m", "keys", "d", "dtype"), [(8, 8192, 128, BF16), (16, 4096, 64, F16), (4, 16384, 64, BF16)])
def test_the_check_of_a_long_average_sees_every_seeded_fault(m: int, keys: int, d: int, dtype: DType) -> None:
    program = attention(dtype, m, keys, d, d)
    rejected, tried = power(program, prepare(program, seed=0))
    assert rejected == tried >= 6


def test_the_scale_of_scores_is_a_number_of_the_arithmetic_type_in_a_kernel_but_may_be_rounded_in_a_plan() -> None:
    x = read("x", ("i",), (4,), BF16)
    p = Program((Input("x", (4,), BF16),), (Output("o", apply("mul", x, const(0.1, BF16)), ("i",), F32),))
    data = {"x": np.ones(4, BF16.numpy)}
    ((value, kernel),), ((_, plan),) = (evaluate_with_bound(p, data, rounding=Rounding(stored=s)) for s in (False, True))
    exact, rounded = np.float32(0.1), np.asarray(0.1, BF16.numpy).astype(np.float64)
    assert (abs(exact - value) <= kernel).all()
    assert (abs(rounded - value) > kernel).all()
    assert (abs(rounded - value) <= plan).all()
