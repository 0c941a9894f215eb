"""Enumerate the fused regions that may be one launch: cuts of the frozen e-graph, bottom-up as in technology mapping.

A cut computes a class out of loads (program inputs and materialised classes). Pointwise nodes are inlined freely;
reductions and contractions enter through the anchors that the lowering rules made. E-classes already quotient by
commutativity and associativity, so cuts are told apart by what they load and what anchors them, not by their spelling.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eqsat.buffers import buffers
from eqsat.cut import Anchors, Cut, Form, Load, Mode, join
from eqsat.frozen import Frozen, Node
from eqsat.groupings import Groupings, one_order
from eqsat.ops import BY_CONSTRUCTOR, Kind, Op
from eqsat.prices import OPERATIONS, Prices


@dataclass(slots=True)
class CutLimits:
    """The stated space: at most `loads` buffers a kernel, and at most `per_class` regions a class of each family.

    In a graph of many classes, fewer: some `total` altogether, but always the `least` best ones of a class. After so many
    `combinations` of parts have been looked at, no more than half of `least`: the enumeration ends in time.
    """

    loads: int = 8
    per_class: int = 48
    contractions: int = 3
    total: int = 5_000
    least: int = 8
    combinations: int = 600_000

    def regions(self, classes: int) -> int:
        """Return how many regions of a class are kept in a graph of so many classes."""
        return min(self.per_class, max(self.least, self.total // max(1, classes)))


class _Entry(NamedTuple):
    """A cut in the table of its class: its kind (mode and anchors, numbered), when it was added, and the op at its root."""

    cut: Cut
    kind: int
    serial: int
    op: str


_MEMORY = ("read", "load", "access")  # forms of what is taken from memory as it is
_LOADED = Mode()  # what a load is anchored by: nothing


@dataclass(slots=True)
class Cuts:
    """All cuts of each class of `frozen`; `truncated` counts regions dropped by the limits.

    `extents` maps every axis to its extent; `of` lists a class's cuts, the likely cheap ones first; `per_class` is how many
    are kept of each, by family.
    """

    frozen: Frozen
    extents: dict[str, int]
    limits: CutLimits = field(default_factory=CutLimits)
    truncated: int = 0
    of: dict[int, list[Cut]] = field(default_factory=lambda: defaultdict(list))
    buffers: frozenset[int] = frozenset()
    per_class: int = 0
    _table: dict[int, dict[str, list[_Entry]]] = field(default_factory=lambda: defaultdict(dict))  # by family, best first
    _joined: dict[tuple[Any, ...], Mode | None] = field(default_factory=dict)
    _modes: dict[Mode, Mode] = field(default_factory=dict)  # one object for equal ones
    _serial: int = 0
    _met: int = 0  # combinations looked at
    _since: int = -1  # the last evaluation of the node at hand
    _evaluated: dict[tuple[int, int], int] = field(default_factory=dict)
    _scores: dict[tuple[Any, ...], tuple[Form, float]] = field(default_factory=dict)
    _kinds: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _prices: Prices = field(init=False)
    _groupings: Groupings = field(init=False)

    def __post_init__(self) -> None:
        self._modes[_LOADED] = _LOADED
        self._prices = Prices(self.frozen, self.extents)
        self._groupings = Groupings(self.frozen)
        self.per_class = self.limits.regions(len(self.frozen.axes))
        self.buffers = buffers(self.frozen, self.extents, self._prices)
        self._fixpoint()
        for c, found in self._table.items():
            self.of[c] = sorted((e.cut for entries in found.values() for e in entries), key=lambda cut: cut.rank)

    def elements(self, axes: frozenset[str] | tuple[str, ...]) -> int:
        """Product of the extents of `axes`."""
        return math.prod(self.extents[a] for a in axes)

    def _regions(self, cls: int) -> list[Node]:
        region = self.frozen.anchor_of.get(cls)
        return [] if region is None else list(self.frozen.nodes.get(region, ()))

    def _fixpoint(self) -> None:
        """Enumerate until nothing is new, operands before users where the classes do not hang together in a circle."""
        values = [c for c in self.frozen.nodes if c in self.frozen.axes]
        found = {c: [*one_order(self.frozen.nodes[c]), *self._regions(c)] for c in values}
        users: dict[int, set[int]] = defaultdict(set)
        for c, nodes in found.items():
            for n in nodes:
                for child in n.children:
                    users[child].add(c)
        order = {c: i for i, c in enumerate(operands_first({c: {x for n in found[c] for x in n.children} for c in values}))}
        pending = [(order[c], c) for c in values]
        heapq.heapify(pending)
        waiting = set(values)
        while pending:
            _, c = heapq.heappop(pending)
            waiting.discard(c)
            changed = False
            if self._met > self.limits.combinations:
                self.per_class = min(self.per_class, max(1, self.limits.least // 2))
            for i, n in enumerate(found[c]):
                self._since, now = self._evaluated.get((c, i), -1), self._serial
                for cut in self._of_node(c, n):
                    changed |= self._add(c, cut, n.op)
                self._evaluated[c, i] = now
            if changed:
                for u in users[c] - waiting:
                    waiting.add(u)
                    heapq.heappush(pending, (order[u], u))

    def _add(self, c: int, cut: Cut, op: str) -> bool:
        """Keep a cut unless another of the same anchors loads no more and computes no more; say whether it is new.

        Dominance holds only between regions of the same anchors: across anchors it loses optima (research: up to 13 %).
        """
        if ("buf", c) in cut.loads:
            return False
        if len(cut.loads) > self.limits.loads:
            self.truncated += 1
            return False
        table = self._table[c].setdefault(cut.mode.family, [])
        full = len(table) >= self.per_class
        if full and cut.rank >= table[-1].cut.rank:
            self.truncated += 1
            return False
        kind = self._kinds.setdefault((cut.mode, cut.anchors), len(self._kinds))
        kept = []
        for entry in table:
            x = entry.cut
            if entry.kind == kind:
                if x.work <= cut.work and x.loads <= cut.loads:
                    return False
                if cut.work <= x.work and cut.loads <= x.loads:
                    continue
            kept.append(entry)
        if len(kept) >= self.per_class:
            self.truncated += 1
            kept.pop()
        self._serial += 1
        bisect.insort(kept, _Entry(cut, kind, self._serial, op), key=lambda e: e.cut.rank)
        self._table[c][cut.mode.family] = kept
        return True

    def _cut(self, mode: Mode, anchors: Anchors, loads: frozenset[Load], work: float, form: Form) -> Cut:
        return Cut(self._modes.setdefault(mode, mode), anchors, loads, work, form, self._rank(work, loads))

    def _rank(self, work: float, loads: frozenset[Load]) -> tuple[float, int]:
        return work / OPERATIONS + self._prices.of_loads(loads), len(loads)

    def _is_dear(self, c: int, family: str, rank: tuple[float, int]) -> bool:
        """Whether class `c` is full of better regions of the family than one of this rank or a higher one."""
        table = self._table[c].get(family, [])
        if len(table) < self.per_class or rank < table[-1].cut.rank:
            return False
        self.truncated += 1
        return True

    def _entries(self, c: int) -> Iterator[_Entry]:
        return itertools.chain.from_iterable(self._table[c].values())

    def _load(self, c: int) -> Cut:
        return Cut(_LOADED, frozenset(), frozenset([("buf", c)]), 0.0, ("load", c))

    def _join(self, parts: Sequence[Cut], axes: frozenset[str], *, added: bool) -> Mode | None:
        """Return the mode of a node over these parts; modes are one object each, so their identities tell them apart."""
        key: tuple[Any, ...] = (added, axes, *[id(p.mode) for p in parts])
        if key not in self._joined:
            over = frozenset().union(*(p.mode.over for p in parts))
            found = join([p.mode for p in parts], axes, small=self.elements(axes | over) <= _SMALL, added=added)
            self._joined[key] = None if found is None else self._modes.setdefault(found, found)
        return self._joined[key]

    def _fresh(self, classes: Sequence[int]) -> Iterator[tuple[Cut, ...]]:
        """Yield the combinations of ways to have each class that the node has not met since its last evaluation."""
        old: list[list[Cut]] = []
        new: list[list[Cut]] = []
        for x in classes:
            old.append([e.cut for e in self._entries(x) if e.serial <= self._since])
            new.append([e.cut for e in self._entries(x) if e.serial > self._since])
            if x in self.buffers:
                (new if self._since < 0 else old)[-1].append(self._load(x))
        for i, fresh in enumerate(new):
            if fresh:
                rest = (p + q for p, q in zip(old[i + 1 :], new[i + 1 :], strict=True))
                yield from itertools.product(*old[:i], fresh, *rest)

    def _fresh_groups(self, n: Node) -> Iterator[tuple[Cut, ...]]:
        """Yield the fresh combinations of a sum or product but those of two parts with the same op at the root.

        Other groupings in the class take such parts apart: the same regions come from there.
        """
        sides: list[dict[tuple[bool, bool], list[Cut]]] = []  # by (is new, has the op at the root)
        for x in n.children:
            found: dict[tuple[bool, bool], list[Cut]] = {(new, same): [] for new in (False, True) for same in (False, True)}
            for e in self._entries(x):
                found[e.serial > self._since, e.op == n.op].append(e.cut)
            if x in self.buffers:
                found[self._since < 0, False].append(self._load(x))
            sides.append(found)
        for (new_a, same_a), (new_b, same_b) in itertools.product(sides[0], sides[1]):
            if (new_a or new_b) and not (same_a and same_b):
                yield from itertools.product(sides[0][new_a, same_a], sides[1][new_b, same_b])

    def _of_node(self, c: int, n: Node) -> Iterator[Cut]:
        if c in n.children:
            return
        if n.op == "ReduceAnchor":
            yield from self._reduce(c, n)
            return
        if n.op == "ContractAnchor":
            yield from self._contract(c, n)
            return
        if n.op == "FoldAnchor":
            yield from self._fold(c, n)
            return
        row = BY_CONSTRUCTOR.get(n.op)
        if row is None:
            return
        if n.op == "Read":
            load: Load = ("read", *map(str, n.literals))
            self._prices.of_read(load, c)
            yield self._cut(_LOADED, frozenset(), frozenset([load]), 0.0, ("read", *n.literals))
        elif n.op in ("Const", "Iota"):
            yield self._cut(_LOADED, frozenset(), frozenset(), 0.0, (row.name, *n.literals))
        elif row.kind is Kind.ACCESS:
            for (cut,) in self._fresh(n.children):
                if cut.form[0] in _MEMORY:
                    yield self._cut(cut.mode, cut.anchors, cut.loads, 0.0, ("access", n.literals, cut.form))
        elif row.kind is Kind.POINTWISE:
            yield from self._pointwise(c, row, n)

    def _pointwise(self, c: int, row: Op, n: Node) -> Iterator[Cut]:
        axes = frozenset(self.frozen.axes[c])
        own, name, limits = row.weight * self.elements(axes), row.name, self.limits
        for parts in self._fresh(n.children) if not self._groupings.redundant(c, n) else self._fresh_groups(n):
            self._met += 1
            mode = self._join(parts, axes, added=name == "add")
            if mode is None or self._is_dear(c, mode.family, max([p.rank for p in parts])):
                continue
            loads = parts[0].loads.union(*[p.loads for p in parts[1:]])
            if len(loads) > limits.loads:
                continue
            work: float = own
            for p in parts:
                work += p.work
            rank = self._rank(work, loads)
            if self._is_dear(c, mode.family, rank):
                continue
            anchors = parts[0].anchors.union(*[p.anchors for p in parts[1:]])
            if mode.family == "contract" and sum(a[0] == "contract" for a in anchors) > limits.contractions:
                continue
            yield Cut(mode, anchors, loads, work, (name, n.literals, *[p.form for p in parts]), rank)

    def _reduce(self, c: int, n: Node) -> Iterator[Cut]:
        op, axes = n.literals
        assert isinstance(axes, tuple)
        over = frozenset(axes)
        body = n.children[0]
        free = frozenset(self.frozen.axes[c])
        elements = self.elements(free | over)
        for (cut,) in self._fresh([body]):
            inner = cut.mode
            if inner.family == "contract" or (inner.family == "reduce" and (inner.over != over or not inner.free <= free)):
                continue
            anchors = cut.anchors | {("reduce", op, over, body)}
            mode = Mode("reduce", over, free, summed=cut.loads, nested=inner.family == "reduce")
            yield self._cut(mode, anchors, cut.loads, cut.work + elements, (op, axes, cut.form))

    def _contract(self, c: int, n: Node) -> Iterator[Cut]:
        axes = n.literals[0]
        assert isinstance(axes, tuple)
        over = frozenset(axes)
        a, b = sorted(n.children)  # commutativity makes both orders: they are one anchor
        free = frozenset(self.frozen.axes[c])
        in_memory, computed = (self._prices.contraction(free | over, (a, b), in_memory=m) for m in (True, False))
        for left, right in self._fresh([a, b]):
            self._met += 1
            if left.mode.family != "point" or right.mode.family != "point" or len(left.loads | right.loads) > self.limits.loads:
                continue
            anchors = frozenset([("contract", over, a, b)])
            form = ("contract", tuple(sorted(over)), left.form, right.form)
            mode = Mode("contract", over, free, frozenset([left.loads, right.loads]))
            own = in_memory if left.form[0] in _MEMORY and right.form[0] in _MEMORY else computed
            yield self._cut(mode, anchors, left.loads | right.loads, left.work + right.work + own, form)

    def _fold(self, c: int, n: Node) -> Iterator[Cut]:
        """Dependent folds: the maximum of a score, or sums of exponentials relative to it, weighted by a value.

        The score may be the epilogue of one contraction over other axes, with statistics of the operand that does not vary over
        the fold's own axes; it is computed once for all folds of a region.
        """
        kind, axes = n.literals
        assert isinstance(axes, tuple)
        over, (score, value) = frozenset(axes), n.children
        free = frozenset(self.frozen.axes[c])
        elements = self.elements(free | over)
        for s, v in self._fresh([score, value]):
            self._met += 1
            loads = s.loads | v.loads
            inner = s.mode.family in ("point", "contract") or (s.mode.family == "reduce" and not s.mode.nested)
            statistics = s.mode.family == "contract" and not self._vary(s.mode.summed, over)
            single = sum(a[0] == "contract" for a in s.anchors) <= 1 if statistics else len(s.anchors) <= 1
            if not (inner and single) or s.mode.over & over or v.mode.family != "point" or len(loads) > self.limits.loads:
                continue
            key = (score, s.loads, s.anchors)
            body, work = self._scores.setdefault(key, (s.form, s.work))
            anchors = s.anchors | {("fold", kind, over, score, value)}
            form = _fold_form(str(kind), axes, body, v.form)
            yield self._cut(Mode("online", over, free, score=key), anchors, loads, work + v.work + 2 * elements, form)

    def _vary(self, loads: frozenset[Load], over: frozenset[str]) -> bool:
        """Whether one of these loads varies over one of the axes."""
        axes = (str(x[2]).split() if x[0] == "read" else self.frozen.axes[int(x[1])] for x in loads)  # type: ignore[misc]
        return any(over.intersection(a) for a in axes)


_SMALL = 1 << 20  # elements of a combination of parts: reducing them again for each position of an axis takes no time
_LOWEST = -3e38  # the pivot of a part none of whose scores is finite: e^(−inf − pivot) = 0, not NaN


def _fold_form(kind: str, axes: tuple[str, ...], score: Form, value: Form) -> Form:
    """Return the expression of a fold: the pivot, or Σ e^(score − pivot)·value, the pivot floored in a part of a reduction."""
    pivot: Form = ("max", axes, score)
    if kind == "max":
        return pivot
    if kind == "floored":
        pivot = ("maximum", (), pivot, ("const", _LOWEST))
    body: Form = ("exp", (), ("sub", (), score, pivot))
    if value != ("const", 1.0):
        body = ("mul", (), body, value)
    return ("sum", axes, body)


def operands_first(operands: Mapping[int, Collection[int]]) -> list[int]:
    """Order classes so that operands come before users; classes in a circle stand together (Tarjan's components)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    open_classes: list[int] = []
    out: list[int] = []
    placed: set[int] = set()
    for root in sorted(operands, reverse=True):
        if root in index:
            continue
        index[root] = low[root] = len(index)
        open_classes.append(root)
        stack = [(root, iter(sorted(operands[root])))]
        while stack:
            c, rest = stack[-1]
            for x in rest:
                if x not in operands:
                    continue
                if x not in index:
                    index[x] = low[x] = len(index)
                    open_classes.append(x)
                    stack.append((x, iter(sorted(operands[x]))))
                    break
                if x not in placed:
                    low[c] = min(low[c], index[x])
            else:
                stack.pop()
                if stack:
                    low[stack[-1][0]] = min(low[stack[-1][0]], low[c])
                while low[c] == index[c] and c not in placed:
                    x = open_classes.pop()
                    placed.add(x)
                    out.append(x)
    return out
