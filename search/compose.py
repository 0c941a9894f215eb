"""Write a plan as one expression again: every read of an intermediate replaced by what its kernel computes."""

from __future__ import annotations

from eqsat.access import AccessMap, Index
from eqsat.codegen.plan import Plan
from eqsat.errors import UsageError
from eqsat.ir import Expr, access, const, rebuild, rename
from eqsat.ops import Kind


def compose(plan: Plan, *, called: bool = False) -> tuple[Expr, ...]:
    """Return what the plan computes for each output of its program, as expressions over the program's inputs alone.

    With `called` an intermediate that is read along other axes is an access of it, as rules spell it; else the axes are
    renamed throughout.
    """
    made: dict[str, tuple[tuple[str, ...], Expr]] = {}
    for kernel in plan.kernels:
        memo: dict[str, Expr] = {}
        found = {o.name: (o.axes, _inline(o.expr, made, memo, called)) for o in kernel.program.outputs}
        made |= found
    return tuple(made[o.name][1] for o in plan.program.outputs)


def _inline(expr: Expr, made: dict[str, tuple[tuple[str, ...], Expr]], memo: dict[str, Expr], called: bool) -> Expr:
    for node in expr.walk():
        if node.digest in memo:
            continue
        if node.op == "read" and node.attrs[0] in made:
            memo[node.digest] = _read_as(made[node.attrs[0]], node.attrs[1], called)
        else:
            memo[node.digest] = _rebuilt(node, tuple(memo[a.digest] for a in node.args))
    return memo[expr.digest]


def _rebuilt(node: Expr, args: tuple[Expr, ...]) -> Expr:
    """Return `node` over other operands; constants follow what they meet where that was stored wider than it is computed."""
    if node.row.kind is Kind.POINTWISE and any(a.dtype is not b.dtype for a, b in zip(args, node.args, strict=True)):
        beside = [a.dtype for a in args if a.op != "const" and a.dtype.is_float]
        if beside:
            args = tuple(const(a.attrs[0], beside[0]) if a.op == "const" and a.dtype.is_float else a for a in args)
    return rebuild(node, args)


def _read_as(value: tuple[tuple[str, ...], Expr], axes: tuple[str, ...], called: bool) -> Expr:
    """Return a value laid out along its own axes as read along `axes`."""
    own, expr = value
    names = {o: a for o, a in zip(own, axes, strict=True) if o and a and o != a}
    fixed = [o for o, a in zip(own, axes, strict=True) if o and not a]
    if fixed:
        expr = access(expr, AccessMap(tuple((o, Index.const(0)) for o in fixed), ()))
    if set(names.values()) & (expr.axes - set(names)):
        raise UsageError(f"an intermediate over {sorted(expr.axes)} is read along {axes}; this is a defect, please report it")
    if called and names:
        extents = {a: expr.type.extents[o] for o, a in names.items()}
        return access(expr, AccessMap(tuple((o, Index.axis(a)) for o, a in names.items()), tuple(extents.items())))
    return rename(expr, names)
