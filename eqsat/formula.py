"""An expression as a line of mathematics, for people: `Σ_k x[i,k]·w[k,j]`."""

from __future__ import annotations

from collections.abc import Mapping

from eqsat.access import AccessMap, Index
from eqsat.ir import Expr
from eqsat.ops import Kind

_INFIX = {  # op -> (sign, precedence, whether the right operand of the same precedence needs parentheses)
    "or": (" ∨ ", 1, False), "and": (" ∧ ", 2, False), "lt": (" < ", 3, True), "le": (" ≤ ", 3, True), "eq": (" = ", 3, True),
    "add": (" + ", 4, False), "sub": (" − ", 4, True), "mul": ("·", 5, False), "div": ("/", 5, True),
}  # fmt: skip
_BIG = {"sum": "Σ", "prod": "Π"}
_NAMES = {"maximum": "max", "minimum": "min", "sqrt": "√", "sigmoid": "σ"}
_ATOM, _UNARY, _SUM, _LONG = 9.0, 6.0, 4.5, 16


def show(expr: Expr, names: Mapping[str, str] | None = None) -> str:
    """Return `expr` as one line; longer parts that occur more than once are written once, after `where`.

    Parameters
    ----------
    expr : Expr
    names : mapping of str to str, optional
        What to write for subexpressions with these digests; then nothing else is named.

    Examples
    --------
    >>> from eqsat.numpy_like import softmax
    >>> from eqsat.trace import tensor, to_program
    >>> x, w = tensor("x", (4, 8)), tensor("w", (8, 5))
    >>> show(to_program(x @ w).outputs[0].expr)
    'Σ_k x[i,k]·w[k,j]'
    >>> show(to_program(softmax(x)).outputs[0].expr)
    'a/(Σ_j a) where a = exp(x[i,j] − max_j x[i,j])'
    """
    uses: dict[str, int] = {}
    nodes = list(expr.walk())
    for e in nodes:
        for a in e.args:
            uses[a.digest] = uses.get(a.digest, 0) + 1
    shown: dict[str, tuple[str, float]] = {}
    named: list[str] = []
    for e in nodes:
        text, level = _node(e, [shown[a.digest] for a in e.args])
        if names is not None:
            shown[e.digest] = (names[e.digest], _ATOM) if e.digest in names else (text, level)
            continue
        if e.args and uses.get(e.digest, 0) > 1 and len(text) > _LONG:
            name = _letter(len(named))
            named.append(f"{name} = {text}")
            text, level = name, _ATOM
        shown[e.digest] = (text, level)
    body = shown[expr.digest][0]
    return f"{body} where {', '.join(named)}" if named else body


def _letter(i: int) -> str:
    return "abcdefgh"[i % 8] + ("" if i < 8 else str(i // 8))


def _node(e: Expr, args: list[tuple[str, float]]) -> tuple[str, float]:
    """Return the text of a node and how tightly it binds."""
    if e.op == "read":
        axes = [a or "0" for a in e.attrs[1]]
        return (f"{e.attrs[0]}[{','.join(axes)}]" if axes else str(e.attrs[0])), _ATOM
    if e.op == "const":
        value = e.attrs[0]
        text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
        return text.replace("-", "−", 1) if text.startswith("-") else text, _UNARY if text.startswith("-") else _ATOM
    if e.op == "iota":
        return str(e.attrs[0]), _ATOM
    if e.row.kind is Kind.ACCESS:
        return _access(e, args[0])
    if e.row.kind is Kind.REDUCE:
        return f"{_BIG.get(e.op, e.op)}_{e.attrs[0]} {_within(args[0], _SUM)}", _SUM if args[0][
            1
        ] < _ATOM or e.op in _BIG else _UNARY
    return _pointwise(e, args)


def _pointwise(e: Expr, args: list[tuple[str, float]]) -> tuple[str, float]:
    if e.op in _INFIX:
        sign, level, strict = _INFIX[e.op]
        return f"{_within(args[0], level)}{sign}{_within(args[1], level + strict / 2)}", level
    match e.op:
        case "neg":
            return f"−{_within(args[0], _UNARY)}", _UNARY
        case "not":
            return f"¬{_within(args[0], _UNARY)}", _UNARY
        case "abs":
            return f"|{args[0][0]}|", _ATOM
        case "floor":
            return f"⌊{args[0][0]}⌋", _ATOM
        case "recip":
            return f"1/{_within(args[0], _UNARY)}", 5
        case "pow":
            return f"{_within(args[0], _ATOM)}^{_within(args[1], _ATOM)}", 7
        case "cast":
            return f"{e.dtype}({args[0][0]})", _ATOM
        case _:
            return f"{_NAMES.get(e.op, e.op)}({', '.join(text for text, _ in args)})", _ATOM


def _within(arg: tuple[str, float], level: float) -> str:
    text, own = arg
    return text if own >= level else f"({text})"


def _access(e: Expr, arg: tuple[str, float]) -> tuple[str, float]:
    mapping: AccessMap = e.attrs[0]
    by = dict(mapping.entries)
    source = e.args[0]
    if source.op == "read":
        name, axes = source.attrs
        return f"{name}[{','.join(_index(by.get(a, Index.axis(a))) if a else '0' for a in axes)}]", _ATOM
    moves = ", ".join(f"{a} := {_index(x)}" for a, x in mapping.entries)
    return f"{_within(arg, _ATOM)}[{moves}]", _ATOM


def _index(index: Index) -> str:
    match index.op:
        case "axis":
            return index.name
        case "const":
            return str(index.value)
        case "add":
            left, right = (_index(a) for a in index.args)
            return f"{left}{right}" if right.startswith("-") else f"{left}+{right}"
        case "mul":
            return f"-{_factor(index.args[0])}" if index.value == -1 else f"{index.value}{_factor(index.args[0])}"
        case _:
            return f"{_factor(index.args[0])}{'//' if index.op == 'div' else '%'}{index.value}"


def _factor(index: Index) -> str:
    return _index(index) if index.op in ("axis", "const") else f"({_index(index)})"
