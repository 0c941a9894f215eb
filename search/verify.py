"""Is a kernel right: input suites, references with bounds, the comparison, and a test of the comparison itself.

Everything runs over NumPy or CuPy (`xp`), so that both devices share it: data are drawn where they are used. CuPy has no
bfloat16: there such arrays are their bits in uint16 (`held_dtype`). A device calls `suites`, then for each suite `inputs` and
`references`, runs the kernel into a `GuardedBuffer` that was poisoned, and calls `check_outputs`; `power` once a program.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from eqsat.errorbound import Rounding, evaluate_with_bound
from eqsat.evaluation import from_float64, to_float64
from eqsat.ir import Expr, Input, Output, Program, apply, const, iota, rebuild, substitute
from eqsat.ir import reduce as reduce_expr
from eqsat.ops import Array, Kind
from eqsat.oracle import evaluate, product_factors, widens
from eqsat.prefix import prefix
from eqsat.search.device import Check
from eqsat.types import DType

Fault = tuple[str, int, Callable[[], Array]]  # its kind, which output is wrong, how to make it
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


# -- exact integers ----------------------------------------------------------------------------------------------------

_DIGITS = {DType.F64: 52, DType.F32: 23, DType.F16: 11, DType.BF16: 8, DType.I32: 31, DType.I64: 52, DType.BOOL: 1}


def exact_magnitude(program: Program, rounding: Rounding = KERNEL) -> int:
    """Return the largest a (of 8, 4, 2, 1) such that integer inputs in [-a, a] make every partial result exact, or 0.

    Each value is a multiple of a power of two, below a bound; it is exact in a type if the quotient fits its digits. The
    output itself may be rounded: once, to nearest, and therefore alike by every correct kernel.
    """
    return next((a for a in (8, 4, 2, 1) if all(_is_exact(o, a, rounding) for o in program.outputs)), 0)


def _is_exact(out: Output, magnitude: int, rounding: Rounding) -> bool:
    grids: dict[str, tuple[float, float]] = {}
    short: set[str] = set()  # factors of sums of products: a matrix unit takes them rounded to their dtype
    for e in out.expr.walk():
        if e.op == "sum":
            found = product_factors(e.args[0])
            short |= {f.digest for f in (found if len(found) > 1 else e.args[0].args if e.args[0].op == "mul" else ())}
    for e in out.expr.walk():
        grid = _grid(e, [grids[a.digest] for a in e.args], magnitude)
        if grid is None:
            return False
        grids[e.digest] = grid
        rounded = rounding.stored or e.digest in short or (e.op == "cast" and not widens(e))
        held = e.dtype if rounded and not (e == out.expr and e.dtype is out.dtype) else e.dtype.accumulator
        if grid[0] > grid[1] * 2.0 ** _DIGITS[held]:
            return False
    return True


def _grid(e: Expr, args: Sequence[tuple[float, float]], magnitude: int) -> tuple[float, float] | None:
    """Return (largest size, step) of a node's values; None if they leave every grid."""
    most, step = max((a[0] for a in args), default=0.0), min((a[1] for a in args), default=1.0)
    match e.op:
        case "read":
            return (1.0, 1.0) if e.dtype is DType.BOOL else (float(magnitude), 1.0)
        case "iota":
            return float(max(0, e.type.elements - 1)), 1.0
        case "const":
            return _constant_grid(float(e.attrs[0]))
        case "add" | "sub":
            return args[0][0] + args[1][0], step
        case "mul":
            return args[0][0] * args[1][0], args[0][1] * args[1][1]
        case "div" if e.args[1].op == "const" and math.frexp(float(e.args[1].attrs[0]))[0] in (0.5, -0.5):
            scale = abs(float(e.args[1].attrs[0]))
            return args[0][0] / scale, args[0][1] / scale
        case "sum":
            return args[0][0] * max(1, e.args[0].type.extents[e.attrs[0]]), step
        case "where":
            return max(args[1][0], args[2][0]), min(args[1][1], args[2][1])
        case "neg" | "abs" | "maximum" | "minimum" | "max" | "min" | "access":
            return most, step
        case "cast":
            return (1.0, 1.0) if e.dtype is DType.BOOL else (most, step if e.dtype.is_float else max(step, 1.0))
        case "floor":
            return math.ceil(most), max(step, 1.0)
        case "lt" | "le" | "eq" | "and" | "or" | "not" | "any" | "all":
            return 1.0, 1.0
        case "argmax" | "argmin":
            return float(max(1, e.args[0].type.extents[e.attrs[0]])), 1.0
        case _:
            return None


def _constant_grid(value: float) -> tuple[float, float] | None:
    if not math.isfinite(value):
        return None
    if value == 0:
        return 0.0, 1.0
    _, denominator = value.as_integer_ratio()
    if denominator > 1:
        return abs(value), 1.0 / denominator
    numerator = int(abs(value))
    return abs(value), float(numerator & -numerator)


# -- the power of the check --------------------------------------------------------------------------------------------


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


def power(program: Program, prepared: Sequence[Prepared], xp: Any = np) -> tuple[int, int]:
    """Feed wrong outputs to `check_outputs`; return (how many kinds were rejected, how many there were).

    A kind of fault counts where it changes an output, beyond four units of its dtype, in some suite; it is rejected if
    some suite rejects it.
    """
    tried: set[str] = set()
    rejected: set[str] = set()
    with np.errstate(all="ignore"):
        for p in prepared:
            _try_faults(program, p, xp, tried, rejected)
    return len(rejected), len(tried)


def _try_faults(program: Program, p: Prepared, xp: Any, tried: set[str], rejected: set[str]) -> None:
    right = [from_float64(xp, r.value, r.dtype) for r in p.expected]
    for name, at, make in _faults(program, p, right, xp):
        if name in rejected:
            continue
        wrong = make()
        if _differs(xp, p.expected[at], right[at], wrong):
            tried.add(name)
            outputs = [wrong if i == at else x for i, x in enumerate(right)]
            if not check_outputs(outputs, p.expected, p.suite, xp).passed:
                rejected.add(name)


def _differs(xp: Any, ref: Reference, right: Array, wrong: Array) -> bool:
    with np.errstate(all="ignore"):
        a, b = (to_float64(xp, x, ref.dtype).astype(np.float64) for x in (right, wrong))
        far = ~(xp.abs(a - b) <= 4 * ref.dtype.roundoff * xp.abs(a)) & ~((a != a) & (b != b)) & ~(a == b)
        return bool((far if ref.bound is None else far & (ref.bound < math.inf)).any())


def _faults(program: Program, p: Prepared, right: Sequence[Array], xp: Any) -> Iterator[Fault]:
    for at, (out, value) in enumerate(zip(program.outputs, right, strict=True)):
        if not value.size:
            continue
        yield f"{out.name}: zeros", at, partial(xp.zeros_like, value)
        for i in program.inputs:
            if i.shape == out.shape:
                yield f"{out.name}: a copy of {i.name}", at, partial(_converted, xp, p.inputs[i.name], i.dtype, out.dtype)
        yield f"{out.name}: last tile not written", at, partial(_unwritten, value)
        long = next((d for d, n in enumerate(value.shape) if n > 1), None)
        if long is not None:
            yield f"{out.name}: off by one row", at, partial(xp.roll, value, 1, axis=long)
        yield f"{out.name}: last element changed", at, partial(_changed, xp, p.expected[at])
        yield from _precision_fault(xp, out, at, p.expected[at])
        if p.suite.name in ("exact", "normal", "edges"):
            yield from _dropped_tiles(program, at, p, xp)


def _converted(xp: Any, array: Array, dtype: DType, to: DType) -> Array:
    return from_float64(xp, to_float64(xp, array, dtype), to)


def _unwritten(value: Array) -> Array:
    wrong = value.copy()
    if wrong.ndim:
        wrong[..., -min(16, wrong.shape[-1]) :] = 0
    return wrong


def _changed(xp: Any, ref: Reference) -> Array:
    """Return the right output with its last element moved by half of itself or a quarter of the typical size."""
    flat = ref.value.reshape(-1).copy()
    if ref.dtype is DType.BOOL:
        flat[-1] = ~flat[-1]
    elif not ref.dtype.is_float:
        flat[-1] += 1
    else:
        finite = xp.where(xp.isfinite(flat), flat, 0.0)
        size = xp.abs(finite[-1])
        flat[-1] = finite[-1] + xp.maximum(0.5 * size, 0.25 * xp.sqrt((finite * finite).mean()))
    return from_float64(xp, flat.reshape(ref.value.shape), ref.dtype)


def _precision_fault(xp: Any, out: Output, at: int, ref: Reference) -> Iterator[Fault]:
    """Yield a downcast output, where the program is well enough conditioned to tell (typical bound under half of it)."""
    shorter = {DType.F32: DType.BF16, DType.F64: DType.F32}.get(out.dtype)
    if shorter is None or ref.bound is None:
        return
    step = max(1, ref.value.size // 65536)
    value, bound = ref.value.reshape(-1)[::step], ref.bound.reshape(-1)[::step]
    ratio = xp.where(xp.isfinite(value) & (value != 0), bound / xp.where(value == 0, 1.0, xp.abs(value)), math.inf)
    if float(xp.median(ratio)) > shorter.roundoff / 4:
        return

    def narrow() -> Array:
        return _converted(xp, from_float64(xp, ref.value, shorter), shorter, out.dtype)

    yield f"{out.name}: computed in {shorter}", at, narrow


def _dropped_tiles(program: Program, at: int, p: Prepared, xp: Any) -> Iterator[Fault]:
    """Yield the output of the program whose outermost reduction leaves out its last positions."""
    out = program.outputs[at]
    node = next((e for e in reversed(list(out.expr.walk())) if e.row.kind is Kind.REDUCE and e.row.identity is not None), None)
    if node is None or (extent := node.args[0].type.extents[node.attrs[0]]) < 2:
        return
    # A tile of a long reduction has 64 positions at the least; fewer of many would hide in what the result is rounded to.
    dropped = max(1, min(16, extent // 2), extent // 64)

    def cut() -> Array:
        wrong = substitute(out.expr, {node: _without_last(node, extent - dropped)})
        short = Program(program.inputs, (Output(out.name, wrong, out.axes, out.dtype, out.joined),))
        return from_float64(xp, evaluate(short, p.inputs, xp)[0], out.dtype)

    yield f"{out.name}: {dropped} of {extent} dropped", at, cut


def _without_last(node: Expr, stop: int) -> Expr:
    axis, body = node.attrs[0], node.args[0]
    found = prefix(node)
    if found is not None:  # the cut is in what is scanned, so that it is still a scan
        short = apply("where", _below(axis, body, stop), found.operand, const(found.neutral, found.operand.dtype))
        return rebuild(node, (substitute(body, {found.operand: short}),))
    inside = _below(axis, body, stop)
    if node.op == "sum" and body.dtype is not DType.BOOL:
        return reduce_expr("sum", axis, apply("mul", body, apply("cast", inside, dtype=body.dtype)))
    identity = node.row.identity or 0.0
    if not body.dtype.is_float and math.isinf(identity):
        identity = math.copysign(2**31 - 1, identity)
    return reduce_expr(node.op, axis, apply("where", inside, body, const(identity, body.dtype)))


def _below(axis: str, body: Expr, stop: int) -> Expr:
    return apply("lt", iota(axis, body.type.extents[axis]), const(stop, DType.I64))


# -- buffers -----------------------------------------------------------------------------------------------------------

_GUARD_BYTES = 256  # also keeps the alignment that vector loads and tensor maps need
_POISON = 0xFF  # all ones is a NaN in every float type, -1 in integers
_WRITE_GUARD = (0xA5, 0xA5)  # a number, which arithmetic on what lies outside an input does not give
_READ_GUARD = (0xFF, 0x7F)  # 0x7FFF, repeated: NaN in every float type, so that a read outside shows in the output


def held_dtype(xp: Any, dtype: DType) -> np.dtype:
    """Return the array dtype that holds `dtype` on `xp`: uint16 for bfloat16 on CuPy."""
    return np.dtype(np.uint16) if xp is not np and dtype is DType.BF16 else dtype.numpy


class GuardedBuffer:
    """Memory for one array with a guard band on either side.

    Parameters
    ----------
    shape, dtype
        Of the array.
    xp : module
    is_input : bool
        The bands hold NaN, so that reading them shows in the output; around an output they hold a number.

    Attributes
    ----------
    array : array
        The usable part, aligned to 64 bytes (256 on CUDA), in the dtype that holds the element type.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DType, xp: Any = np, *, is_input: bool = False) -> None:
        self._guard = _READ_GUARD if is_input else _WRITE_GUARD
        held = held_dtype(xp, dtype)
        size = math.prod(shape) * held.itemsize
        raw = xp.empty(size + 2 * _GUARD_BYTES + 64, dtype=np.uint8)
        start = _GUARD_BYTES + (-raw.ctypes.data % 64 if xp is np else 0)
        self._before, self._inside = raw[start - _GUARD_BYTES : start], raw[start : start + size]
        self._after = raw[start + size : start + size + _GUARD_BYTES]
        for band in (self._before, self._after):
            band[0::2], band[1::2] = self._guard
        self.array = self._inside.view(held).reshape(shape)
        self.poison()

    def poison(self) -> None:
        """Fill the array with NaN (-1 in integers), so that an element not written is seen."""
        self._inside[...] = _POISON

    def fill(self, source: Array) -> None:
        """Copy an array of the same dtype and shape into it."""
        self.array[...] = source

    @property
    def intact(self) -> bool:
        """Whether nothing was written outside the array."""
        bands = (self._before, self._after)
        return all(bool((band[i::2] == byte).all()) for band in bands for i, byte in enumerate(self._guard))

    def equals(self, source: Array) -> bool:
        """Whether it holds the bits of `source`."""
        return bool((self._inside == source.reshape(-1).view(np.uint8)).all())


def _narrow(xp: Any, values: Array, dtype: DType) -> Array:
    """Convert drawn float32 values; bfloat16 on CuPy by cutting bits (any value will do for a draw)."""
    if xp is np or dtype is not DType.BF16:
        return values.astype(dtype.numpy)
    bits = xp.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (bits >> np.uint32(16)).astype(np.uint16).reshape(values.shape)
