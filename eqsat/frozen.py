"""The e-graph as a table of plain numbers: what every stage after saturation works on.

The table pickles, compares, and needs no e-graph engine. Classes are numbered in order of a walk from the roots, so that
equal e-graphs give equal tables.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from eqsat.errors import ExtractionError, SaturationError

if TYPE_CHECKING:
    import networkx

Literal = str | float | int | tuple[str, ...]


class Node(NamedTuple):
    """An e-node: constructor, classes of its operands, and its other arguments (sets as sorted tuples), each in order."""

    op: str
    children: tuple[int, ...]
    literals: tuple[Literal, ...]


class Row(NamedTuple):
    """A row as the engine has it: constructor, result sort, result id, operand ids, other arguments."""

    op: str
    sort: str
    result: int
    children: tuple[int, ...]
    literals: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Frozen:
    """All that is known to be equal, by class.

    Parameters
    ----------
    nodes : dict of int to list of Node
        E-nodes of every class, values (sort `T`) and regions (sort `Region`) alike.
    axes : dict of int to tuple of str
        Sorted axis names of every value class.
    dtype : dict of int to str
        dtype name of every value class; "weak" for constants.
    constant : frozenset of int
        Value classes that are the same in every call.
    roots : tuple of int
        Class of each output of the program.
    anchor_of : dict of int to int
        Region class that computes a value class.
    arguments : dict of str to tuple of str
        Argument sorts of every constructor. Among a node's literals an argument of sort `Index` is its canonical term as
        text (`eqsat.indexterms.read_index` reads it).
    extents : dict of str to int
        Extent of every axis, those that rules made included.
    """

    nodes: dict[int, list[Node]]
    axes: dict[int, tuple[str, ...]]
    dtype: dict[int, str]
    constant: frozenset[int]
    roots: tuple[int, ...]
    anchor_of: dict[int, int]
    arguments: dict[str, tuple[str, ...]]
    extents: dict[str, int] = field(default_factory=dict)

    @property
    def class_count(self) -> int:
        """Number of classes of values and regions."""
        return len(self.nodes)

    @property
    def node_count(self) -> int:
        """Number of e-nodes of values and regions."""
        return sum(map(len, self.nodes.values()))

    def smallest(self) -> dict[int, Node]:
        """Choose for each value class the e-node that roots its term of fewest nodes; ties go to the first in order."""
        users: dict[int, list[tuple[int, int]]] = defaultdict(list)
        waiting: dict[tuple[int, int], int] = {}
        size: dict[int, int] = {}
        choice: dict[int, Node] = {}
        ready: list[tuple[int, int, int]] = []
        for c in self.axes:
            for i, n in enumerate(self.nodes[c]):
                operands = set(n.children)
                waiting[c, i] = len(operands)
                for x in operands:
                    users[x].append((c, i))
                if not operands:
                    heapq.heappush(ready, (1, c, i))
        while ready:
            cost, c, i = heapq.heappop(ready)
            if c in size:
                continue
            size[c], choice[c] = cost, self.nodes[c][i]
            for c2, i2 in users[c]:
                waiting[c2, i2] -= 1
                if waiting[c2, i2] == 0 and c2 not in size:
                    total = 1 + sum(size[x] for x in self.nodes[c2][i2].children)
                    heapq.heappush(ready, (total, c2, i2))
        return choice

    def smallest_term(self, cls: int) -> str:
        """Return the term of fewest nodes that computes value class `cls`."""
        return self.term_from_choice(cls, self.smallest())

    def term_from_choice(self, cls: int, choice: Mapping[int, Node]) -> str:
        """Return the term of `cls` that takes `choice[c]` in every class c.

        Raises
        ------
        ExtractionError
            If a class has no choice, or the choices run in a circle.
        """
        text: dict[int, str] = {}
        open_classes: set[int] = set()
        stack = [(cls, False)]
        while stack:
            c, done = stack.pop()
            if c in text:
                continue
            if c not in choice:
                raise ExtractionError(f"expected a choice for every class that the term uses; class {c} has none")
            node = choice[c]
            if done:
                open_classes.discard(c)
                text[c] = self._node_text(node, [text[x] for x in node.children])
                continue
            if c in open_classes:
                raise ExtractionError(f"the choices run in a circle through class {c} ({node.op}); choose another node there")
            open_classes.add(c)
            stack.append((c, True))
            stack.extend((x, False) for x in reversed(node.children) if x not in text)
        return text[cls]

    def _node_text(self, node: Node, children: Iterable[str]) -> str:
        literals, operands = iter(node.literals), iter(children)
        parts = [
            next(operands) if s in ("T", "Region") else str(next(literals)) if s == "Index" else _literal_text(next(literals))
            for s in self.arguments[node.op]
        ]
        return f"({' '.join([node.op, *parts])})"

    def to_networkx(self) -> networkx.DiGraph:
        """Return classes and e-nodes as a bipartite graph for drawing: class → its e-nodes → their operands' classes."""
        import networkx  # only pictures need it

        g: networkx.DiGraph = networkx.DiGraph()
        for c, found in self.nodes.items():
            label = f"{c}: {self.dtype[c]}[{' '.join(self.axes[c])}]" if c in self.axes else f"{c}"
            g.add_node(("class", c), label=label, root=c in self.roots)
            for i, n in enumerate(found):
                g.add_node(("node", c, i), label=" ".join([n.op, *map(_literal_text, n.literals)]))
                g.add_edge(("class", c), ("node", c, i))
                g.add_edges_from((("node", c, i), ("class", x)) for x in n.children)
        for c, region in self.anchor_of.items():
            g.add_edge(("class", c), ("class", region), anchor=True)
        return g


def build(
    rows: Iterable[Row],
    axes: Mapping[int, tuple[str, ...]],
    dtypes: Mapping[int, str],
    constants: Iterable[int],
    roots: Iterable[int],
    arguments: Mapping[str, tuple[str, ...]],
    extents: Mapping[str, int] | None = None,
) -> Frozen:
    """Return the table of everything reachable from `roots`, classes numbered anew in order of the walk.

    Rows that no finite term can use are dropped.

    Raises
    ------
    SaturationError
        If a reachable value has no axes or no dtype: a rule made a node whose type nothing sets.
    """
    kept = groundable(rows)
    members: dict[int, list[Row]] = defaultdict(list)
    anchors: dict[int, int] = {}
    for row in sorted(kept, key=lambda r: (r.op, r.literals, r.children)):
        if row.op == "Anchor":  # a demand, not a way to compute
            anchors[row.children[0]] = row.result
        else:
            members[row.result].append(row)
    number: dict[int, int] = {}
    pending = list(roots)
    for old in pending:  # grows while it is walked
        if old in number:
            continue
        number[old] = len(number)
        pending += [x for row in members[old] for x in row.children]
        if old in anchors:
            pending.append(anchors[old])
    nodes = {
        new: sorted({Node(r.op, tuple(number[x] for x in r.children), r.literals) for r in members[old]})
        for old, new in number.items()
    }
    values = [old for old in number if any(r.sort == "T" for r in members[old])]
    for old in values:
        if old not in axes or old not in dtypes:
            shown = nodes[number[old]][0]
            raise SaturationError(
                f"expected axes and dtype for every value; {shown.op} {' '.join(map(str, shown.literals))} has none: "
                "a rule makes a node whose type no analysis rule sets. Set its axes in the rule."
            )
    return Frozen(
        nodes,
        {number[c]: tuple(sorted(axes[c])) for c in values},
        {number[c]: dtypes[c] for c in values},
        frozenset(number[c] for c in constants if c in number),
        tuple(number[r] for r in roots),
        {number[c]: number[r] for c, r in anchors.items() if c in number},
        dict(arguments),
        dict(extents or {}),
    )


def groundable(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that some finite term uses: every operand's class holds a finite term itself."""
    rows = list(rows)
    users: dict[int, list[int]] = defaultdict(list)
    waiting = [len(set(r.children)) for r in rows]
    for i, r in enumerate(rows):
        for x in set(r.children):
            users[x].append(i)
    grounded: set[int] = set()
    stack = [i for i, n in enumerate(waiting) if n == 0]
    keep = [False] * len(rows)
    while stack:
        i = stack.pop()
        keep[i] = True
        result = rows[i].result
        if result in grounded:
            continue
        grounded.add(result)
        for j in users[result]:
            waiting[j] -= 1
            if waiting[j] == 0:
                stack.append(j)
    return [r for r, k in zip(rows, keep, strict=True) if k]


def _literal_text(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"(set-of {' '.join(map(_literal_text, value))})" if value else "(set-empty)"
    if isinstance(value, float) and value != value:
        return "NaN"
    return repr(value)
