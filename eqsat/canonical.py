"""Names that carry no meaning: one key for kernels that differ in names alone, one name for values that are the same.

Two kernels with one key share their measurements between plans, programs and runs. Two values that differ in names of bound
axes become one expression, and so one class of the e-graph.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

from eqsat.access import AccessMap, Index
from eqsat.ir import Expr, Program, rebuild
from eqsat.naming import relabel
from eqsat.ops import Kind

_Scope = tuple[tuple[str, int], ...]  # free axes that are bound further out, with their levels


def canonical_key(program: Program) -> str:
    """Return a SHA-256 that is equal for programs equal up to names of axes and inputs (and operand order of commutative ops)."""
    return Keys().of(program)


class Keys:
    """Canonical keys of many kernels that share subexpressions: what has no names in it is computed once."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, ...], dict[str, str]] = {}

    def of(self, program: Program) -> str:
        """Return a SHA-256 that is equal for programs equal up to names, see `canonical_key`."""
        layout = program.outputs[0].axes
        shapes = self._shapes.setdefault(layout, {})
        order = {a: i for i, a in enumerate(a for a in layout if a)}
        axes: dict[str, str] = {}
        inputs: dict[str, str] = {}
        lines: list[str] = []
        visited: dict[str, int] = {}
        extents: dict[str, int] = {}

        def axis(name: str) -> str:
            return axes.setdefault(name, f"a{len(axes)}") if name else "."

        def visit(e: Expr) -> int:
            if e.digest in visited:
                return visited[e.digest]
            args, kind = e.args, e.row.kind
            if e.row.commutative:
                args = tuple(sorted(args, key=lambda a: _shape(a, order, shapes)))
            if e.op == "read":
                name, read_axes = e.attrs
                attrs = f"{inputs.setdefault(name, f'b{len(inputs)}')} {' '.join(map(axis, read_axes))}"
            elif kind is Kind.ACCESS:
                mapping: AccessMap = e.attrs[0]
                by = {a: Index.axis(axis(a)) for a, _ in mapping.extents}
                entries = tuple((axis(a), x.substitute(by)) for a, x in mapping.entries)
                attrs = str(AccessMap(entries, tuple((axis(a), n) for a, n in mapping.extents)))
            elif kind is Kind.REDUCE or e.op == "iota":
                attrs = axis(e.attrs[0])
            else:
                attrs = " ".join(map(str, e.attrs))
            children = " ".join([str(visit(a)) for a in args])
            extents.update(e.type.axes)
            lines.append(f"{e.op} {attrs} ({children}) {e.dtype.value}")
            visited[e.digest] = len(lines) - 1
            return visited[e.digest]

        for out in program.outputs:
            root_layout = " ".join(map(axis, out.axes))
            root = visit(out.expr)
            lines.append(f"output {root} [{root_layout}] {out.dtype.value}")
        shapes_of = {i.name: f"{i.shape} {i.dtype.value}" for i in program.inputs}
        lines += [f"input {b} {shapes_of[name]}" for name, b in inputs.items()]
        lines.append(" ".join(sorted(f"{axis(a)}={n}" for a, n in extents.items())))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _shape(root: Expr, order: Mapping[str, int], known: dict[str, str]) -> str:
    """Digest a node without any names but the order of an output's axes: the sort key of commutative operands."""
    if root.digest in known:
        return known[root.digest]
    for e in root.walk():
        if e.digest in known:
            continue
        extents = sorted([n for _, n in e.type.axes])
        if e.op == "read":
            detail = str([order.get(a, -1) for a in e.attrs[1]])
        else:
            detail = str(e.attrs[0]) if e.op in ("const", "cast") and e.attrs else ""
        children = [known[a.digest] for a in e.args]
        if e.row.commutative:
            children.sort()
        known[e.digest] = hashlib.sha256(f"{e.op}{extents}{e.dtype.value}{detail}{children}".encode()).hexdigest()
    return known[root.digest]


def shared(program: Program) -> Program:
    """Return the program in which values that differ only in names of bound axes are one expression.

    Renamings of computed values (accesses that only name axes anew) are pushed down to what they read wherever that computes
    nothing twice.
    """
    nodes = Alpha()
    program = _with_one_name(program, nodes)
    for e in [e for e in program.walk() if _is_renaming(e)]:
        trial = _with_one_name(_pushed(program, e), nodes)
        if _reductions(trial) <= _reductions(program):
            program = trial
    return program


class Alpha:
    """Numbers for expressions, equal for those that differ only in names of bound axes."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[object, ...], int] = {}
        self._known: dict[tuple[str, _Scope], int] = {}

    def number(self, expr: Expr) -> int:
        """Return the number of an expression; its free axes count by name."""
        root = (expr, ())
        stack: list[tuple[Expr, _Scope]] = [root]
        while stack:  # no recursion: programs may be deep
            e, scope = stack[-1]
            if (e.digest, scope) not in self._known:
                below = self._below(e, dict(scope))
                if waiting := [(a, s) for a, s in below if (a.digest, s) not in self._known]:
                    stack.extend(waiting)
                    continue
                key = self._key(e, dict(scope), tuple(self._known[a.digest, s] for a, s in below))
                self._known[e.digest, scope] = self._numbers.setdefault(key, len(self._numbers))
            stack.pop()
        return self._known[expr.digest, ()]

    @staticmethod
    def _below(e: Expr, levels: dict[str, int]) -> list[tuple[Expr, _Scope]]:
        """Return each operand with the levels of those of its free axes that are bound further out."""
        if e.row.kind is Kind.REDUCE:
            levels = levels | {e.attrs[0]: len(levels)}
        elif e.row.kind is Kind.ACCESS:
            outer = len(levels)
            replaced = [a for a, _ in _entries(e, levels)]
            levels = {a: n for a, n in levels.items() if a not in replaced} | {a: outer + n for n, a in enumerate(replaced)}
        return [(a, tuple(sorted((x, n) for x, n in levels.items() if x in a.axes))) for a in e.args]

    @staticmethod
    def _key(e: Expr, levels: Mapping[str, int], operands: tuple[int, ...]) -> tuple[object, ...]:
        extents = e.type.extents
        named = {a: levels.get(a, a) for a in extents}
        typed = tuple(sorted((str(named[a]), n) for a, n in extents.items()))
        match e.row.kind:
            case Kind.REDUCE:
                detail: tuple[object, ...] = (e.args[0].type.extents[e.attrs[0]],)
            case Kind.ACCESS:
                detail = tuple(str(index) for _, index in _entries(e, levels))
            case _ if e.op == "read":
                detail = (e.attrs[0], *(named[a] if a else "" for a in e.attrs[1]))
            case _ if e.op == "iota":
                detail = (named[e.attrs[0]],)
            case _:
                detail = tuple(repr(a) for a in e.attrs)
        return e.op, str(e.dtype), typed, detail, operands


def _entries(e: Expr, levels: Mapping[str, int]) -> list[tuple[str, Index]]:
    """Return an access's entries, bound axes in the indices written by level, in an order that depends on no bound name."""
    by = {a: Index.axis(f"#{n}") for a, n in levels.items()}
    entries = [(a, index.substitute(by)) for a, index in e.attrs[0].entries]
    return sorted(entries, key=lambda entry: (str(entry[1]), e.args[0].type.extents[entry[0]]))


def _with_one_name(program: Program, nodes: Alpha) -> Program:
    """Replace each value by the first one of its number."""
    first: dict[int, Expr] = {}
    memo: dict[str, Expr] = {}
    for e in program.walk():
        made = rebuild(e, tuple(memo[a.digest] for a in e.args))
        memo[e.digest] = first.setdefault(nodes.number(e), made)
    return Program(program.inputs, tuple(dataclasses.replace(o, expr=memo[o.expr.digest]) for o in program.outputs))


def _is_renaming(e: Expr) -> bool:
    """Whether `e` only names axes of a computed value anew, by names that are not among that value's free ones."""
    if e.row.kind is not Kind.ACCESS:
        return False
    mapping: AccessMap = e.attrs[0]
    to = [index.name for _, index in mapping.entries if index.op == "axis"]
    old, new = e.args[0].type.extents, dict(mapping.extents)
    return (
        len(set(to)) == len(mapping.entries)
        and all(new[b] == old[a] for (a, _), b in zip(mapping.entries, to, strict=True))
        and not set(to) & old.keys()
    )


def _pushed(program: Program, renaming: Expr) -> Program:
    """Return the program with an access that only renames done away with: its operand is written under the new names.

    Axes bound in the operand that would meet a new name are called otherwise, so that sums can still move past each other.
    """
    (inner,) = renaming.args
    names = {a: index.name for a, index in renaming.attrs[0].entries}
    used = {a for e in inner.walk() for a in e.axes}
    by = {a: names.get(a, a) for a in used}
    for a in sorted(used & set(names.values())):
        by[a] = next(name for n in range(len(used) + 1) if (name := f"{a}_{n}") not in used)
    made = relabel(inner, by)
    memo: dict[str, Expr] = {}
    for e in program.walk():
        memo[e.digest] = made if e.digest == renaming.digest else rebuild(e, tuple(memo[a.digest] for a in e.args))
    return Program(program.inputs, tuple(dataclasses.replace(o, expr=memo[o.expr.digest]) for o in program.outputs))


def _reductions(program: Program) -> int:
    return sum(e.row.kind is Kind.REDUCE for e in program.walk())
