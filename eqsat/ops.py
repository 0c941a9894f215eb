"""The op table: one row for each operation, and everything else in the project reads this table.

A row gives the constructor used in rule files, the meaning (NumPy float64 or integers), and for the running-error
interpreter the size of the partial derivatives. Kernels call an op as `eq_<name>` out of the target's prelude.
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from eqsat.errors import DTypeError
from eqsat.types import DType, promote

Array = Any  # a NumPy or CuPy array: the evaluator runs over either module
Slopes = Callable[..., tuple[Array, ...]]


class Kind(enum.Enum):
    """What an op does to axes."""

    LEAF = "leaf"
    POINTWISE = "pointwise"
    REDUCE = "reduce"
    ACCESS = "access"


class Result(enum.Enum):
    """How the element type of the result follows from the operands."""

    PROMOTE = "promote"  # the promoted type of all operands
    FLOAT = "float"  # the same; integers become f32
    BOOL = "bool"
    BRANCHES = "branches"  # promoted over all operands but the first (where)
    COUNT = "count"  # bool counts as i64 (sum)
    INDEX = "index"  # i64 (argmax)
    GIVEN = "given"  # an attribute says (cast, leaves)


@dataclass(frozen=True, slots=True)
class Op:
    """A row of the op table.

    Parameters
    ----------
    name : str
        Name in program text, in receipts and (as `eq_<name>`) in emitted code.
    constructor : str
        CamelCase name in the e-graph and in rule files.
    kind : Kind
    arity : int
        Number of operands.
    evaluate : callable
        `evaluate(xp, *operands)` for pointwise ops; `evaluate(xp, operand, axis)` for reductions.
    slopes : callable or None
        `slopes(xp, result, *operands)`: absolute partial derivatives, one per operand, for the running error.
    result : Result
    identity : float or None
        The neutral element of a reduction.
    commutative : bool
    weight : int
        Arithmetic of one element relative to an addition: which of several equal spellings of a region is kept. Rough
        instruction counts of the emitted code.
    """

    name: str
    constructor: str
    kind: Kind
    arity: int
    evaluate: Callable[..., Array]
    slopes: Slopes | None = None
    result: Result = Result.PROMOTE
    identity: float | None = None
    commutative: bool = False
    weight: int = 1


def _erf(xp: Any, x: Array) -> Array:
    # scipy.special costs 0.2 s to import and only programs with erf need it; cupyx is an optional dependency
    module = importlib.import_module("scipy.special" if xp is np else "cupyx.scipy.special")
    return module.erf(x)


def _sigmoid(xp: Any, x: Array) -> Array:
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _one(xp: Any, y: Array, *xs: Array) -> tuple[Array, ...]:
    return tuple(xp.ones_like(y) for _ in xs)


def _zero(xp: Any, y: Array, *xs: Array) -> tuple[Array, ...]:
    return tuple(xp.zeros_like(y) for _ in xs)


def _pow_slopes(xp: Any, y: Array, a: Array, b: Array) -> tuple[Array, Array]:
    logs = xp.log(xp.where(a > 0, a, 1.0))
    return xp.abs(b * y / xp.where(a == 0, 1.0, a)), xp.abs(y * logs)


def _pointwise(name: str, constructor: str, arity: int, evaluate: Callable[..., Array], slopes: Slopes, **more: Any) -> Op:
    return Op(name, constructor, Kind.POINTWISE, arity, evaluate, slopes, **more)


def _reduce(name: str, constructor: str, evaluate: Callable[..., Array], identity: float | None, **more: Any) -> Op:
    return Op(name, constructor, Kind.REDUCE, 1, evaluate, None, identity=identity, **more)


def _none(*_: Any) -> Array:
    raise AssertionError("leaves and accesses are evaluated by the oracle itself")


_F, _B = Result.FLOAT, Result.BOOL

TABLE: tuple[Op, ...] = (
    Op("read", "Read", Kind.LEAF, 0, _none, result=Result.GIVEN),
    Op("const", "Const", Kind.LEAF, 0, _none, result=Result.GIVEN),
    Op("iota", "Iota", Kind.LEAF, 0, _none, result=Result.GIVEN),
    Op("access", "Access", Kind.ACCESS, 1, _none),
    _pointwise("add", "Add", 2, lambda xp, a, b: a + b, _one, commutative=True),
    _pointwise("sub", "Sub", 2, lambda xp, a, b: a - b, _one),
    _pointwise("mul", "Mul", 2, lambda xp, a, b: a * b, lambda xp, y, a, b: (abs(b), abs(a)), commutative=True),
    _pointwise("div", "Div", 2, lambda xp, a, b: a / b, lambda xp, y, a, b: (1 / abs(b), abs(y / b)), result=_F, weight=6),
    _pointwise("maximum", "Maximum", 2, lambda xp, a, b: xp.maximum(a, b), _one, commutative=True),
    _pointwise("minimum", "Minimum", 2, lambda xp, a, b: xp.minimum(a, b), _one, commutative=True),
    _pointwise("pow", "Pow", 2, lambda xp, a, b: xp.power(a, b), _pow_slopes, result=_F, weight=24),
    _pointwise("neg", "Neg", 1, lambda xp, a: -a, _one),
    _pointwise("abs", "Abs", 1, lambda xp, a: xp.abs(a), _one),
    _pointwise("recip", "Recip", 1, lambda xp, a: 1 / a, lambda xp, y, a: (y * y,), result=_F, weight=4),
    _pointwise("exp", "Exp", 1, lambda xp, a: xp.exp(a), lambda xp, y, a: (y,), result=_F, weight=8),
    _pointwise("log", "Log", 1, lambda xp, a: xp.log(a), lambda xp, y, a: (1 / abs(a),), result=_F, weight=10),
    _pointwise("sqrt", "Sqrt", 1, lambda xp, a: xp.sqrt(a), lambda xp, y, a: (0.5 / xp.maximum(y, 1e-300),), result=_F, weight=6),
    _pointwise("rsqrt", "Rsqrt", 1, lambda xp, a: 1 / xp.sqrt(a), lambda xp, y, a: (0.5 * y**3,), result=_F, weight=6),
    _pointwise("tanh", "Tanh", 1, lambda xp, a: xp.tanh(a), lambda xp, y, a: (1 - y * y,), result=_F, weight=14),
    _pointwise("erf", "Erf", 1, _erf, lambda xp, y, a: (1.1283791670955126 * xp.exp(-a * a),), result=_F, weight=20),
    _pointwise("sigmoid", "Sigmoid", 1, _sigmoid, lambda xp, y, a: (y * (1 - y),), result=_F, weight=12),
    _pointwise("sin", "Sin", 1, lambda xp, a: xp.sin(a), lambda xp, y, a: (abs(xp.cos(a)),), result=_F, weight=16),
    _pointwise("cos", "Cos", 1, lambda xp, a: xp.cos(a), lambda xp, y, a: (abs(xp.sin(a)),), result=_F, weight=16),
    _pointwise("floor", "Floor", 1, lambda xp, a: xp.floor(a), _zero),
    _pointwise("lt", "Lt", 2, lambda xp, a, b: a < b, _one, result=_B),
    _pointwise("le", "Le", 2, lambda xp, a, b: a <= b, _one, result=_B),
    _pointwise("eq", "Eq", 2, lambda xp, a, b: a == b, _one, result=_B, commutative=True),
    _pointwise("and", "And", 2, lambda xp, a, b: a & b, _one, result=_B, commutative=True),
    _pointwise("or", "Or", 2, lambda xp, a, b: a | b, _one, result=_B, commutative=True),
    _pointwise("not", "Not", 1, lambda xp, a: ~a, _one, result=_B),
    _pointwise("where", "Where", 3, lambda xp, c, a, b: xp.where(c, a, b), _one, result=Result.BRANCHES),
    _pointwise("cast", "Cast", 1, _none, _one, result=Result.GIVEN),
    _reduce("sum", "Sum", lambda xp, a, axis: a.sum(axis), 0.0, result=Result.COUNT),
    _reduce("prod", "Prod", lambda xp, a, axis: a.prod(axis), 1.0),
    _reduce("max", "Max", lambda xp, a, axis: a.max(axis), float("-inf")),
    _reduce("min", "Min", lambda xp, a, axis: a.min(axis), float("inf")),
    _reduce("any", "Any", lambda xp, a, axis: a.any(axis), 0.0, result=_B),
    _reduce("all", "All", lambda xp, a, axis: a.all(axis), 1.0, result=_B),
    _reduce("argmax", "ArgMax", lambda xp, a, axis: a.argmax(axis), None, result=Result.INDEX),
    _reduce("argmin", "ArgMin", lambda xp, a, axis: a.argmin(axis), None, result=Result.INDEX),
)

OPS: dict[str, Op] = {op.name: op for op in TABLE}
BY_CONSTRUCTOR: dict[str, Op] = {op.constructor: op for op in TABLE}


def result_dtype(op: Op, operands: tuple[DType, ...]) -> DType:
    """Return the element type of `op` applied to operands of these types."""
    match op.result:
        case Result.BOOL:
            return DType.BOOL
        case Result.INDEX:
            return DType.I64
        case Result.BRANCHES:
            operands = operands[1:]
        case Result.GIVEN:
            raise DTypeError(f"the dtype of {op.name!r} is given by its attribute")
        case _:
            pass
    out = operands[0]
    for d in operands[1:]:
        out = promote(out, d)
    if op.result is Result.FLOAT and not out.is_float:
        return DType.F32
    if op.result is Result.COUNT and out is DType.BOOL:
        return DType.I64
    return out
