"""Is a kernel right: input suites, references with bounds, the comparison.

Everything runs over NumPy or CuPy (`xp`), so that both devices share it: data are drawn where they are used. CuPy has no
bfloat16: there such arrays are their bits in uint16 (`held_dtype`). A device calls `suites`, then for each suite `inputs` and
`references`, runs the kernel into a `GuardedBuffer` that was poisoned, and calls `check_outputs`; `faults.power` once a program.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eqsat.errorbound import Rounding, evaluate_with_bound
from eqsat.evaluation import from_float64, to_float64
from eqsat.ir import Input, Program
from eqsat.ops import Array
from eqsat.oracle import evaluate
from eqsat.search.device import Check
from eqsat.search.exactness import exact_magnitude
from eqsat.types import DType

SuiteName = Literal["exact", "normal", "uniform", "edges", "wide", "special"]
KERNEL = Rounding(stored=False)  # one launch: values inside it live in registers
PLAN = Rounding(stored=True)  # several launches: any 16-bit value may have been stored

_PALETTE = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 3.0, -3.0, 1e4, -1e4, 1e-3)
_PIECE = 1 << 15  # elements compared at once
_LEAST = 1e-300  # a divisor that is not 0
_EDGE = 16.0  # how much the last position along each dimension outweighs the others in the suite "edges"


@dataclass(frozen=True, slots=True)
class Suite:
    """One draw of inputs for a program; `exact` asks for bit-equal outputs.

    `magnitude` bounds the integers of an exact suite.
    """

    name: SuiteName
    seed: int
    program: Program
    magnitude: int = 0

    @property
    def exact(self) -> bool:
        """Whether every correct kernel gives the same bits."""
        return self.name == "exact"

    def inputs(self, xp: Any = np) -> dict[str, Array]:
        """Draw an array for each input, in its dtype (bfloat16 as uint16 bits on CuPy), on `xp`'s device."""
        return {i.name: self._draw(xp, i) for i in self.program.inputs}

    def _draw(self, xp: Any, declared: Input) -> Array:
        text = f"{self.seed} {self.name} {declared.name} {declared.shape} {declared.dtype}"
        rng = xp.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little"))
        if declared.dtype.is_float:
            return _narrow(xp, self._floats(xp, rng, declared.shape), declared.dtype)
        if declared.dtype is DType.BOOL:
            return rng.integers(0, 2, size=declared.shape).astype(np.bool_)
        most = self.magnitude if self.exact else 8
        return rng.integers(0 if self.name == "uniform" else -most, most + 1, size=declared.shape).astype(declared.dtype.numpy)

    def _floats(self, xp: Any, rng: Any, shape: tuple[int, ...]) -> Array:
        match self.name:
            case "exact":
                return rng.integers(-self.magnitude, self.magnitude + 1, size=shape).astype(np.float32)
            case "uniform":
                return rng.random(size=shape, dtype=np.float32)
            case "special":
                return xp.asarray(_PALETTE, dtype=np.float32)[rng.integers(0, len(_PALETTE), size=shape)]
            case _:
                x = xp.asarray(rng.standard_normal(size=shape, dtype=np.float32))
        if self.name == "wide":
            exponents = rng.random(size=(*shape[:-1], 1) if shape else ()) * 6 - 3
            return x * xp.power(10.0, exponents).astype(np.float32)
        if self.name == "edges":
            for dimension in range(max(0, len(shape) - 3), len(shape)):
                x[(slice(None),) * dimension + (slice(-1, None),)] *= np.float32(_EDGE)
        return x


@dataclass(frozen=True, slots=True)
class Reference:
    """What an output must be: `value` in float64 (int64, bool) and a bound for each element; no bound asks for equality."""

    name: str
    dtype: DType
    value: Array
    bound: Array | None


def suites(program: Program, seed: int, rounding: Rounding = KERNEL, *, quick: bool = False) -> list[Suite]:
    """Choose the input suites of a program.

    Parameters
    ----------
    program : Program
    seed : int
        Same seed, same inputs (on the same array module).
    rounding : Rounding
        Whose rounding the outputs may show: `KERNEL` or `PLAN`.
    quick : bool
        Leave out "wide" and "special" (for programs whose reference costs seconds).

    Returns
    -------
    list of Suite
        "exact" comes first, where every partial result of integer inputs is representable.
    """
    found = []
    if magnitude := exact_magnitude(program, rounding):
        found.append(Suite("exact", seed, program, magnitude))
    names: tuple[SuiteName, ...] = ("normal", "uniform", "edges") if quick else ("normal", "uniform", "edges", "wide", "special")
    if not any(i.dtype.is_float for i in program.inputs):
        names = ("normal", "uniform")
    return found + [Suite(name, seed, program) for name in names]


def references(
    program: Program, inputs: Mapping[str, Array], xp: Any = np, *, exact: bool = False, rounding: Rounding = KERNEL
) -> list[Reference]:
    """Evaluate the reference of each output; with `exact`, without a bound."""
    if exact:
        values: list[tuple[Array, Array | None]] = [(v, None) for v in evaluate(program, inputs, xp)]
    else:
        values = list(evaluate_with_bound(program, inputs, xp, rounding))
    return [
        Reference(
            o.name,
            o.dtype,
            xp.ascontiguousarray(v).reshape(v.shape),
            None if b is None else xp.ascontiguousarray(b).reshape(b.shape),
        )
        for o, (v, b) in zip(program.outputs, values, strict=True)
    ]


def comparable(found: Sequence[Reference]) -> bool:
    """Whether an element of some output can be compared (its bound is finite), or there are no elements at all."""
    return not any(r.value.size for r in found) or any(
        r.value.size and (r.bound is None or bool((r.bound < math.inf).any())) for r in found
    )


def check_outputs(outputs: Sequence[Array], expected: Sequence[Reference], suite: Suite, xp: Any = np) -> Check:
    """Compare outputs (each in its dtype and layout) with their references; the check is named after the suite."""
    worst, note = 0.0, ""
    for out, ref in zip(outputs, expected, strict=True):
        count, first = 0, -1
        for start, got, part in _pieces(xp, out, ref):
            wrong, ratio = _compare(xp, to_float64(xp, got, ref.dtype), part)
            worst = max(worst, ratio)
            found = int(wrong.sum())
            if found and not count:
                first = start + int(xp.argmax(wrong))
            count += found
        if count and not note:
            note = _describe(xp, out, ref, first, count)
    return Check(suite.name, not note, worst, suite.seed, note)


def _pieces(xp: Any, out: Array, ref: Reference) -> Iterator[tuple[int, Array, Reference]]:
    """Yield (start, elements of the output, of the reference) in pieces whose temporaries stay in a cache; whole on CUDA."""
    flat, value = out.reshape(-1), ref.value.reshape(-1)
    bound = None if ref.bound is None else ref.bound.reshape(-1)
    step = _PIECE if xp is np else max(1, value.size)
    for start in range(0, value.size, step):
        part = slice(start, start + step)
        yield start, flat[part], Reference(ref.name, ref.dtype, value[part], None if bound is None else bound[part])


def _compare(xp: Any, got: Array, ref: Reference) -> tuple[Array, float]:
    """Return (which elements are wrong, the largest error in units of the bound)."""
    with np.errstate(all="ignore"):
        if ref.bound is None:
            want = to_float64(xp, from_float64(xp, ref.value, ref.dtype), ref.dtype)
            wrong = ~((got == want) | ((got != got) & (want != want)))
            return wrong, math.inf if bool(wrong.any()) else 0.0
        if ref.dtype is DType.BOOL:
            got, value = got.astype(np.int64), ref.value.astype(np.int64)
        else:
            value = ref.value
        error = xp.abs(got - value).astype(np.float64)
        right = error <= ref.bound
        if bool(right.all()) and float(ref.bound.max()) < math.inf:  # nearly always, and half the work
            return ~right, float((error / xp.maximum(ref.bound, _LEAST)).max())  # where the bound is 0, so is the error
        same = (got == value) | ((got != got) & (value != value))
        error = xp.where(same, 0.0, xp.where(error == error, error, math.inf))
        counted = ref.bound < math.inf
        wrong = counted & ~(error <= ref.bound)
        ratio = xp.where(counted & (error > 0), error / ref.bound, 0.0)
        return wrong, float(ratio.max())


def _describe(xp: Any, out: Array, ref: Reference, at: int, count: int) -> str:
    where = tuple(int(i) for i in np.unravel_index(at, ref.value.shape))
    got = float(to_float64(xp, out.reshape(-1)[at : at + 1], ref.dtype)[0])
    allowed = "exactly" if ref.bound is None else f"within {float(ref.bound.reshape(-1)[at]):.3g}"
    return (
        f"{ref.name}{list(where)}: expected {float(ref.value.reshape(-1)[at]):.8g} {allowed}; got {got:.8g}"
        f" ({count} of {ref.value.size} elements are wrong)"
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """A suite with its inputs and references at hand."""

    suite: Suite
    inputs: Mapping[str, Array]
    expected: Sequence[Reference]


def prepare(program: Program, seed: int, xp: Any = np, *, rounding: Rounding = KERNEL, quick: bool = False) -> list[Prepared]:
    """Draw inputs and evaluate references for every suite; leaves out those in which nothing can be compared."""
    found = []
    for suite in suites(program, seed, rounding, quick=quick):
        inputs = suite.inputs(xp)
        expected = references(program, inputs, xp, exact=suite.exact, rounding=rounding)
        if comparable(expected):
            found.append(Prepared(suite, inputs, expected))
    return found


def _narrow(xp: Any, values: Array, dtype: DType) -> Array:
    """Convert drawn float32 values; bfloat16 on CuPy by cutting bits (any value will do for a draw)."""
    if xp is np or dtype is not DType.BF16:
        return values.astype(dtype.numpy)
    bits = xp.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (bits >> np.uint32(16)).astype(np.uint16).reshape(values.shape)
