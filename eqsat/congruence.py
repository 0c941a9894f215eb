"""Ground terms kept once each, and a congruence closure over them that can say why two are equal.

The closure is that of Nieuwenhuis and Oliveras (Proof-producing congruence closure, RTA 2005): beside the union-find it keeps
a forest in which every edge is a given equation or a congruence, so that a path between two terms is a proof.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from eqsat.errors import TextError
from eqsat.indexterms import INDEX_CONSTRUCTORS
from eqsat.sexpr import Node

Argument = int | str
"""An operand's term, or a literal (an index expression too) in its canonical text."""


class Terms:
    """A store of ground terms: equal terms have equal numbers."""

    def __init__(self) -> None:
        self._nodes: list[tuple[str, tuple[Argument, ...]]] = []
        self._numbers: dict[tuple[str, tuple[Argument, ...]], int] = {}
        self._sizes: list[int] = []

    def add(self, op: str, args: tuple[Argument, ...]) -> int:
        """Return the number of the term with this constructor and these arguments."""
        key = (op, args)
        known = self._numbers.get(key)
        if known is not None:
            return known
        self._nodes.append(key)
        self._sizes.append(1 + sum(self._sizes[a] for a in args if isinstance(a, int)))
        self._numbers[key] = len(self._nodes) - 1
        return self._numbers[key]

    def read(self, node: Node, names: Mapping[str, int]) -> int:
        """Return the term that `node` spells; a symbol stands for the term that `names` gives it."""
        done: list[Argument] = []
        stack: list[tuple[Node, bool]] = [(node, False)]
        while stack:
            n, ready = stack.pop()
            if n.kind == "symbol":
                done.append(names[n.text])
            elif n.kind != "list" or n.head in INDEX_CONSTRUCTORS:
                done.append(literal_text(n))
            elif not ready:
                stack.append((n, True))
                stack.extend((a, False) for a in reversed(n.args))
            else:
                split = len(done) - len(n.args)
                args, done = tuple(done[split:]), done[:split]
                done.append(self.add(n.head, args))
        (root,) = done
        if not isinstance(root, int):
            raise TextError(f"expected a term; got the literal {root}", source=str(node))
        return root

    def op(self, term: int) -> str:
        """Return the constructor."""
        return self._nodes[term][0]

    def args(self, term: int) -> tuple[Argument, ...]:
        """Return the arguments."""
        return self._nodes[term][1]

    def operands(self, term: int) -> list[int]:
        """Return the arguments that are terms."""
        return [a for a in self._nodes[term][1] if isinstance(a, int)]

    def size(self, term: int) -> int:
        """Return the number of constructors in the term written out as a tree."""
        return self._sizes[term]

    def at(self, term: int, position: tuple[int, ...]) -> int:
        """Return the subterm at `position`, a path of argument numbers."""
        for i in position:
            child = self._nodes[term][1][i]
            assert isinstance(child, int)
            term = child
        return term

    def replace(self, term: int, position: tuple[int, ...], by: int) -> int:
        """Return `term` with the subterm at `position` replaced."""
        path = [term]
        for i in position:
            path.append(self.at(path[-1], (i,)))
        for parent, i in zip(reversed(path[:-1]), reversed(position), strict=True):
            op, args = self._nodes[parent]
            by = self.add(op, (*args[:i], by, *args[i + 1 :]))
        return by

    def text(self, term: int, names: Mapping[int, str] | None = None) -> str:
        """Write the term out; terms in it that have a name are written as that."""
        written: dict[int, str] = {t: name for t, name in (names or {}).items() if t != term}
        stack = [(term, False)]
        while stack:
            t, ready = stack.pop()
            if t in written:
                continue
            if not ready:
                stack.append((t, True))
                stack.extend((a, False) for a in self.operands(t))
                continue
            op, args = self._nodes[t]
            written[t] = f"({' '.join([op, *(written[a] if isinstance(a, int) else a for a in args)])})"
        return written[term]


def literal_text(node: Node) -> str:
    """Return the canonical text of a literal: one spelling for values that the engine takes for equal, as it does ±0."""
    return float_text(node.number) if node.kind == "float" else str(node)


def float_text(number: float) -> str:
    """Return the canonical text of a float."""
    return "NaN" if number != number else repr(number + 0.0)


class Reason(NamedTuple):
    """An edge of the forest: a rule read forwards or backwards, or (`rule` None) a congruence."""

    rule: str | None
    forward: bool = True

    def turned(self) -> Reason:
        """Return the reason for the same equation read the other way."""
        return Reason(self.rule, not self.forward)


class Closure:
    """Equality of terms under given equations and congruence, with proofs."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._parent: dict[int, int] = {}
        self._size: dict[int, int] = {}
        self._edge: dict[int, tuple[int, Reason]] = {}  # the proof forest: towards its tree's root
        self._users: dict[int, list[int]] = {}
        self._signature: dict[tuple[str, tuple[Argument, ...]], int] = {}

    def cover(self, term: int) -> None:
        """Take `term` and everything in it into account."""
        stack = [(term, False)]
        while stack:
            t, ready = stack.pop()
            if t in self._parent:
                continue
            if not ready:
                stack.append((t, True))
                stack.extend((a, False) for a in self._terms.operands(t))
                continue
            self._parent[t], self._size[t], self._users[t] = t, 1, []
            for a in set(self._terms.operands(t)):
                self._users[self._find(a)].append(t)
            twin = self._signature.setdefault(self._sign(t), t)
            if twin != t:
                self._merge(t, twin, Reason(None))

    def equate(self, left: int, right: int, rule: str) -> None:
        """Add the equation left = right, an instance of `rule`."""
        self.cover(left)
        self.cover(right)
        self._merge(left, right, Reason(rule))

    def equal(self, a: int, b: int) -> bool:
        """Return whether the equations so far make two covered terms equal."""
        return self._find(a) == self._find(b)

    def _find(self, t: int) -> int:
        while self._parent[t] != t:
            self._parent[t] = self._parent[self._parent[t]]
            t = self._parent[t]
        return t

    def _sign(self, t: int) -> tuple[str, tuple[Argument, ...]]:
        return self._terms.op(t), tuple(self._find(a) if isinstance(a, int) else a for a in self._terms.args(t))

    def _merge(self, a: int, b: int, reason: Reason) -> None:
        pending = deque([(a, b, reason)])
        while pending:
            a, b, reason = pending.popleft()
            ra, rb = self._find(a), self._find(b)
            if ra == rb:
                continue
            if self._size[ra] > self._size[rb]:
                a, b, ra, rb, reason = b, a, rb, ra, reason.turned()
            self._make_root(a)
            self._edge[a] = (b, reason)
            self._parent[ra] = rb
            self._size[rb] += self._size.pop(ra)
            moved = self._users.pop(ra)
            self._users[rb] += moved
            for user in moved:
                twin = self._signature.setdefault(self._sign(user), user)
                if twin != user and self._find(twin) != self._find(user):
                    pending.append((user, twin, Reason(None)))

    def _make_root(self, t: int) -> None:
        """Turn the edges between `t` and the root of its proof tree around."""
        edge = self._edge.pop(t, None)
        while edge is not None:
            up, reason = edge
            edge = self._edge.pop(up, None)
            self._edge[up] = (t, reason.turned())
            t = up

    def path(self, a: int, b: int) -> list[tuple[int, int, Reason]]:
        """Return the edges of the forest from `a` to `b`, which are equal; operands of a congruence have paths of their own."""
        up, down = self._to_root(a), self._to_root(b)
        depth = {t: i for i, t in enumerate(down)}
        meet = next(i for i, t in enumerate(up) if t in depth)
        out = [(t, *self._edge[t]) for t in up[:meet]]
        for t in reversed(down[: depth[up[meet]]]):
            parent, reason = self._edge[t]
            out.append((parent, t, reason.turned()))
        return out

    def _to_root(self, t: int) -> list[int]:
        out = [t]
        while out[-1] in self._edge:
            out.append(self._edge[out[-1]][0])
        return out
