"""Sums and products under associativity and commutativity: which groupings give regions that no other gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from eqsat.frozen import Frozen, Node
from eqsat.ops import BY_CONSTRUCTOR

_REGROUPING = ("Add", "Mul", "Maximum", "Minimum")


def one_order(nodes: Sequence[Node]) -> Iterator[Node]:
    """Yield nodes, those of commutative ops in one order of their operands."""
    seen: set[tuple[str, tuple[int, ...]]] = set()
    for n in nodes:
        row = BY_CONSTRUCTOR.get(n.op)
        if row is not None and row.commutative:
            key = n.op, tuple(sorted(n.children))
            if key in seen:
                continue
            seen.add(key)
        yield n


class Groupings:
    """Which groupings of sums and products give nothing that others do not.

    In a class (x·z)·b = x·(z·b) the region that computes x, z and b in one place arises from both groupings. The first
    need then only be looked at for regions in which x·z or b is one piece: a load, an anchor or another op.
    """

    def __init__(self, frozen: Frozen) -> None:
        self._class: dict[tuple[str, tuple[int, ...]], int] = {}
        self._splits: dict[tuple[str, int], list[tuple[int, ...]]] = defaultdict(list)
        for c in frozen.axes:
            for n in frozen.nodes[c]:
                if n.op in _REGROUPING:
                    pair = tuple(sorted(n.children))
                    if c not in pair and self._class.setdefault((n.op, pair), c) == c:
                        self._splits[n.op, c].append(pair)
        self._splits = {k: list(dict.fromkeys(v)) for k, v in self._splits.items()}
        self._known: dict[tuple[int, str, tuple[int, ...]], bool] = {}

    def redundant(self, c: int, n: Node) -> bool:
        """Whether combinations of two parts that both have `n`'s op at the root also arise from other nodes of the class."""
        return n.op in _REGROUPING and self._redundant(c, n.op, tuple(sorted(n.children)))

    def _redundant(self, c: int, op: str, pair: tuple[int, ...]) -> bool:
        key = c, op, pair
        if key not in self._known:
            self._known[key] = False  # while it is being asked: no grouping stands for itself
            a, b = pair
            self._known[key] = any(
                all(self._elsewhere(c, op, part, split, other) for split in self._splits.get((op, part), ()))
                for part, other in ((a, b), (b, a))
            )
        return self._known[key]

    def _elsewhere(self, c: int, op: str, part: int, split: tuple[int, ...], other: int) -> bool:
        """Whether (x·z)·other also arises as x·(z·other) in class `c`, x being no product itself."""
        if part in split:
            return True
        for x, z in (split, split[::-1]):
            if (op, x) not in self._splits:
                rest = self._class.get((op, tuple(sorted((z, other)))))
                if rest is not None and self._class.get((op, tuple(sorted((x, rest))))) == c:
                    return True
        return self._redundant(part, op, split) if all((op, x) in self._splits for x in split) else False
