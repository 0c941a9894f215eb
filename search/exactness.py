"""Which integers make every partial result of a program exact, so that all correct kernels give the same bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eqsat.errorbound import Rounding
from eqsat.ir import Expr, Output, Program
from eqsat.oracle import product_factors, widens
from eqsat.types import DType

_DIGITS = {DType.F64: 52, DType.F32: 23, DType.F16: 11, DType.BF16: 8, DType.I32: 31, DType.I64: 52, DType.BOOL: 1}


def exact_magnitude(program: Program, rounding: Rounding) -> int:
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
