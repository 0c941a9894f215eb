"""Whether a hand-written expression is in a saturated e-graph: by looking its nodes up, whatever its bound axes are called."""

from __future__ import annotations

import itertools
from collections import defaultdict

from eqsat.frozen import Frozen
from eqsat.ir import Expr, rename
from eqsat.ops import OPS, Kind


class Members:
    """The e-nodes of a frozen e-graph, by constructor, literals and operands."""

    def __init__(self, frozen: Frozen) -> None:
        self._frozen = frozen
        self._class: dict[tuple[str, tuple[object, ...], tuple[int, ...]], int] = {
            (n.op, n.literals, n.children): c for c, found in frozen.nodes.items() for n in found
        }
        self._named: dict[int, list[str]] = defaultdict(list)
        for axis, extent in frozen.extents.items():
            self._named[extent].append(axis)
        self._found: dict[str, frozenset[int]] = {}

    def classes(self, e: Expr) -> frozenset[int]:
        """Return the classes that hold `e`, its bound axes called anything; none if it is not there."""
        if e.digest not in self._found:
            self._found[e.digest] = frozenset(self._look_up(e))
        return self._found[e.digest]

    def _look_up(self, e: Expr) -> set[int]:
        row = OPS[e.op]
        if e.op == "read":
            name, axes = e.attrs
            return self._known(row.constructor, (name, " ".join(a or "." for a in axes)), ())
        if e.op == "const":
            return self._known(row.constructor, (float(e.attrs[0]),), ())
        if e.op == "iota":
            return self._known(row.constructor, (e.attrs[0],), ())
        if row.kind is Kind.REDUCE:
            body, axis = e.args[0], e.attrs[0]
            names = [a for a in self._named[dict(body.type.axes)[axis]] if a == axis or a not in body.axes]
            found = ((a, self.classes(body if a == axis else rename(body, {axis: a}))) for a in names)
            return {c for a, inner in found for x in inner for c in self._known(row.constructor, (a,), (x,))}
        literals = (e.dtype.value,) if e.op == "cast" else ()
        operands = itertools.product(*map(self.classes, e.args))
        return {c for found in operands for c in self._known(row.constructor, literals, found)}

    def _known(self, op: str, literals: tuple[object, ...], children: tuple[int, ...]) -> set[int]:
        c = self._class.get((op, literals, children))
        return set() if c is None else {c}
