"""Constants that meet whole numbers: a rule must not put a fraction there, since a constant takes the dtype of what it meets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from eqsat.gate.equation import Equation, dtype_of
from eqsat.ops import BY_CONSTRUCTOR, Kind, Result
from eqsat.sexpr import Node

_WHOLE = ("i32", "i64")
_KEEPING = frozenset(
    {"Add", "Sub", "Mul", "Neg", "Abs", "Maximum", "Minimum", "Pow", "Floor", "Sum", "Prod", "Max", "Min", "Access"}
)
_CALCULATIONS = frozenset({"+", "-", "*", "neg", "abs", "min", "max", "to-f64"})


def fraction_among_whole(equation: Equation, types: Mapping[str, str]) -> Node | None:
    """Return a constant on the right side that may be a fraction where it meets whole numbers; None if there is none.

    Numbers and constant operands that meet whole numbers on the left side are whole there, or no program has that term.
    """
    dtypes = set(types.values())
    if not dtypes & set(_WHOLE) or ("weak" not in dtypes and not any(n.head == "Const" for n in equation.right.walk())):
        return None
    numbers = {v for v, sort in equation.numbers if sort == "i64"}
    for constant in _met(equation.left, types):
        numbers |= {n.text for n in constant.walk() if n.kind == "symbol"}
        if not _is_whole(constant, numbers):
            return None  # the left side itself is no term that a program has
    return next((c for c in _met(equation.right, types) if not _is_whole(c, numbers)), None)


def _met(term: Node, types: Mapping[str, str]) -> Iterator[Node]:
    """Yield the constant operands of ops that compute with whole numbers."""
    for node in term.walk():
        row = BY_CONSTRUCTOR.get(node.head)
        if row is None or row.kind is not Kind.POINTWISE or row.name == "cast":
            continue
        operands = node.args[1:] if row.result is Result.BRANCHES else node.args
        if len(operands) < 2:
            continue
        dtypes = [dtype_of(o, types) for o in operands]
        if set(dtypes) <= {*_WHOLE, "weak"} and set(dtypes) & set(_WHOLE):
            yield from (o for o, d in zip(operands, dtypes, strict=True) if d == "weak")


def _is_whole(node: Node, numbers: set[str]) -> bool:
    """Whether a constant term or a calculation is surely whole; exponents are extents or numbers that are not negative."""
    if node.head == "Const":
        return _is_whole(node.args[0], numbers)
    if node.kind == "list":
        known = node.head in _KEEPING | _CALCULATIONS
        row = BY_CONSTRUCTOR.get(node.head)
        if row is not None and row.kind in (Kind.REDUCE, Kind.ACCESS):
            return known and _is_whole(node.args[-1], numbers)
        if node.head == "^":
            base, exponent = node.args
            return (
                exponent.kind in ("int", "float")
                and exponent.number >= 0
                and all(_is_whole(a, numbers) for a in (base, exponent))
            )
        return node.head == "extent" or (known and all(_is_whole(a, numbers) for a in node.args))
    if node.kind == "symbol":
        return node.text in numbers
    return node.kind == "int" or (node.kind == "float" and node.number == node.number // 1)
