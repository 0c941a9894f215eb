"""Reductions of a prefix: ⊕_k (k ≤ j ? a : neutral element), which one pass along the axis makes for every j.

That is what a cumulative sum, product or maximum means, and it is spelled with the operations that every program has, so that
all rules hold for it. Only what evaluates or computes it has to know that its cost is not the square of the extent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eqsat.ir import Expr

SCANNED = ("sum", "prod", "max", "min")


@dataclass(frozen=True, slots=True)
class Prefix:
    """The anatomy of a reduction of prefixes or suffixes.

    Attributes
    ----------
    axis, along : str
        The reduced axis k and the axis j of the result that bounds it; their extents are equal.
    operand : Expr
        What is reduced; it varies over k, and not over j.
    suffix : bool
        Whether k runs from j on rather than up to it.
    strict : bool
        Whether k = j itself is left out.
    neutral : float
        What the reduction of nothing is.
    """

    axis: str
    along: str
    operand: Expr
    suffix: bool
    strict: bool
    neutral: float


def prefix(e: Expr) -> Prefix | None:
    """Return the anatomy of a reduction of prefixes; None if `e` is none."""
    if e.op not in SCANNED or e.args[0].op != "where":
        return None
    axis = e.attrs[0]
    condition, yes, no = e.args[0].args
    if condition.op not in ("le", "lt") or any(x.op != "iota" for x in condition.args):
        return None
    first, second = (x.attrs[0] for x in condition.args)
    if axis not in (first, second) or first == second:
        return None
    negated = _is_neutral(yes, e)  # (k < j ? 0 : a) is (j ≤ k ? a : 0)
    operand, rest = (no, yes) if negated else (yes, no)
    along = second if first == axis else first
    if not _is_neutral(rest, e) or axis not in operand.axes or along in operand.axes or operand.dtype is not e.args[0].dtype:
        return None
    extents = e.args[0].type.extents
    if extents[axis] != extents[along]:
        return None
    return Prefix(
        axis, along, operand, suffix=(first != axis) != negated, strict=(condition.op == "lt") != negated, neutral=rest.attrs[0]
    )


def _is_neutral(e: Expr, reduction: Expr) -> bool:
    """Whether `e` is the constant that a reduction does not see: for whole numbers' extrema, the end of their range."""
    if e.op != "const":
        return False
    value, identity = float(e.attrs[0]), float(reduction.row.identity or 0.0)
    if not reduction.dtype.is_float and math.isinf(identity):
        half = 2 ** (8 * reduction.dtype.bytes - 1)
        return bool(int(e.attrs[0]) == (-half if identity < 0 else half - 1))
    return bool(value == identity)


def evaluated(roots: Iterable[Expr]) -> list[Expr]:
    """Return the distinct nodes of expressions whose values are needed: not what only reductions of prefixes choose by."""
    nodes = {e.digest: e for root in roots for e in root.walk()}
    found = {digest: prefix(e) for digest, e in nodes.items()}
    needed = {root.digest for root in roots}
    for digest, e in reversed(nodes.items()):  # users before operands
        if digest in needed:
            p = found[digest]
            needed |= {p.operand.digest} if p else {a.digest for a in e.args}
    return [e for digest, e in nodes.items() if digest in needed]
