"""What a kernel-sized program asks of a family: its anatomy, found from the program alone.

A kernel is a `Program` whose outputs are made in one pass. The families are
point (no reduction), reduce (every reduction runs over the same axes) and contract (products summed over shared axes,
optionally several that share the left operand, row statistics of the left operand riding along, and any pointwise
epilogue; several outputs if each sums products of its own with the same left operand). Each finder returns a problem or
the reason why the family cannot serve the program.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from eqsat.codegen.alignment import alignment
from eqsat.ir import Expr, Output, Program, rename
from eqsat.ops import Kind

if TYPE_CHECKING:
    from eqsat.codegen.online import OnlineProblem


@dataclass(frozen=True, slots=True)
class PointProblem:
    """Every output element is a pointwise function of loads; `axes` in output order, which all outputs share."""

    program: Program
    axes: tuple[str, ...]
    family: str = "point"

    @property
    def output(self) -> Output:
        """The first output, whose layout is that of all."""
        return self.program.outputs[0]


@dataclass(frozen=True, slots=True)
class ReduceProblem:
    """Reductions over `reduced` for each position of `rows`; an output keeps the reduced axes or loses them.

    All outputs have the rows in the same order, and those that keep them the reduced axes. `reductions` are the outermost reduction nodes in dependency order (softmax: the maximum, then the sum that uses it);
    a reduction over several axes is a nest of nodes of the same op and counts as its outermost node.
    """

    program: Program
    rows: tuple[str, ...]
    reduced: tuple[str, ...]
    reductions: tuple[Expr, ...]
    family: str = "reduce"

    @property
    def output(self) -> Output:
        """The first output."""
        return self.program.outputs[0]

    @property
    def kept(self) -> tuple[Output, ...]:
        """The outputs that vary over the reduced axes (softmax): written by a last pass."""
        return tuple(o for o in self.program.outputs if set(self.reduced) & o.expr.axes)

    @property
    def lost(self) -> tuple[Output, ...]:
        """The outputs that vary over the rows alone (sum): one element for each row."""
        return tuple(o for o in self.program.outputs if not set(self.reduced) & o.expr.axes)

    @property
    def keeps(self) -> bool:
        """Whether an output varies over the reduced axes."""
        return bool(self.kept)

    @property
    def row_count(self) -> int:
        """Number of independent reductions."""
        ext = self.program.extents
        return math.prod(ext[a] for a in self.rows)

    @property
    def length(self) -> int:
        """Elements reduced for each row."""
        ext = self.program.extents
        return math.prod(ext[a] for a in self.reduced)


@dataclass(frozen=True, slots=True)
class Contraction:
    """`node` = Σ over the problem's k axes of a·b; `a` varies over m and k, `b` over n and k (and both over batch)."""

    node: Expr
    a: Expr
    b: Expr


@dataclass(frozen=True, slots=True)
class ContractProblem:
    """One or more contractions over the same axes with the same left operand, statistics of it, and an epilogue.

    `statistics` are reductions over the k axes of expressions that read only what `a` reads (row sums riding the tiles).
    The epilogue is the output expression; contraction and statistic nodes in it are accumulators. A part of a larger kernel
    computes only one of the program's outputs, the one at `output_index`.
    """

    program: Program
    batch: tuple[str, ...]
    m: tuple[str, ...]
    n: tuple[str, ...]
    k: tuple[str, ...]
    contractions: tuple[Contraction, ...]
    statistics: tuple[Expr, ...]
    family: str = "contract"
    output_index: int = 0

    @property
    def output(self) -> Output:
        """The one output."""
        return self.program.outputs[self.output_index]

    @property
    def parts(self) -> tuple[ContractProblem, ...]:
        """Itself: it is one part."""
        return (self,)

    def extent(self, axes: tuple[str, ...]) -> int:
        """Product of the extents of `axes`."""
        ext = self.program.extents
        return math.prod(ext[a] for a in axes)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Extents (batch, m, n, k)."""
        return self.extent(self.batch), self.extent(self.m), self.extent(self.n), self.extent(self.k)

    @property
    def flops(self) -> int:
        """Multiply-adds of all contractions, counted as two operations."""
        b, m, n, k = self.shape
        return 2 * b * m * n * k * len(self.contractions)


@dataclass(frozen=True, slots=True)
class GroupedContractProblem:
    """Contractions of one left operand that make several outputs, each with right operands, columns and an epilogue of its own.

    Each of the `parts` computes one output of `program`, in order; the left operand and its statistics, the batch and summed
    axes are those of all, but for the names of the row axes: where queries and keys are made of the same rows, each part calls
    them as it likes. Where columns of several parts have the same axes, they are still counted apart.
    """

    program: Program
    parts: tuple[ContractProblem, ...]
    family: str = "contract"

    @property
    def statistics(self) -> tuple[Expr, ...]:
        """The row statistics, which every part has at hand."""
        return self.parts[0].statistics

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Extents (batch, m, n, k), n the columns of all parts."""
        b, m, _, k = self.parts[0].shape
        return b, m, sum(p.shape[2] for p in self.parts), k

    @property
    def flops(self) -> int:
        """Multiply-adds of all contractions, counted as two operations."""
        return sum(p.flops for p in self.parts)


@dataclass(frozen=True, slots=True)
class SummedContractProblem:
    """A sum of contractions, each over axes of its own: one accumulator, to which each adds its products; and an epilogue.

    Each of the `terms` is one of the contractions, with its own operands and summed axes, and the rows, columns and batch of all;
    `node` is their sum.
    """

    program: Program
    terms: tuple[ContractProblem, ...]
    node: Expr
    family: str = "contract"

    @property
    def parts(self) -> tuple[ContractProblem, ...]:
        """The one output: the first term, as if its contraction were the sum."""
        lead = self.terms[0]
        whole = dataclasses.replace(lead.contractions[0], node=self.node)
        return (dataclasses.replace(lead, contractions=(whole,)),)

    @property
    def statistics(self) -> tuple[Expr, ...]:
        """No statistics: the terms have no left operand in common."""
        return ()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Extents (batch, m, n, k), k the summed positions of all terms."""
        b, m, n, _ = self.terms[0].shape
        return b, m, n, sum(t.shape[3] for t in self.terms)

    @property
    def flops(self) -> int:
        """Multiply-adds of all contractions, counted as two operations."""
        return sum(t.flops for t in self.terms)


Contract: TypeAlias = ContractProblem | GroupedContractProblem
Problem: TypeAlias = "PointProblem | ReduceProblem | Contract | SummedContractProblem | OnlineProblem"


def nest(node: Expr) -> tuple[tuple[str, ...], Expr]:
    """Return (axes, body) of a nest of reductions of one op: Σ_i Σ_j e gives ((i, j), e). Searches for a place do not nest."""
    axes: list[str] = [node.attrs[0]]
    body = node.args[0]
    while _nests(body, node):
        axes.append(body.attrs[0])
        body = body.args[0]
    return tuple(axes), body


def _nests(inner: Expr, outer: Expr) -> bool:
    return inner.op == outer.op and outer.op not in ("argmax", "argmin")


def outermost_reductions(program: Program) -> tuple[Expr, ...]:
    """Return the reduction nodes that are not the inside of a nest of their own op, operands first."""
    nodes = [e for e in program.walk() if e.row.kind is Kind.REDUCE]
    written = {o.expr.digest for o in program.outputs}
    users: dict[str, list[Expr]] = {}
    for e in program.walk():
        for a in e.args:
            users.setdefault(a.digest, []).append(e)
    inside = {
        e.digest for e in nodes if e.digest not in written and users[e.digest] and all(_nests(e, u) for u in users[e.digest])
    }
    return tuple(e for e in nodes if e.digest not in inside)


def point_problem(program: Program) -> PointProblem | str:
    """Return the point problem, or why it is none."""
    if outermost_reductions(program):
        return "it reduces"
    if refusal := _access_refusal(program):
        return refusal
    layouts = {tuple(a for a in o.axes if a) for o in program.outputs}
    if len(layouts) > 1:
        return f"its outputs are laid out over different axes {sorted(layouts)}"
    return PointProblem(program, layouts.pop())


def _access_refusal(program: Program) -> str | None:
    for e in program.walk():
        if e.op == "access" and e.args[0].op != "read":
            return "an access of a computed value is not inside a kernel: materialise the value or move the access to the reads"
    return None


def reduce_problem(program: Program) -> ReduceProblem | str:
    """Return the reduce problem, or why it is none."""
    found = outermost_reductions(program)
    if not found:
        return "it does not reduce"
    if refusal := _access_refusal(program):
        return refusal
    sets = {frozenset(nest(e)[0]) for e in found}
    if len(sets) > 1:
        return f"its reductions run over different axes {[sorted(s) for s in sets]}"
    over = next(iter(sets))
    rows = frozenset().union(*(e.axes for e in found), *(o.expr.axes - over for o in program.outputs))
    if any(e.axes & over for e in found):
        return "a reduction depends on the reduced axes from outside"
    for out in program.outputs:
        if out.expr.axes & over not in (frozenset(), over):
            return "an output keeps some of the reduced axes only"
        if out.expr.axes - over != rows:
            return "an output loses a row axis"
    row_orders = {tuple(a for a in o.axes if a in rows) for o in program.outputs}
    reduced_orders = {tuple(a for a in o.axes if a in over) for o in program.outputs} - {()}
    if len(row_orders) > 1 or len(reduced_orders) > 1:
        return "its outputs lay their axes out in different orders"
    reduced = reduced_orders.pop() if reduced_orders else _load_order(program, over)
    first = {e.digest: i for i, e in enumerate(program.walk())}
    return ReduceProblem(program, row_orders.pop(), reduced, tuple(sorted(found, key=lambda e: first[e.digest])))


def _load_order(program: Program, axes: frozenset[str]) -> tuple[str, ...]:
    """Order `axes` as the largest buffer that is read over all of them lays them out."""
    best: tuple[int, tuple[str, ...]] = (-1, tuple(sorted(axes)))
    for e in program.walk():
        if e.op == "read" and axes <= e.axes:
            best = max(best, (e.type.elements, tuple(a for a in e.attrs[1] if a in axes)))
    return best[1]


def contract_problem(program: Program) -> Contract | SummedContractProblem | str:
    """Return the contract problem, or why it is none."""
    if refusal := _access_refusal(program):
        return refusal
    if len(program.outputs) == 1:
        alone = _contract_of(program)
        summed = _summed_of(program) if isinstance(alone, str) else None
        return summed or alone
    found: list[ContractProblem] = []
    for o in program.outputs:
        one = _contract_of(Program(program.inputs, (o,)))
        if isinstance(one, str):
            return f"of its several outputs, {o.name!r}: {one}"
        found.append(one)
    return _grouped(program, found)


def _contract_of(program: Program) -> ContractProblem | str:
    """Return the contract problem of a program with one output, or why it is none."""
    contractions: list[Contraction] = []
    others: list[Expr] = []
    for e in outermost_reductions(program):
        c = _contraction(e)
        if c is None:
            others.append(e)
        else:
            contractions.append(c)
    if not contractions:
        return "no product of two operands with free axes on both sides is summed"
    last = next((a for a in reversed(program.outputs[0].axes) if a), "")
    lead = contractions[0]
    if last in lead.a.axes - lead.b.axes:  # the innermost output axis belongs to n
        contractions = [Contraction(c.node, c.b, c.a) for c in contractions]
    contractions = [c if c.a == contractions[0].a else Contraction(c.node, c.b, c.a) for c in contractions]
    return _checked_contract(program, contractions, others)


def _summed_of(program: Program) -> SummedContractProblem | None:
    """Return the problem of a sum of contractions over different axes, None if the program's reductions are no such sum."""
    nodes = outermost_reductions(program)
    found = [c for e in nodes if (c := _contraction(e)) is not None]
    if len(nodes) < 2 or len(found) < len(nodes):
        return None
    by_node = {c.node: c for c in found}
    sums = (e for e in program.walk() if e.op == "add" and set(_summands(e)) == by_node.keys())
    node = next((e for e in sums if len(_summands(e)) == len(found)), None)
    if node is None:
        return None
    terms: list[ContractProblem] = []
    out = program.outputs[0]
    last = next((a for a in reversed(out.axes) if a), "")
    for c in (by_node[e] for e in _summands(node)):
        turned = Contraction(c.node, c.b, c.a) if last in c.a.axes - c.b.axes else c
        one = _checked_contract(program, [turned], [])
        if isinstance(one, str) or (terms and (one.batch, one.m, one.n) != (terms[0].batch, terms[0].m, terms[0].n)):
            return None
        terms.append(one)
    return SummedContractProblem(program, tuple(sorted(terms, key=lambda t: -t.shape[3])), node)


def _summands(e: Expr) -> list[Expr]:
    return [x for a in e.args for x in _summands(a)] if e.op == "add" else [e]


def _grouped(program: Program, found: list[ContractProblem]) -> GroupedContractProblem | str:
    """Return the problem of several outputs, given that of each, or why one kernel cannot make them."""
    lead = found[0]
    over = frozenset(lead.k)
    names: list[dict[str, str]] = []  # of each part's axes in the first part
    for p in found:
        by = alignment(lead.contractions[0].a, p.contractions[0].a)
        if by is None or frozenset(p.k) != over or any(by[x] != x for x in (*p.k, *p.batch)):
            return "its outputs do not contract the same left operand over the same axes"
        if p.batch != lead.batch or tuple(by[x] for x in p.m) != lead.m:
            return "its outputs have different rows, or lay them out in different orders"
        names.append(by)
    nodes = [c.node for p in found for c in p.contractions]
    if len(set(nodes)) < len(nodes):
        return "two outputs need the same contraction: it would be computed for each"
    statistics = tuple(dict.fromkeys(rename(s, by) for p, by in zip(found, names, strict=True) for s in p.statistics))
    k = _load_order(program, over) if len(over) > 1 else lead.k
    parts = []
    for i, (p, by) in enumerate(zip(found, names, strict=True)):
        own = tuple(rename(s, {x: y for y, x in by.items()}) for s in statistics)
        parts.append(dataclasses.replace(p, program=program, k=k, statistics=own, output_index=i))
    return GroupedContractProblem(program, tuple(parts))


def _contraction(node: Expr) -> Contraction | None:
    if node.op != "sum":
        return None
    axes, body = nest(node)
    if body.op != "mul":
        return None
    a, b = body.args
    over = set(axes)
    if not (over <= a.axes and over <= b.axes) or any(e.row.kind is Kind.REDUCE for x in (a, b) for e in x.walk()):
        return None
    return Contraction(node, a, b) if a.axes - b.axes and b.axes - a.axes else None


def _checked_contract(program: Program, contractions: list[Contraction], others: list[Expr]) -> ContractProblem | str:
    lead = contractions[0]
    over = frozenset(nest(lead.node)[0])
    for c in contractions:
        if frozenset(nest(c.node)[0]) != over or c.a != lead.a or c.b.axes != lead.b.axes:
            return "its contractions do not share the left operand and the axes"
    batch = (lead.a.axes & lead.b.axes) - over
    m, n = lead.a.axes - lead.b.axes, lead.b.axes - lead.a.axes
    out = program.outputs[0]
    if out.expr.axes != batch | m | n:
        return "the output does not vary over exactly the batch, row and column axes"
    reads = {e for e in lead.a.walk() if e.op == "read"}
    for s in others:
        inside = {e for e in s.walk() if e.op == "read"}
        if frozenset(nest(s)[0]) != over or not s.axes <= batch | m or not inside <= reads or s.op not in ("sum", "max", "min"):
            return "a reduction beside the contraction is not a row statistic of its left operand"
        if any(e.row.kind is Kind.REDUCE for e in nest(s)[1].walk()):
            return "a row statistic depends on another reduction"
    order = [a for a in out.axes if a]
    return ContractProblem(
        program,
        tuple(a for a in order if a in batch),
        tuple(a for a in order if a in m),
        tuple(a for a in order if a in n),
        _load_order(program, over) if len(over) > 1 else tuple(over),
        tuple(contractions),
        tuple(others),
    )
