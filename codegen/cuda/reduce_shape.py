"""A reduce problem as loops, loads and passes: what the row, column and grid templates start from."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from eqsat.codegen.cuda.emit import output_names, register_type
from eqsat.codegen.cuda.loads import Load, LoopAxis, access_mode, find_loads, join_axes, lanes_of, row_major
from eqsat.codegen.problem import ReduceProblem, nest
from eqsat.ir import Expr, Input, Output
from eqsat.ops import Kind
from eqsat.types import DType

OPERATORS = {
    "sum": "SumOf", "prod": "ProdOf", "max": "MaxOf", "min": "MinOf", "any": "AnyOf", "all": "AllOf",
    "argmax": "ArgMaxOf", "argmin": "ArgMinOf",
}  # fmt: skip
# What costs so much that its value is kept in registers for the next pass rather than computed again.
HEAVY = frozenset(["exp", "log", "tanh", "erf", "sigmoid", "sin", "cos", "pow", "sqrt", "rsqrt", "recip", "div"])

NEAR_SHARE = 8  # a buffer so many times smaller than the largest one is read where it is used
LIGHT_ELEMENTS = 32  # elements of a thread up to which a cheap value is kept too


@dataclass(frozen=True, slots=True)
class Reduction:
    """One reduction: its node, the body that it reduces, and its place among the problem's reductions."""

    node: Expr
    body: Expr
    number: int

    @property
    def operator(self) -> str:
        """The C++ operator with its accumulator type."""
        source = self.body.dtype if self.is_arg else self.node.dtype
        return f"{OPERATORS[self.node.op]}<{register_type(source)}>"

    @property
    def is_arg(self) -> bool:
        """Whether it returns a position."""
        return self.node.op in ("argmax", "argmin")

    @property
    def partial_bytes(self) -> int:
        """Bytes of one partial result in memory."""
        return 16 if self.is_arg else self.node.dtype.accumulator.bytes


@dataclass(frozen=True, slots=True)
class Pick:
    """A sum Σ_k where(k = at, value, 0), whose one term that is not 0 is `value` at the position `at`, if there is one."""

    node: Expr
    axis: str
    at: Expr
    value: Expr


@dataclass(frozen=True, slots=True)
class ReduceShape:
    """Loops over the rows (variables r…) and over the reduced axes (k…), the loads, the reductions pass by pass, the stores.

    A store is written like a load, of the output's own value. `picked` are sums of one term: they need no pass.
    """

    problem: ReduceProblem
    loads: tuple[Load, ...]
    rows: tuple[LoopAxis, ...]
    reduced: tuple[LoopAxis, ...]
    passes: tuple[tuple[Reduction, ...], ...]
    stores: tuple[Load, ...]
    picked: tuple[Pick, ...] = ()

    @property
    def over(self) -> frozenset[str]:
        """The reduced axes."""
        return frozenset(self.problem.reduced)

    @property
    def single(self) -> bool:
        """Whether one pass makes all statistics and the outputs have rows only: what several blocks can share."""
        return len(self.passes) == 1 and not self.problem.keeps

    @property
    def element_stores(self) -> tuple[Load, ...]:
        """The stores of outputs that keep the reduced axes."""
        return tuple(x for x in self.stores if self.varies(x.expr))

    @property
    def row_stores(self) -> tuple[Load, ...]:
        """The stores of outputs that have rows only."""
        return tuple(x for x in self.stores if not self.varies(x.expr))

    def varies(self, e: Expr) -> bool:
        """Whether a value varies along the reduced axes."""
        return bool(e.axes & self.over)

    def is_held(self, load: Load) -> bool:
        """Whether a pass needs the elements of a load, which belong to one row, and they come from far: small buffers are near."""
        own = bool(load.axes - self.over) or self.problem.row_count == 1
        needed = self.varies(load.expr) and load.expr.digest in _needed(self)
        return own and needed and NEAR_SHARE * load.buffer.elements >= max(x.buffer.elements for x in self.loads)

    def lanes(self, width: int, inner: LoopAxis) -> int:
        """Return the elements of a vector of `width` bytes along the loop `inner`, measured by the widest contiguous access."""
        wide = [x.dtype for x in (*self.loads, *self.stores) if inner.axes and x.step(inner.axes[-1]) == 1]
        return lanes_of(width, wide or [x.dtype for x in self.stores])

    def mode(self, load: Load, inner: LoopAxis, lanes: int) -> str:
        """Return how a load is read along `inner`."""
        return access_mode(load, inner, lanes)


@functools.lru_cache(maxsize=256)  # asked once for each schedule of a space
def reduce_shape(problem: ReduceProblem, picks: bool = True) -> ReduceShape:
    """Return loops, loads and passes of a reduce problem; with `picks`, sums of one term are no part of the passes."""
    program = problem.program
    extents = program.extents
    loads = tuple(find_loads(program).values())
    iotas = {e.attrs[0] for e in program.walk() if e.op == "iota"}
    positions = {a for e in problem.reductions if e.op in ("argmax", "argmin") for a in problem.reduced}
    pinned = frozenset(iotas).union(positions, *(x.pinned for x in loads))
    groups, picked = _passes(problem, picks)
    stores = tuple(_store(o, name, extents) for o, name in zip(program.outputs, output_names(program), strict=True))
    accesses = [dict(x.steps) for x in (*loads, *stores) if x.steps is not None]
    return ReduceShape(
        problem,
        loads,
        join_axes(problem.rows, extents, accesses, pinned, "r"),
        join_axes(problem.reduced, extents, accesses, pinned, "k"),
        groups,
        stores,
        picked,
    )


def _store(out: Output, name: str, extents: Mapping[str, int]) -> Load:
    steps = {a: s for a, s in row_major(out.axes, extents).items() if extents[a] > 1}
    return Load(out.expr, Input(name, out.shape, out.dtype), name, tuple(sorted(steps.items())), 0, frozenset())


def _pick(node: Expr) -> Pick | None:
    """Return the sum as the one term that it picks, or None."""
    (axis, *others), body = nest(node)
    if node.op != "sum" or others or body.op != "where" or body.args[2].op != "const" or body.args[2].attrs[0] != 0:
        return None
    condition, value, _ = body.args
    if condition.op != "eq" or any(e.row.kind is Kind.REDUCE for e in condition.walk()):
        return None
    for position, at in (condition.args, condition.args[::-1]):
        if position.op == "iota" and position.attrs[0] == axis and axis not in at.axes and not at.dtype.is_float:
            alone = not any(e.row.kind is Kind.REDUCE for e in value.walk())
            return Pick(node, axis, at, value) if alone and axis in value.axes else None
    return None


def _passes(problem: ReduceProblem, pick: bool) -> tuple[tuple[tuple[Reduction, ...], ...], tuple[Pick, ...]]:
    """Group the reductions by how many others they wait for; those of one group share a pass over the elements.

    Sums that pick a term are left out of the passes where others make some.
    """
    picks = [p for node in problem.reductions if pick and (p := _pick(node)) is not None]
    single = len(picks) == len(problem.reductions)
    picked = {p.node.digest for p in picks if not single}
    level: dict[str, int] = {}
    groups: dict[int, list[Reduction]] = {}
    for number, node in enumerate(problem.reductions):
        body = nest(node)[1]
        if node.digest in picked:
            continue
        inside = [level[e.digest] for e in body.walk() if e.digest in level]
        level[node.digest] = 1 + max(inside, default=-1)
        groups.setdefault(level[node.digest], []).append(Reduction(node, body, number))
    return tuple(tuple(groups[n]) for n in sorted(groups)), () if single else tuple(picks)


def walk_elements(roots: Iterable[Expr], stop: Iterable[str], shape: ReduceShape) -> Iterator[Expr]:
    """Yield the nodes that an element's computation visits: what varies along the reduced axes, down to loads and `stop`."""
    stopped = frozenset(stop)
    seen: set[str] = set()
    leaves = {x.expr.digest for x in shape.loads}
    stack = list(roots)
    while stack:
        e = stack.pop()
        if e.digest in seen or not shape.varies(e):
            continue
        seen.add(e.digest)
        yield e
        if e.digest not in stopped and e.digest not in leaves:
            stack.extend(e.args)


def pass_roots(shape: ReduceShape) -> list[list[Expr]]:
    """Return what each pass computes for an element: the bodies of its reductions, and at last the outputs that have elements."""
    roots = [[r.body for r in group] for group in shape.passes]
    return [*roots, [x.expr for x in shape.element_stores]] if shape.problem.keeps else roots


@functools.lru_cache(maxsize=256)
def _needed(shape: ReduceShape) -> frozenset[str]:
    """Return what the passes compute or load for an element."""
    return frozenset(e.digest for e in walk_elements([r for group in pass_roots(shape) for r in group], (), shape))


def kept_values(shape: ReduceShape, elements: int) -> list[list[Expr]]:
    """Return for each pass the element values that are held in registers for later passes, as late as possible.

    Heavy ones always; others where a thread has few `elements`, if they take an operation besides reading a load.
    """
    roots = pass_roots(shape)
    kept: list[list[Expr]] = [[] for _ in roots]
    leaves = {x.expr.digest for x in shape.loads}
    for n in range(len(roots) - 1):
        earlier = {e.digest for group in kept for e in group}
        here = {e.digest: e for e in walk_elements(roots[n], earlier, shape) if e.digest not in leaves | earlier}
        later = [r for group in roots[n + 1 :] for r in group]
        frontier = [e for e in walk_elements(later, earlier | set(here), shape) if e.digest in here]
        kept[n] = [e for e in frontier if _worth_keeping(list(walk_elements([e], earlier, shape)), elements)]
    return kept


def _worth_keeping(nodes: list[Expr], elements: int) -> bool:
    """Whether a value that takes these nodes to compute is kept."""
    light = sum(e.op not in ("cast", "read", "access") for e in nodes)
    return any(e.op in HEAVY for e in nodes) or (light >= 1 and elements <= LIGHT_ELEMENTS)


def row_registers(shape: ReduceShape, elements: int, inner: LoopAxis, lanes: int) -> int:
    """Return the most registers that hold `elements` of a row between two passes: loads still needed, and kept values."""
    return math.ceil(elements * _live_bytes(shape, min(elements, LIGHT_ELEMENTS + 1), inner, lanes) / 4)


@functools.lru_cache(maxsize=1024)
def _live_bytes(shape: ReduceShape, elements: int, inner: LoopAxis, lanes: int) -> float:
    """Return the most register bytes of one element between two passes."""
    held = [x for x in shape.loads if shape.is_held(x)]
    roots, kept = pass_roots(shape), kept_values(shape, elements)
    most, known = 0.0, list[Expr]()
    for n in range(len(roots)):
        later = [r for group in roots[n:] for r in group]
        needed = {e.digest for e in walk_elements(later, [e.digest for e in known], shape)}
        live = sum(_load_bytes(x, shape, inner, lanes) for x in held if x.expr.digest in needed)
        live += sum(max(e.dtype.accumulator.bytes, 4) for e in known if e.digest in needed)
        most = max(most, live)
        known += kept[n]
    return most


def _load_bytes(load: Load, shape: ReduceShape, inner: LoopAxis, lanes: int) -> float:
    """Return the register bytes of one element of a held load: as in memory for a vector, else a value, of its own or for all lanes."""
    mode = shape.mode(load, inner, lanes)
    if mode == "vector":
        return load.dtype.bytes
    return max(load.dtype.accumulator.bytes, 4) / (lanes if mode == "uniform" else 1)


def wide_dtype(shape: ReduceShape) -> DType:
    """Return the widest type that a reduction accumulates in."""
    return max((r.node.dtype.accumulator for group in shape.passes for r in group), key=lambda d: d.bytes)
