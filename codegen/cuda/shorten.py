"""Shorter evaluations of expensive functions, where the running error allows them."""

from __future__ import annotations

from collections.abc import Sequence

from eqsat.codegen.problem import nest
from eqsat.ir import Expr, Output
from eqsat.types import DType

# Relative error of (|x| + 4) units at most, as the running error grants to every kernel.
_RELATIVE = frozenset(["exp", "sigmoid"])
# An absolute error of 4 units: harmless beside the constant that is added (1 + erf in GELU), not for a small result alone.
_ABSOLUTE = frozenset(["erf", "tanh"])


def short_functions(root: Expr, stored: DType) -> dict[str, str]:
    """Return the device function by digest of each node of `root` that may be evaluated in its short form.

    Parameters
    ----------
    root : Expr
        The value that is stored.
    stored : DType
        The type it is stored in. 16-bit floats hide the difference everywhere. In f32 an exponential relative to the maximum,
        e^(x − max x), is short too: rounding the difference costs |x − max x| units already, which the scaled argument costs
        once more; and what is flushed is 2^-126 beside the 1 at the maximum.
    """
    users: dict[str, list[Expr]] = {}
    nodes = list(root.walk())
    for e in nodes:
        for a in e.args:
            users.setdefault(a.digest, []).append(e)
    out: dict[str, str] = {}
    for e in nodes:
        if e.dtype.accumulator is not DType.F32:
            continue
        if stored not in (DType.F16, DType.BF16):
            if _is_beside_one(e):
                out[e.digest] = f"eq_{e.op}_short"
            continue
        if e.op in _RELATIVE or (e.op in _ABSOLUTE and all(_beside_constant(u) for u in users.get(e.digest, [root]))):
            out[e.digest] = f"eq_{e.op}_short"
    return out


def short_in_all(outputs: Sequence[Output]) -> dict[str, str]:
    """Return the device function of each node that may be evaluated in its short form for every output that it is part of."""
    found = [(short_functions(o.expr, o.dtype), {e.digest for e in o.expr.walk()}) for o in outputs]
    names = {digest: name for short, _ in found for digest, name in short.items()}
    return {d: name for d, name in names.items() if all(d in short for short, nodes in found if d in nodes)}


def _is_beside_one(e: Expr) -> bool:
    """Whether `e` is e^(x − max x)."""
    if e.op != "exp" or e.args[0].op != "sub":
        return False
    x, top = e.args[0].args
    return top.op == "max" and nest(top)[1] == x


def _beside_constant(user: Expr) -> bool:
    """Whether a user adds a constant of at least one half to the value."""
    return user.op in ("add", "sub") and any(a.op == "const" and abs(a.attrs[0]) >= 0.5 for a in user.args)


def call_short(short: dict[str, str], e: Expr, operands: Sequence[str]) -> str | None:
    """Print the short form of a node, or None if it has none."""
    return f"{short[e.digest]}({operands[0]})" if e.digest in short else None
