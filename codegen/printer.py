"""Print expressions as C: one SSA statement for each node, shared subexpressions once; and index arithmetic as C."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from eqsat.access import AccessMap, Index
from eqsat.ir import Expr, Input
from eqsat.types import DType

Leaf = Callable[[Expr], str | None]

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


def print_statements(
    roots: Sequence[Expr], leaf: Leaf, ctype: Callable[[DType], str], prefix: str = "t"
) -> tuple[list[str], list[str]]:
    """Print the values of `roots` as C statements.

    Parameters
    ----------
    roots : sequence of Expr
        Expressions whose values are wanted.
    leaf : callable
        Returns the C expression of a node that is already at hand (a loaded read, a constant, an accumulator), else None.
        It is asked before a node's operands are visited.
    ctype : callable
        The C type of a register that holds a value of a dtype (16-bit floats are computed in float).
    prefix : str
        Names of new variables: `<prefix>0`, `<prefix>1`, …

    Returns
    -------
    statements, names : list of str, list of str
        The lines, and for each root the C expression that holds it.

    Notes
    -----
    Arithmetic prints infix; every other op prints as a call `eq_<name>(…)`, which the target's prelude defines; a cast prints
    as `eq_cast_<dtype>(…)` and rounds to that dtype.
    """
    lines: list[str] = []
    names: dict[str, str] = {}

    def value(e: Expr) -> str:
        if e.digest in names:
            return names[e.digest]
        at_hand = leaf(e)
        if at_hand is not None:
            names[e.digest] = at_hand
            return at_hand
        operands = [value(a) for a in e.args]
        name = f"{prefix}{len(lines)}"
        lines.append(f"{ctype(e.dtype)} {name} = {print_call(e, operands)};")
        names[e.digest] = name
        return name

    return lines, [value(r) for r in roots]


def print_call(e: Expr, operands: Sequence[str]) -> str:
    """Print one pointwise op on operands that are at hand (integers divide as floats, so C's own division is not for them)."""
    if e.op in _INFIX and (e.op != "div" or all(a.dtype.is_float for a in e.args)):
        return f"{operands[0]} {_INFIX[e.op]} {operands[1]}"
    name = f"eq_cast_{e.dtype}" if e.op == "cast" else f"eq_{e.op}"
    return f"{name}({', '.join(operands)})"


def print_index(index: Index, names: Mapping[str, str]) -> str:
    """Print an index expression; `names` maps axes to C variables. Division and remainder floor, also below zero."""
    match index.op:
        case "axis":
            return names[index.name]
        case "const":
            return str(index.value)
        case "add":
            return f"({print_index(index.args[0], names)} + {print_index(index.args[1], names)})"
        case "mul":
            return f"({print_index(index.args[0], names)} * {index.value})"
        case "div":
            return f"eq_floordiv({print_index(index.args[0], names)}, {index.value})"
        case _:
            return f"eq_floormod({print_index(index.args[0], names)}, {index.value})"


def read_indices(e: Expr) -> tuple[str, tuple[Index, ...]]:
    """Return (input name, index expression of each dimension) of a `read`, or of an `access` of a read."""
    mapping: Mapping[str, Index] = {}
    if e.op == "access":
        am: AccessMap = e.attrs[0]
        mapping, e = dict(am.entries), e.args[0]
    name, axes = e.attrs
    return name, tuple(mapping.get(a, Index.axis(a)) if a else Index.const(0) for a in axes)


def is_load(e: Expr) -> bool:
    """Whether the node reads a buffer: a `read`, or an `access` of one."""
    return e.op == "read" or (e.op == "access" and e.args[0].op == "read")


def strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return row-major strides in elements."""
    out: list[int] = []
    step = 1
    for n in reversed(shape):
        out.append(step)
        step *= n
    return tuple(reversed(out))


def print_offset(e: Expr, buffer: Input, names: Mapping[str, str]) -> str:
    """Print the element offset of a load into its row-major buffer, as 64-bit arithmetic."""
    _, indices = read_indices(e)
    terms = [
        f"(long long){print_index(i, names)} * {s}" for i, s in zip(indices, strides(buffer.shape), strict=True) if str(i) != "0"
    ]
    return " + ".join(terms) or "0"


def print_guard(e: Expr, buffer: Input, names: Mapping[str, str]) -> str:
    """Print the condition under which a load is inside its buffer ("" if it always is); outside it reads 0."""
    if e.op != "access":
        return ""
    new = e.type.extents
    _, indices = read_indices(e)
    parts: list[str] = []
    for i, n in zip(indices, buffer.shape, strict=True):
        low, high = i.bounds({**new, **dict(e.attrs[0].extents)})
        c = print_index(i, names)
        parts += [f"{c} >= 0"] if low < 0 else []
        parts += [f"{c} < {n}"] if high >= n else []
    return " && ".join(parts)
