"""Whether two expressions are one up to the names of their axes, and which axis stands for which."""

from __future__ import annotations

from eqsat.ir import Expr
from eqsat.ops import Kind


def alignment(one: Expr, other: Expr) -> dict[str, str] | None:
    """Return the name in `one` of each axis of `other`, or None if they differ in more than names.

    Parameters
    ----------
    one, other : Expr
        Pointwise code over reads; an access aligns with itself only, by the names that it has.
    """
    names: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    stack = [(one, other)]
    while stack:
        a, b = stack.pop()
        if (a.digest, b.digest) in seen:
            continue
        seen.add((a.digest, b.digest))
        pairs = _paired(a, b)
        if pairs is None or any(names.setdefault(y, x) != x for x, y in pairs):
            return None
        if a.op != "access":  # what it reads is equal, by names that are hidden from outside
            stack += zip(a.args, b.args, strict=True)
    return names if len(set(names.values())) == len(names) else None


def _paired(a: Expr, b: Expr) -> list[tuple[str, str]] | None:
    """Return the axes that two nodes name at the same places, or None if they are not the same node otherwise."""
    if (a.op, a.dtype, len(a.args)) != (b.op, b.dtype, len(b.args)) or a.row.kind is Kind.REDUCE:
        return None
    if a.op == "access":
        return [(x, x) for x in a.axes] if a == b else None
    if a.op == "iota":
        return [(a.attrs[0], b.attrs[0])] if a.type.elements == b.type.elements else None
    if a.op != "read":
        return [] if a.attrs == b.attrs else None
    same = a.attrs[0] == b.attrs[0] and all(bool(x) == bool(y) for x, y in zip(a.attrs[1], b.attrs[1], strict=True))
    return [(x, y) for x, y in zip(a.attrs[1], b.attrs[1], strict=True) if x] if same else None
