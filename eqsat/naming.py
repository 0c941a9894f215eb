"""From positional graphs to named axes: dimensions that are aligned anywhere become one axis.

Every dimension of every node gets an axis class; broadcasting and contraction join classes. Two classes that occur in one
value must stay apart (the rows and columns of x in `x @ x.T`): there the operand is read under other names, by renaming it
when that costs nothing, by an access of the computed value otherwise. Names are letters in order of first appearance, so
equal programs get equal names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from eqsat import ir, settle, views
from eqsat.access import AccessMap, Index
from eqsat.array import Array, is_pointwise, is_reduction, walk
from eqsat.ir import Expr, Input, Output, Program
from eqsat.ops import Kind
from eqsat.types import DType

Dims = tuple[int | None, ...]  # the axis class of each dimension; None where the value does not vary


def name_axes(inputs: tuple[Input, ...], outputs: Sequence[tuple[str, Array]]) -> Program:
    """Return the program over named axes that computes `outputs`."""
    settled = settle.settle([array for _, array in outputs])
    graph = _Graph(settled)
    out = []
    for (name, _), array in zip(outputs, settled, strict=True):
        expr, axes = graph.output(array)
        out.append(Output(name, expr, axes, array.dtype))
    return canonical(Program(inputs, tuple(out)))


@dataclass(slots=True)
class _Classes:
    """Axis classes: a union-find that knows in which values each class is mentioned, free or bound."""

    parent: list[int] = field(default_factory=list)
    extent: list[int] = field(default_factory=list)
    homes: list[set[int]] = field(default_factory=list)
    values: int = 0

    def new(self, extent: int) -> int:
        self.parent.append(len(self.parent))
        self.extent.append(extent)
        self.homes.append(set())
        return len(self.parent) - 1

    def find(self, a: int) -> int:
        while self.parent[a] != a:
            self.parent[a] = a = self.parent[self.parent[a]]
        return a

    def roots(self, classes: Iterable[int | None]) -> set[int]:
        return {self.find(c) for c in classes if c is not None}

    def register(self, mentioned: Iterable[int]) -> None:
        """Note a value that mentions these classes: from now on they stay apart."""
        for c in self.roots(mentioned):
            self.homes[c].add(self.values)
        self.values += 1

    def clash(self, a: int, b: int) -> bool:
        a, b = self.find(a), self.find(b)
        return a != b and not self.homes[a].isdisjoint(self.homes[b])

    def merge(self, a: int, b: int) -> None:
        a, b = sorted((self.find(a), self.find(b)))
        if a != b:
            self.parent[b] = a
            self.homes[a] |= self.homes[b]


class _Graph:
    """The axis classes of a settled graph, and the expressions that follow from them."""

    def __init__(self, outputs: Sequence[Array]) -> None:
        self.nodes = walk(outputs)
        self.classes = _Classes()
        self.dims: dict[str, Dims] = {}
        self.mentions: dict[str, set[int]] = {}
        self.renames: dict[tuple[str, int], dict[int, int]] = {}  # (user, operand) -> its class -> the class asked for
        self.copied: set[tuple[str, int]] = set()  # the renames that are pushed down to the reads
        self.exprs: dict[str, Expr] = {}
        self.users: dict[str, list[Array]] = {}
        self.reducing: set[str] = set()  # nodes with a reduction in them
        for node in self.nodes:
            for a in node.args:
                self.users.setdefault(a.digest, []).append(node)
            if is_reduction(node) or any(a.digest in self.reducing for a in node.args):
                self.reducing.add(node.digest)
        for out in outputs:  # an output has a user outside: nothing may be moved away from it
            self.users.setdefault(out.digest, []).append(out)
        for node in self.nodes:
            self._assign(node)
        self._share_bound({c for out in outputs for c in self.dims[out.digest] if c is not None})
        for node in self.nodes:
            self.exprs[node.digest] = self._express(node)

    # Classes

    def _assign(self, node: Array) -> None:
        inner: Dims = self.dims[node.args[0].digest] if node.args else ()
        mentioned: set[int] = set().union(*(self.mentions[a.digest] for a in node.args))
        if node.op == "view":
            dims = self._view_dims(node, inner)
            if node.args[0].op == "input" and not settle.is_rearrangement(node):
                mentioned = set()  # the access replaces the input's own axes: they are not seen outside
        elif is_reduction(node):
            dims = tuple(c for d, c in enumerate(inner) if d not in node.params[0])
        elif is_pointwise(node):
            dims, mentioned = self._align(node)
        else:
            dims = tuple(self.classes.new(n) if n > 1 else None for n in node.shape)
        self.dims[node.digest] = dims
        self.mentions[node.digest] = mentioned | {c for c in dims if c is not None}
        self.classes.register(self.mentions[node.digest])

    def _view_dims(self, node: Array, inner: Dims) -> Dims:
        entries, _ = node.params
        through = {d: s for s, d in views.passing(entries, node.shape, node.args[0].shape).items()}
        used = {name for e, c in zip(entries, inner, strict=True) if c is not None for name in e.axes}
        out: list[int | None] = []
        for d, n in enumerate(node.shape):
            if d in through:
                out.append(inner[through[d]])
            else:
                out.append(self.classes.new(n) if views.axis_name(d) in used and n > 1 else None)
        return tuple(out)

    def _align(self, node: Array) -> tuple[Dims, set[int]]:
        """Join the operands' classes dimension by dimension; operands that are dear to rename come first and stay."""
        alone = sum(a.size > 1 for a in node.args) < 2
        weights = [0 if alone else self._weight(node, i) for i in range(len(node.args))]
        out: list[int | None] = [None] * node.ndim
        mentioned: set[int] = set()
        for i in sorted(range(len(node.args)), key=lambda i: -weights[i]):
            arg = node.args[i]
            dims = list(enumerate(self.dims[arg.digest], node.ndim - arg.ndim))
            renames = self._join(out, [(d, c) for d, c in dims if c is not None], mentioned)
            seen = self.mentions[arg.digest]
            if renames:
                self.renames[node.digest, i] = renames
                if weights[i] < 2:
                    self.copied.add((node.digest, i))
                    gone = self.classes.roots(renames)
                    seen = {c for c in seen if self.classes.find(c) not in gone}
                seen = seen | set(renames.values())
                self.classes.register(seen)
            mentioned |= seen
        return tuple(out), mentioned

    def _join(self, out: list[int | None], wanted: list[tuple[int, int]], mentioned: set[int]) -> dict[int, int]:
        """Fit an operand's (dimension, class) pairs to `out`; return the renames that its reading needs."""
        classes = self.classes
        renames: dict[int, int] = {}
        adopted: list[tuple[int, int]] = []
        for d, c in wanted:
            have = out[d]
            elsewhere = classes.roots(x for e, x in enumerate(out) if e != d)
            if have is None:
                if classes.find(c) in elsewhere:
                    out[d] = renames[c] = classes.new(classes.extent[c])
                else:
                    out[d] = c
                    adopted.append((d, c))
            elif classes.find(have) != classes.find(c):
                if classes.clash(have, c) or classes.find(c) in elsewhere:
                    renames[c] = have
                else:
                    classes.merge(have, c)
        if renames:  # it is read apart anyway: keep its other axes clear of those bound inside the other operands
            for d, c in adopted:
                if classes.find(c) in classes.roots(mentioned):
                    out[d] = renames[c] = classes.new(classes.extent[c])
        return renames

    def _weight(self, user: Array, position: int) -> int:
        """Return what reading an operand under other names costs: 0 no reduction inside, 1 none that others use, 2 a copy."""
        arg = user.args[position]
        if arg.digest not in self.reducing:
            return 0
        inside = [n for n in walk([arg]) if n.digest in self.reducing]
        own: set[str] = set()
        for n in reversed(inside):
            users = self.users[n.digest]
            if n is arg:
                if len(users) == 1:
                    own.add(n.digest)
            elif all(u.digest in own for u in users):
                own.add(n.digest)
        return 1 if all(n.digest in own for n in inside if is_reduction(n)) else 2

    def _share_bound(self, shown: set[int]) -> None:
        """Join the bound axes of reductions that stand side by side: Σ_j x + Σ_k y becomes Σ_j x + Σ_j y.

        Two classes stay apart if one is free in a value that mentions the other: the reductions are nested there, and with one
        name for both, products could not move across.
        """
        find = self.classes.find
        bound: list[int] = []
        for node in self.nodes:
            if is_reduction(node):
                bound += [c for d in node.params[0] if (c := self.dims[node.args[0].digest][d]) is not None]
        roots = list(dict.fromkeys(find(c) for c in bound if find(c) not in self.classes.roots(shown)))
        seen, free = self._occurrences()
        for i, a in enumerate(roots):
            for b in roots[i + 1 :]:
                if find(a) != a or find(b) != b or self.classes.extent[a] != self.classes.extent[b]:
                    continue
                if not (free[a] & seen[b] or free[b] & seen[a]):
                    self.classes.merge(a, b)
                    kept, gone = (a, b) if find(b) == a else (b, a)
                    seen[kept] |= seen[gone]
                    free[kept] |= free[gone]

    def _occurrences(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return for each class the values that mention it and those in which it is free, as bits."""
        rows = [(self.mentions[n.digest], self.dims[n.digest]) for n in self.nodes]
        rows += [(self.mentions[user], tuple(r.values())) for (user, _), r in self.renames.items()]
        seen: dict[int, int] = {}
        free: dict[int, int] = {}
        for bit, (mentioned, dims) in enumerate(rows):
            for table, classes in ((seen, mentioned), (free, dims)):
                for c in self.classes.roots(classes):
                    table[c] = table.get(c, 0) | 1 << bit
        return seen, free

    # Expressions

    def _name(self, c: int) -> str:
        return f"axis{self.classes.find(c)}"

    def _express(self, node: Array) -> Expr:
        dims = self.dims[node.digest]
        if node.op == "input":
            names = tuple("" if c is None else self._name(c) for c in dims)
            return ir.read(node.params[0], names, node.shape, node.dtype)
        if node.op == "const":
            return ir.const(node.params[0], node.dtype)
        if node.op == "iota":
            return ir.const(0, node.dtype) if dims[0] is None else ir.iota(self._name(dims[0]), node.shape[0], node.dtype)
        if node.op == "view":
            return self._express_view(node)
        if is_reduction(node):
            out = self.exprs[node.args[0].digest]
            over = [self.dims[node.args[0].digest][d] for d in node.params[0]]
            for c in reversed(over):
                if c is not None:  # a unit dimension, or one that settle() has accounted for
                    out = ir.reduce(node.op, self._name(c), out)
            return out
        args = tuple(self._operand(node, i) for i in range(len(node.args)))
        return ir.apply(node.op, *args, dtype=node.dtype if node.op == "cast" else None)

    def _operand(self, user: Array, position: int) -> Expr:
        expr = self.exprs[user.args[position].digest]
        renames = self.renames.get((user.digest, position), {})
        by = {self._name(a): self._name(b) for a, b in renames.items() if self._name(a) != self._name(b)}
        if not by:
            return expr
        if (user.digest, position) in self.copied:
            return ir.rename(expr, by)
        extents = tuple((b, expr.type.extents[a]) for a, b in by.items())
        return ir.access(expr, AccessMap(tuple((a, Index.axis(b)) for a, b in by.items()), extents))

    def _express_view(self, node: Array) -> Expr:
        (x,), (entries, _) = node.args, node.params
        inner, dims = self.dims[x.digest], self.dims[node.digest]
        through = views.passing(entries, node.shape, x.shape)
        names = {views.axis_name(d): Index.axis(self._name(c)) for d, c in enumerate(dims) if c is not None}
        mapping: list[tuple[str, Index]] = []
        for s, (entry, c) in enumerate(zip(entries, inner, strict=True)):
            if c is not None and s not in through:
                mapping.append((self._name(c), entry.substitute(names)))
        expr = self.exprs[x.digest]
        if not mapping:
            return expr
        used = {a for _, index in mapping for a in index.axes}
        extents = tuple(
            (self._name(c), n) for c, n in zip(dims, node.shape, strict=True) if c is not None and self._name(c) in used
        )
        return ir.access(expr, AccessMap(tuple(mapping), extents))

    def output(self, array: Array) -> tuple[Expr, tuple[str, ...]]:
        """Return the expression of an output and its axis names; a broadcast dimension gets an axis of its own."""
        expr, axes = self.exprs[array.digest], []
        for c, n in zip(self.dims[array.digest], array.shape, strict=True):
            if c is not None:
                axes.append(self._name(c))
            elif n == 1:
                axes.append("")
            else:
                axes.append(self._name(self.classes.new(n)))
                outside = ir.apply("lt", ir.iota(axes[-1], n), ir.const(0, DType.I64))  # nowhere: it only brings the axis in
                expr = ir.apply("where", outside, ir.const(0, expr.dtype), expr)
        return expr, tuple(axes)


LETTERS = "ijklmnopqrstuvwxyzabcdefgh"


def canonical(program: Program) -> Program:
    """Return the program with its axes named i, j, k, … in order of first appearance: outputs, inputs, then the rest."""
    names = canonical_names(program)
    memo: dict[str, Expr] = {}
    outputs = tuple(
        Output(out.name, relabel(out.expr, names, memo), tuple(names.get(a, "") for a in out.axes), out.dtype, out.joined)
        for out in program.outputs
    )
    return Program(program.inputs, outputs)


def canonical_names(program: Program) -> dict[str, str]:
    """Return the names that `canonical` gives to the axes of `program`."""
    nodes = list(program.walk())
    order: dict[str, None] = {}
    for out in program.outputs:
        order.update(dict.fromkeys(a for a in out.axes if a))
    reads: dict[str, dict[str, None]] = {source.name: {} for source in program.inputs}
    for e in nodes:
        if e.op == "read":
            reads[e.attrs[0]].update(dict.fromkeys(a for a in e.attrs[1] if a))
    for axes in reads.values():
        order.update(axes)
    for e in nodes:
        order.update(dict.fromkeys(a for a, _ in e.type.axes))
    return {a: LETTERS[i % 26] + (str(i // 26) if i >= 26 else "") for i, a in enumerate(order)}


def relabel(expr: Expr, names: Mapping[str, str], memo: dict[str, Expr] | None = None) -> Expr:
    """Rename all axes of `expr`, bound ones included, by a one-to-one map."""
    memo = {} if memo is None else memo
    for e in expr.walk():
        if e.digest in memo:
            continue
        args = tuple(memo[a.digest] for a in e.args)
        if e.op == "read":
            shape = tuple(e.type.extents[a] if a else 1 for a in e.attrs[1])
            memo[e.digest] = ir.read(e.attrs[0], tuple(names[a] if a else "" for a in e.attrs[1]), shape, e.dtype)
        elif e.op == "iota":
            memo[e.digest] = ir.iota(names[e.attrs[0]], e.type.axes[0][1], e.dtype)
        elif e.op == "const":
            memo[e.digest] = e
        elif e.row.kind is Kind.REDUCE:
            memo[e.digest] = ir.reduce(e.op, names[e.attrs[0]], args[0])
        elif e.row.kind is Kind.ACCESS:
            mapping: AccessMap = e.attrs[0]
            to = {a: Index.axis(b) for a, b in names.items()}
            entries = tuple((names[a], index.substitute(to)) for a, index in mapping.entries)
            memo[e.digest] = ir.access(args[0], AccessMap(entries, tuple((names[a], n) for a, n in mapping.extents)))
        else:
            memo[e.digest] = ir.apply(e.op, *args, dtype=e.dtype if e.op == "cast" else None)
    return memo[expr.digest]
