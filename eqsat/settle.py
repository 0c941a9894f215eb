"""Moving re-indexing towards the inputs, where it costs nothing: a slice of a sum becomes a sum over a slice of an input.

What stays on a computed value (a reshape that would recompute a reduction) has to be materialised by the plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from eqsat import views
from eqsat.access import Index
from eqsat.array import Array, broadcast_to, cast, constant, is_pointwise, is_reduction, pointwise, view, walk
from eqsat.ops import OPS
from eqsat.types import DType
from eqsat.views import Entries, Fill, Shape


def settle(outputs: Sequence[Array]) -> list[Array]:
    """Return the outputs with every view moved as far towards the inputs as is free.

    Pointwise operations let every view pass. A reduction lets its views pass when nothing but views reads it, they do not ask
    for more elements than it has, and no reduction below would be asked for more.
    """
    current = _rewrite(outputs, _settle_node)
    while ready := _open_reductions(current):
        current = _rewrite(
            current, lambda node: _into_reduction(node) if node.op == "view" and node.args[0].digest in ready else node
        )
        current = _rewrite(current, _settle_node)
    return current


def is_rearrangement(v: Array) -> bool:
    """Whether a view only permutes, drops unit dimensions or broadcasts: over named axes it is nothing at all."""
    entries, _ = v.params
    through = views.passing(entries, v.shape, v.args[0].shape)
    return all(s in through or (n == 1 and entries[s] == Index.const(0)) for s, n in enumerate(v.args[0].shape))


def _rewrite(outputs: Sequence[Array], step: Callable[[Array], Array]) -> list[Array]:
    """Rebuild the graph from the leaves up, each node through `step`."""
    new: dict[str, Array] = {}
    for node in walk(outputs):
        args = tuple(new[a.digest] for a in node.args)
        if any(a is not b for a, b in zip(args, node.args, strict=True)):
            node_with = (
                view(args[0], node.params[0], node.shape, node.params[1]) if node.op == "view" else replace(node, args=args)
            )
        else:
            node_with = node
        new[node.digest] = step(node_with)
    return [new[out.digest] for out in outputs]


def _settle_node(node: Array) -> Array:
    if node.op == "view":
        return _push(node)
    return _thin_reduction(node) if is_reduction(node) else node


def _push(v: Array) -> Array:
    """Move a view below the pointwise operations, constants and positions that it reads."""
    done: dict[str, Array] = {}
    stack = [v]
    while stack:  # no recursion: programs may be deep, and shared parts are moved once
        top = stack[-1]
        parts = _below(top)
        waiting = [p for p in parts if p.digest not in done]
        if waiting:
            stack.extend(waiting)
        else:
            done[stack.pop().digest] = _pushed(top, [done[p.digest] for p in parts])
    return done[v.digest]


def _below(v: Array) -> list[Array]:
    """Return the views that stand for `v` one level down; nothing if it stays where it is."""
    if v.op != "view" or is_rearrangement(v):
        return []
    (x,), (entries, fill) = v.args, v.params
    if is_pointwise(x):
        below: Fill = "zero" if fill == "zero" and _keeps_zero(x) else "any"
        return [_viewed_operand(a, x, entries, v.shape, below) for a in x.args]
    on_unit = fill == "zero" and any(n == 1 and e != Index.const(0) for e, n in zip(entries, x.shape, strict=True))
    if x.op == "view" or on_unit:  # views that do not compose, or a pad of a dimension without an axis: say where 0 is read
        return [view(x, entries, v.shape, "any")]
    return []


def _pushed(v: Array, parts: list[Array]) -> Array:
    """Return what `v` becomes, given what the views one level down became."""
    if v.op != "view" or is_rearrangement(v):
        return v
    (x,), (entries, _) = v.args, v.params
    if is_pointwise(x):
        shape = views.broadcast_shapes([p.shape for p in parts], x.op)
        value = broadcast_to(Array(x.op, tuple(parts), x.params, shape, x.dtype), v.shape)
        return value if _keeps_zero(x) else _masked(v, value)
    if parts:
        return _masked(v, parts[0])
    if x.op == "const":
        return _masked(v, broadcast_to(x, v.shape))
    if x.op == "iota":
        return _masked(v, broadcast_to(index_value(entries[0], v.shape), v.shape))
    return v


def _operand_entries(operand: Array, node: Array, entries: Entries) -> Entries:
    """Return the part of `entries` (for `node`) that concerns an operand, aligned at the last dimension."""
    part = entries[node.ndim - operand.ndim :]
    return tuple(Index.const(0) if n == 1 else e for e, n in zip(part, operand.shape, strict=True))


def _keeps_zero(node: Array) -> bool:
    """Whether a pointwise operation on constants and operands of its own shape makes 0 of zeros: then no view of it needs a mask."""
    if not node.dtype.is_float or any(a.op != "const" and a.shape != node.shape for a in node.args):
        return False
    if node.op == "cast":
        return True
    values = [np.float64(a.params[0] if a.op == "const" else 0.0) for a in node.args]
    with np.errstate(all="ignore"):
        return bool(OPS[node.op].evaluate(np, *values) == 0)


def _viewed_operand(operand: Array, node: Array, entries: Entries, shape: Shape, fill: Fill) -> Array:
    """Return an operand under the view of the whole, without the dimensions along which it does not vary."""
    part = _operand_entries(operand, node, entries)
    used = {int(name[1:]) for e in part for name in e.axes}
    return view(operand, part, tuple(n if d in used else 1 for d, n in enumerate(shape)), fill)


def _masked(v: Array, value: Array) -> Array:
    """Return `value` with 0 where the view `v` leaves its source (nothing to do if nobody looks there)."""
    (x,), (entries, fill) = v.args, v.params
    if fill == "any":
        return value
    mask: Array | None = None
    for entry, extent in zip(entries, x.shape, strict=True):
        low, high = entry.bounds(views.box(v.shape))
        position = index_value(entry, v.shape)
        for test in ([pointwise("le", 0, position)] if low < 0 else []) + ([position < extent] if high >= extent else []):
            mask = test if mask is None else mask & test
    return value if mask is None else broadcast_to(pointwise("where", mask, value, constant(0, v.dtype)), v.shape)


def index_value(index: Index, shape: Shape) -> Array:
    """Return the value of an index expression at every position of `shape`, as i64."""
    match index.op:
        case "axis":
            d = int(index.name[1:])
            return Array("iota", (), (), (shape[d],), DType.I64).reshape([n if e == d else 1 for e, n in enumerate(shape)])
        case "const":
            return broadcast_to(constant(index.value, DType.I64), (1,) * len(shape))
        case "add":
            return index_value(index.args[0], shape) + index_value(index.args[1], shape)
        case "mul":
            return index_value(index.args[0], shape) * index.value
        case _:  # exact: positions stay far below 2**53
            inner = index_value(index.args[0], shape)
            whole = cast(pointwise("floor", cast(inner, DType.F64) / index.value), DType.I64)
            return whole if index.op == "div" else inner - whole * index.value


def varying(x: Array, memo: dict[str, tuple[bool, ...]] | None = None) -> tuple[bool, ...]:
    """Return for each dimension whether the values can differ along it (not so where they were broadcast)."""
    memo = {} if memo is None else memo
    for node in walk([x]):
        if node.digest not in memo:
            memo[node.digest] = _varying_node(node, memo)
    return memo[x.digest]


def _varying_node(node: Array, memo: dict[str, tuple[bool, ...]]) -> tuple[bool, ...]:
    if node.op == "view":
        inner = memo[node.args[0].digest]
        used = {name for e, varies in zip(node.params[0], inner, strict=True) if varies for name in e.axes}
        return tuple(views.axis_name(d) in used for d in range(node.ndim))
    if is_reduction(node):
        return tuple(v for d, v in enumerate(memo[node.args[0].digest]) if d not in node.params[0])
    if is_pointwise(node):
        rows = [(False,) * (node.ndim - a.ndim) + memo[a.digest] for a in node.args]
        return tuple(any(column) for column in zip(*rows, strict=True)) if node.ndim else ()
    return tuple(n > 1 for n in node.shape)


def _thin_reduction(node: Array) -> Array:
    """Reduce only along dimensions in which the operand varies; the others count: Σ_i x = n·x."""
    (x,), (dims,) = node.args, node.params
    varies = varying(x)
    if all(v or n == 1 for v, n in zip(varies, x.shape, strict=True)):
        return node
    thin = view(x, tuple(views.dim(d) if v else Index.const(0) for d, v in enumerate(varies)), _narrowed(x.shape, varies))
    real = tuple(d for d in dims if varies[d])
    kept = tuple(d for d in range(x.ndim) if d not in real)
    out = _push(thin)
    if real:
        out = Array(node.op, (out,), (real,), tuple(out.shape[d] for d in kept), node.dtype)
    elif node.op in ("argmax", "argmin"):
        out = broadcast_to(constant(0, node.dtype), out.shape)
    else:
        out = cast(out, node.dtype)
    count = math.prod(x.shape[d] for d in dims if d not in real)
    if count > 1 and node.op == "sum":
        out = out * count
    elif count > 1 and node.op == "prod":
        out = cast(pointwise("pow", out, count), node.dtype)
    return broadcast_to(out.reshape([n for d, n in zip(kept, out.shape, strict=True) if d not in dims]), node.shape)


def _narrowed(shape: Shape, keep: Sequence[bool]) -> Shape:
    return tuple(n if k else 1 for n, k in zip(shape, keep, strict=True))


def _open_reductions(outputs: Sequence[Array]) -> set[str]:
    """Return the digests of the reductions that may let the views on them pass."""
    users: dict[str, list[Array]] = {}
    nodes = walk(outputs)
    for node in nodes:
        for a in node.args:
            users.setdefault(a.digest, []).append(node)
    final = {out.digest for out in outputs}
    return {n.digest for n in nodes if is_reduction(n) and n.digest not in final and _lets_pass(n, users.get(n.digest, []))}


def _lets_pass(node: Array, users: Sequence[Array]) -> bool:
    if not users or any(u.op != "view" or is_rearrangement(u) for u in users):
        return False
    if sum(u.size for u in users) > node.size:
        return False
    return not any(_recomputes(node.args[0], *_entries_below(node, u)) for u in users)


def _entries_below(node: Array, v: Array) -> tuple[Entries, Shape]:
    """Return the view of a reduction's operand that stands for the view `v` of the reduction."""
    (x,), (dims,), entries = node.args, node.params, list(v.params[0])
    shape = (*v.shape, *(x.shape[d] for d in dims))
    extra = {d: views.dim(v.ndim + j) for j, d in enumerate(dims)}
    return tuple(extra[d] if d in extra else entries.pop(0) for d in range(x.ndim)), shape


def _recomputes(x: Array, entries: Entries, shape: Shape) -> bool:
    """Whether a reduction below would be evaluated at more positions than it has elements."""
    seen: set[tuple[str, Entries]] = set()
    stack = [(x, entries)]
    while stack:
        node, part = stack.pop()
        if (node.digest, part) in seen:
            continue
        seen.add((node.digest, part))
        if node.op == "view":
            by = {views.axis_name(d): e for d, e in enumerate(part)}
            stack.append((node.args[0], views.simplify(tuple(e.substitute(by) for e in node.params[0]), shape)))
        elif is_pointwise(node):
            stack.extend((a, _operand_entries(a, node, part)) for a in node.args)
        elif is_reduction(node):
            used = {int(name[1:]) for e in part for name in e.axes}
            if math.prod(shape[d] for d in used) > node.size:
                return True
    return False


def _into_reduction(v: Array) -> Array:
    """Turn a view of a reduction into a reduction of a view."""
    (node,) = v.args
    entries, shape = _entries_below(node, v)
    inner = view(node.args[0], entries, shape, "any")
    return _masked(v, Array(node.op, (inner,), (tuple(range(v.ndim, len(shape))),), v.shape, node.dtype))
