"""Which values are worth a buffer between kernels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from eqsat.frozen import Frozen, Node
from eqsat.indexterms import read_index
from eqsat.ops import BY_CONSTRUCTOR, Kind
from eqsat.prices import Prices

_CHEAP = 1  # weight of an operation that is no dearer done again at each load than once before the store
_SMALL = 1 << 16  # elements of a value that is so small beside what is computed with it that even a root done again is nothing


def buffers(frozen: Frozen, extents: Mapping[str, int], prices: Prices) -> frozenset[int]:
    """Return the classes worth a buffer.

    Outputs, reductions, what a contraction or an access needs in memory, what is reduced again after a contraction (its
    epilogue may then be shared), and what constants give ahead of time. Of values that follow from each other by other names of
    axes, or by little arithmetic with constants (Σ x², Σ x²/n), one has a buffer.
    """
    nodes = frozen.nodes
    leaves = {c for c, found in nodes.items() for n in found if n.op in ("Read", "Const", "Iota")}
    outputs = set(frozen.roots)
    operands: set[int] = set()
    reductions: set[int] = set()
    bodies: set[int] = set()
    accessed: set[int] = set()  # where no rule moves an access to the leaf, even a position is stored
    for c, found in nodes.items():
        for n in found:
            if n.op == "ContractAnchor":
                operands.update(n.children)
            if n.op == "Access":
                accessed.update(n.children)
            if n.op in ("ReduceAnchor", "FoldAnchor"):
                bodies.update(n.children)
            if _is_reduction(n):
                reductions.add(c)
    reads = {c for c, found in nodes.items() for n in found if n.op == "Read"}
    wanted = (outputs | operands | reductions | (bodies & _above_contractions(frozen)) | _prepared(frozen)) - leaves
    wanted |= accessed - reads
    return frozenset(_one_of_each(frozen, extents, prices, wanted, outputs, operands))


def _one_of_each(
    frozen: Frozen, extents: Mapping[str, int], prices: Prices, wanted: set[int], outputs: set[int], operands: set[int]
) -> set[int]:
    """Leave out what follows from another buffer, the one that costs least staying.

    An operand of a contraction stays unless it is the same values by other names: matrix units take it from memory as it is.
    So does what a dependent fold gives beside its other results.
    """
    renamed: dict[int, set[int]] = defaultdict(set)
    derived: dict[int, set[int]] = defaultdict(set)
    numbers = {c for c, found in frozen.nodes.items() if any(n.op == "Const" for n in found)}
    for c, axes in frozen.axes.items():
        small = math.prod(extents[a] for a in axes) <= _SMALL
        for n in frozen.nodes[c]:
            varying = [x for x in n.children if x in frozen.axes and x not in numbers]
            if len(varying) != 1 or varying[0] == c or frozen.dtype[c] != frozen.dtype[varying[0]]:
                continue
            row = BY_CONSTRUCTOR.get(n.op)
            if n.op == "Access":
                if _only_renames(frozen, extents, n):
                    renamed[varying[0]].add(c)
            elif row is not None and row.kind is Kind.POINTWISE and n.op != "Cast" and (small or row.weight <= _CHEAP):
                derived[varying[0]].add(c)
    stays = operands | {c for c, r in frozen.anchor_of.items() if any(n.op == "FoldAnchor" for n in frozen.nodes.get(r, ()))}
    kept: set[int] = set()
    same: set[int] = set()
    near: set[int] = set()
    for c in sorted(wanted, key=lambda c: (c not in outputs, prices.least(c), c)):
        if c not in outputs and (c in same or (c in near and c not in stays)):
            continue
        kept.add(c)
        called = _reached({c}, renamed)  # arithmetic may follow another name; an access reads memory alone
        same |= called
        near |= _reached({c, *called}, derived)
    return kept


def _reached(starts: set[int], edges: Mapping[int, set[int]]) -> set[int]:
    stack = list(starts)
    reached: set[int] = set()
    while stack:
        for x in edges.get(stack.pop(), set()) - reached:
            reached.add(x)
            stack.append(x)
    return reached


def _only_renames(frozen: Frozen, extents: Mapping[str, int], n: Node) -> bool:
    axis, text = n.literals
    index = read_index(str(text))
    return index.op == "axis" and extents[index.name] == extents[str(axis)] and index.name not in frozen.axes[n.children[0]]


def _prepared(frozen: Frozen) -> set[int]:
    """Classes that depend on constant inputs alone and are used by what does not: they can be computed ahead of time.

    What depends on positions alone (a mask) stays arithmetic: as a buffer it would cost traffic, and hide what it leaves out.
    """
    positions = _of_positions(frozen)
    users = (n for c, found in frozen.nodes.items() if c not in frozen.constant for n in found)
    return {x for n in users for x in n.children if x in frozen.constant and frozen.axes.get(x) and x not in positions}


def _of_positions(frozen: Frozen) -> set[int]:
    """Classes that some term without inputs computes."""
    found: set[int] = set()
    grew = True
    while grew:
        grew = False
        for c in frozen.constant - found:
            if any(n.op != "Read" and n.op in BY_CONSTRUCTOR and found.issuperset(n.children) for n in frozen.nodes[c]):
                found.add(c)
                grew = True
    return found


def _above_contractions(frozen: Frozen) -> set[int]:
    """Classes that are a contraction, or pointwise over one."""
    users: dict[int, set[int]] = defaultdict(set)
    for c, found in frozen.nodes.items():
        for n in found:
            row = BY_CONSTRUCTOR.get(n.op)
            if row is not None and row.kind is Kind.POINTWISE:
                for child in n.children:
                    users[child].add(c)
    contractions = {r for r, found in frozen.nodes.items() if any(n.op == "ContractAnchor" for n in found)}
    stack = [c for c, region in frozen.anchor_of.items() if region in contractions]
    seen = set(stack)
    while stack:
        for c in users[stack.pop()] - seen:
            seen.add(c)
            stack.append(c)
    return seen


def _is_reduction(n: Node) -> bool:
    row = BY_CONSTRUCTOR.get(n.op)
    return row is not None and row.kind is Kind.REDUCE
