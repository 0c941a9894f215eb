"""What computing and loading a value costs on a machine of round figures: which regions are worth keeping where not all can be.

Costs are in bytes moved in the same time. They choose between regions of one class; what is chosen in the end rests on bounds
and measurements of the target.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from eqsat.cut import Load
from eqsat.frozen import Frozen, Node
from eqsat.ops import BY_CONSTRUCTOR, Kind
from eqsat.signature import WEAK
from eqsat.types import DType

OPERATIONS = 8.0
"""Operations in the time of a byte: CPUs and GPUs alike issue about so many."""
_MATRIX = {"f16": 1 / 16, "bf16": 1 / 16}
_PLAIN = 1 / 2
"""Time of an operation of a contraction beside others: on matrix units by its operands' type, else from registers."""
_LAUNCH = 8e6  # bytes moved in the time of a launch: 2 µs of an H200


class Prices:
    """Estimated costs of the classes of a frozen e-graph."""

    def __init__(self, frozen: Frozen, extents: Mapping[str, int]) -> None:
        self._frozen, self._extents = frozen, extents
        self._least = self._estimates()
        self._loads: dict[Load, float] = {}
        self._folds = _folds(frozen)

    def least(self, c: int) -> float:
        """Return the least cost of a term that computes a class, nothing shared."""
        return self._least.get(c, math.inf)

    def of_read(self, load: Load, c: int) -> None:
        """Note that an input read so is class `c`."""
        self._loads[load] = self.bytes(c)

    def of_loads(self, loads: Iterable[Load]) -> float:
        """Return what loads cost: their bytes, and the making of intermediates but for those that constants give ahead of time.

        Results of one dependent fold are made in one pass.
        """
        total = 0.0
        passes: dict[tuple[object, ...], float] = {}
        for load in loads:
            if load[0] == "buf" and (fold := self._folds.get(int(load[1]))) is not None:
                making = self._of_load(load) - 2 * self.bytes(int(load[1]))
                total += self._of_load(load) - making
                passes[fold] = max(passes.get(fold, 0.0), making)
            else:
                total += self._of_load(load)
        return total + sum(passes.values())

    def _of_load(self, load: Load) -> float:
        if load not in self._loads:
            c = int(load[1])
            made = 0.0 if c in self._frozen.constant else self.bytes(c) + self._least.get(c, math.inf) + _LAUNCH
            self._loads[load] = self.bytes(c) + made
        return self._loads[load]

    def _elements(self, axes: frozenset[str] | tuple[str, ...]) -> int:
        return math.prod(self._extents[a] for a in axes)

    def _estimates(self) -> dict[int, float]:
        """Return for each class the least cost of a term that computes it, nothing shared (Knuth's algorithm)."""
        nodes = self._frozen.nodes
        users: dict[int, list[tuple[int, int, float, tuple[int, ...]]]] = defaultdict(list)
        waiting: dict[tuple[int, int], int] = {}
        least: dict[int, float] = {}
        ready: list[tuple[float, int]] = []
        for c in self._frozen.axes:
            regions = nodes.get(self._frozen.anchor_of.get(c, -1), [])
            for i, n in enumerate([*nodes[c], *regions]):
                operands = tuple(x for x in dict.fromkeys(n.children) if x in self._frozen.axes)
                own = self._own_cost(c, n)
                if not operands:
                    heapq.heappush(ready, (own, c))
                waiting[c, i] = len(operands)
                for x in operands:
                    users[x].append((c, i, own, operands))
        while ready:
            cost, c = heapq.heappop(ready)
            if c in least:
                continue
            least[c] = cost
            for u, i, own, operands in users[c]:
                waiting[u, i] -= 1
                if waiting[u, i] == 0 and u not in least:
                    heapq.heappush(ready, (own + sum(least[x] for x in operands), u))
        return least

    def _own_cost(self, c: int, n: Node) -> float:
        """Return what a node costs beyond its operands, in bytes moved in the same time."""
        axes = frozenset(self._frozen.axes[c])
        over = frozenset(x for literal in n.literals if isinstance(literal, tuple) for x in literal)
        if n.op == "ContractAnchor":
            return self.contraction(axes | over, n.children) / OPERATIONS
        if n.op in ("ReduceAnchor", "FoldAnchor"):
            return self._elements(axes | over) / OPERATIONS
        row = BY_CONSTRUCTOR.get(n.op)
        if row is None or n.op in ("Const", "Iota"):
            return 0.0
        if n.op == "Read":
            return self.bytes(c)
        if row.kind is Kind.REDUCE:
            return self._elements(self._frozen.axes[n.children[0]]) / OPERATIONS
        return row.weight * self._elements(axes) / OPERATIONS

    def contraction(self, axes: frozenset[str], operands: Sequence[int], *, in_memory: bool = True) -> float:
        """Return the weighted operations of a contraction of classes whose product varies over `axes`.

        Matrix units take operands of their types that are in memory as they are.
        """
        dear = max(_MATRIX.get(self._frozen.dtype[x], _PLAIN) for x in operands) if in_memory else _PLAIN
        return 2 * self._elements(axes) * dear

    def bytes(self, c: int) -> float:
        """Return the bytes that a value takes in its own type."""
        name = self._frozen.dtype[c]
        return self._elements(self._frozen.axes[c]) * (4 if name == WEAK else DType.parse(name).bytes)


def _folds(frozen: Frozen) -> dict[int, tuple[object, ...]]:
    """Return for each class that a dependent fold may write the fold: its axes and the class of its score."""
    found: dict[int, tuple[object, ...]] = {}
    for c, region in frozen.anchor_of.items():
        for n in frozen.nodes.get(region, ()):
            if n.op == "FoldAnchor" and c not in frozen.constant:
                found.setdefault(c, (n.literals[1], n.children[0]))
    return found
