"""Axes that a program takes apart wherever it matters become several axes; the output's dimension then goes over all of them.

A reshape of an intermediate, norms over groups of channels, and heads that share keys leave indices such as j // 10 in the
program, and no kernel computes its statistics along j // 10. With j = 10·m + n these indices are axes again, and buffers stay
as they are: the same bytes in the same order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

from eqsat.access import AccessMap, Index
from eqsat.ir import Expr, Output, Program, access, apply, const, iota, rebuild
from eqsat.ops import Kind

_ROUNDS = 8  # axes taken apart in one program


def refined(program: Program) -> Program:
    """Return the program with the free axes split by which it divides, wherever fewer divisions are left.

    Examples
    --------
    >>> from eqsat.trace import tensor, to_program
    >>> x = tensor("x", (4, 6))
    >>> from eqsat.numpy_like import broadcast_to
    >>> y = x - broadcast_to(x.reshape(4, 2, 3).sum(2, keepdims=True), (4, 2, 3)).reshape(4, 6)
    >>> refined(to_program(y)).outputs[0].dimensions
    (('i',), ('k', 'l'))
    """
    for _ in range(_ROUNDS):
        found = next((p for p in _splits(program) if _divisions(p) < _divisions(program)), None)
        if found is None:
            break
        program = found
    return program


def _splits(program: Program) -> Iterator[Program]:
    """Yield the program with one free axis split by one number that divides it."""
    extents = program.extents
    for axis in dict.fromkeys(a for o in program.outputs for a in o.axes if a):
        numbers = {d for e in program.walk() if e.op == "access" for _, x in e.attrs[0].entries for d in _divisors(x, axis)}
        for d in sorted(numbers):
            if 1 < d < extents[axis] and extents[axis] % d == 0:
                yield _split(program, axis, d)


def _divisors(index: Index, axis: str) -> Iterator[int]:
    if index.op in ("div", "mod") and axis in index.axes:
        yield index.value
    for part in index.args:
        yield from _divisors(part, axis)


def _divisions(program: Program) -> int:
    """Count the divisions and remainders in the indices of a program."""
    return sum(_count(x) for e in program.walk() if e.op == "access" for _, x in e.attrs[0].entries)


def _count(index: Index) -> int:
    return (index.op in ("div", "mod")) + sum(map(_count, index.args))


def _split(program: Program, axis: str, inner: int) -> Program:
    """Return the program with `axis` written as inner·outer axis + inner axis."""
    extents = program.extents
    whole = Index.axis(axis)
    outer = extents[axis] // inner
    first = _name(program, axis, whole // inner, outer, lambda a: Index.axis(a) * inner)
    parts = (first, _name(program, axis, whole % inner, inner, lambda a: Index.axis(first) * inner + Index.axis(a)))
    new = dict(zip(parts, (outer, inner), strict=True))
    position = Index.axis(parts[0]) * inner + Index.axis(parts[1])
    memo: dict[str, Expr] = {}
    outputs = []
    for o in program.outputs:
        if axis not in o.axes:
            outputs.append(o)
            continue
        dimensions = [tuple(b for a in d for b in (parts if a == axis else (a,))) for d in o.dimensions]
        axes = tuple(a for d in dimensions for a in d)
        outputs.append(Output(o.name, _replaced(o.expr, axis, position, new, memo), axes, o.dtype, tuple(map(len, dimensions))))
    return Program(program.inputs, tuple(outputs))


def _name(program: Program, axis: str, part: Index, extent: int, position: Callable[[str], Index]) -> str:
    """Return a name for a part of an axis: what the program calls it elsewhere, if no other axis beside it is called so.

    That is what it is called where it is read by `part` of the axis, or where an axis is read at the `position` of the parts.
    """
    around = {a for o in program.outputs for a in o.axes}
    around |= {a for e in program.walk() if axis in e.axes for a in (*e.axes, *(e.attrs if e.row.kind is Kind.REDUCE else ()))}
    called = [
        a
        for e in program.walk()
        if e.op == "access"
        for a, x in e.attrs[0].entries
        if x == part and e.args[0].type.extents[a] == extent
    ]
    called += [
        a
        for e in program.walk()
        if e.op == "access"
        for _, x in e.attrs[0].entries
        for a, n in e.attrs[0].extents
        if n == extent and x == position(a)
    ]
    fresh = (f"{axis}_{part.op}{i or ''}" for i in itertools.count())
    taken = set(program.extents)
    return next((a for a in called if a not in around), None) or next(a for a in fresh if a not in taken)


def _replaced(root: Expr, axis: str, position: Index, new: Mapping[str, int], memo: dict[str, Expr]) -> Expr:
    """Return an expression with its free `axis` at `position`, an index over the `new` axes; pushed down to reads and accesses."""
    stack = [root]
    while stack:  # no recursion: programs may be deep
        e = stack[-1]
        if e.digest in memo:
            stack.pop()
            continue
        if axis not in e.axes:
            memo[e.digest] = e
            continue
        if waiting := [a for a in _open(e, axis) if a.digest not in memo]:
            stack.extend(waiting)
            continue
        memo[e.digest] = _moved(e, axis, position, new, memo)
    return memo[root.digest]


def _open(e: Expr, axis: str) -> tuple[Expr, ...]:
    """Return the operands in which `axis` means what it means in `e`."""
    if e.row.kind is Kind.ACCESS and axis in {a for a, _ in e.attrs[0].entries}:
        return ()
    return tuple(a for a in e.args if axis in a.axes)


def _moved(e: Expr, axis: str, position: Index, new: Mapping[str, int], memo: Mapping[str, Expr]) -> Expr:
    if e.op == "read":
        return access(e, AccessMap(((axis, position),), tuple(new.items())))
    if e.op == "iota":
        outer, inner = (iota(a, n, e.dtype) for a, n in new.items())
        return apply("add", apply("mul", outer, const(inner.type.axes[0][1], e.dtype)), inner)
    if e.row.kind is not Kind.ACCESS:
        return rebuild(e, tuple(memo[a.digest] if axis in a.axes else a for a in e.args))
    mapping: AccessMap = e.attrs[0]
    (arg,) = e.args
    hidden = axis in {a for a, _ in mapping.entries}
    arg = arg if hidden or axis not in arg.axes else memo[arg.digest]
    around = {**e.type.extents, **new}
    entries = tuple((a, x.substitute({axis: position}).simplify(around)) for a, x in mapping.entries)
    known = {**dict(mapping.extents), **new}
    entries = tuple((a, x) for a, x in entries if x != Index.axis(a) or arg.type.extents[a] != known[a])
    if not entries:
        return arg
    used = frozenset().union(*(x.axes for _, x in entries))
    return access(arg, AccessMap(entries, tuple((a, known[a]) for a in sorted(used))))
