"""The dependent fold: sums weighted by the exponential of a score's distance to its own maximum, in one pass over the keys.

With s the score of a row and a key and M = max_k s, the accumulators are Σ_k e^(s − M)·v and Σ_k e^(s − M). The maximum is
not known before all keys are seen, so a kernel carries the maximum of the keys so far and rebases what it has added up by
e^(M_old − M_new) whenever that grows (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). Finding the
form in a program needs no name of a pattern: it is read off the reductions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eqsat.codegen.problem import Contraction, nest
from eqsat.ir import Expr, Output, Program, apply, const
from eqsat.ops import Kind
from eqsat.types import DType


@dataclass(frozen=True, slots=True)
class Accumulated:
    """`node` = Σ over the keys of `weight`·`value`; `weight` is e^(s − M), maybe cast; `axes` are those of the value alone.

    Without axes of its own the accumulator is one number for each row.
    """

    node: Expr
    weight: Expr
    value: Expr
    axes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OnlineProblem:
    """Accumulators over the keys `over` for each row, and outputs that are pointwise in them.

    Rows are the axes of the maximum: `batch` those on which keys or values depend, `m` the others (a tile of them shares
    its keys). `score` may hold one contraction over the axes `d`: `a` varies over rows, `b` over keys. `shift` is what the
    exponents subtract: the maximum `pivot`, or the greater of it and the constant `floor` (-inf if there is none).
    `statistics` are reductions over the axes `d` that the score needs beside the contraction; they read what `a` reads, and vary with
    the rows alone.
    """

    program: Program
    over: tuple[str, ...]
    batch: tuple[str, ...]
    m: tuple[str, ...]
    d: tuple[str, ...]
    score: Expr
    pivot: Expr
    shift: Expr
    floor: float
    contraction: Contraction | None
    accumulators: tuple[Accumulated, ...]
    statistics: tuple[Expr, ...] = ()
    family: str = "online"

    @property
    def output(self) -> Output:
        """The first output."""
        return self.program.outputs[0]

    @property
    def rows(self) -> tuple[str, ...]:
        """The axes of the maximum."""
        return (*self.batch, *self.m)

    @property
    def wide(self) -> tuple[Accumulated, ...]:
        """The accumulators with axes of their own."""
        return tuple(a for a in self.accumulators if a.axes)

    @property
    def dtype(self) -> DType:
        """The type in which it computes: f64 where a score or a sum has it, else f32."""
        kinds = (self.score.dtype, *(a.node.dtype for a in self.accumulators))
        return DType.F64 if DType.F64 in kinds else DType.F32

    def extent(self, axes: Sequence[str]) -> int:
        """Product of the extents of `axes`."""
        ext = self.program.extents
        return math.prod(ext[a] for a in axes)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Extents (batch, m, keys, d, values): d is 0 without a contraction, values counts those of all accumulators."""
        d = self.extent(self.d) if self.contraction else 0
        return (
            self.extent(self.batch),
            self.extent(self.m),
            self.extent(self.over),
            d,
            sum(self.extent(a.axes) for a in self.wide),
        )

    @property
    def flops(self) -> int:
        """Multiply-adds of the contraction and of the weighted sums, counted as two operations; masks are not looked at."""
        b, m, k, d, n = self.shape
        return 2 * b * m * k * (d + n)


def online_problem(program: Program) -> OnlineProblem | str:
    """Return the dependent fold that the program poses, or why it poses none."""
    tops = outer_reductions(o.expr for o in program.outputs)
    sums = [e for e in tops if e.op == "sum"]
    if not sums:
        return "it sums no exponentials"
    if other := next((e for e in tops if e.op not in ("sum", "max")), None):
        return f"a reduction {other.op!r} is neither a weighted sum nor the maximum"
    for e in _nodes(program):
        if e.op == "access" and e.args[0].op != "read":
            return "an access of a computed value is not inside a kernel: materialise the value or move the access to the reads"
    found = [_weighted(e) for e in sums]
    if refusal := next((f for f in found if isinstance(f, str)), None):
        return refusal
    return _checked(program, [f for f in found if not isinstance(f, str)], [e for e in tops if e.op == "max"])


@dataclass(frozen=True, slots=True)
class _Weighted:
    """A sum over `over` of e^(score − shift)·value as it was found."""

    node: Expr
    over: frozenset[str]
    weight: Expr
    score: Expr
    shift: Expr
    value: Expr


def _nodes(program: Program) -> Iterable[Expr]:
    seen: dict[str, Expr] = {e.digest: e for o in program.outputs for e in o.expr.walk()}
    return seen.values()


def outer_reductions(roots: Iterable[Expr]) -> list[Expr]:
    """Return the reductions that are reached from `roots` without crossing another one, each once."""
    out: dict[str, Expr] = {}
    seen: set[str] = set()
    stack = list(roots)[::-1]
    while stack:
        e = stack.pop()
        if e.digest in seen:
            continue
        seen.add(e.digest)
        if e.row.kind is Kind.REDUCE:
            out[e.digest] = e
        else:
            stack.extend(reversed(e.args))
    return list(out.values())


def bare(e: Expr) -> Expr:
    """Return `e` without the casts between float types around it: each rounds, and none changes what is meant."""
    while e.op == "cast" and e.dtype.is_float and e.args[0].dtype.is_float:
        e = e.args[0]
    return e


def _factors(e: Expr) -> list[Expr]:
    """Return the factors of a product, casts between float types opened."""
    inner = bare(e)
    if inner.op == "mul" and inner.dtype.is_float:
        return [f for a in inner.args for f in _factors(a)]
    return [e]


def _exponent(e: Expr) -> tuple[Expr, Expr] | None:
    """Return (score, shift) of e^(score − shift) if the shift holds a maximum and the score does not."""
    inner = bare(e)
    if inner.op != "exp":
        return None
    body = bare(inner.args[0])
    if body.op != "sub" or _maximum(body.args[1]) is None:
        return None
    return bare(body.args[0]), bare(body.args[1])


def _maximum(shift: Expr) -> tuple[Expr, float] | None:
    """Return (max node, constant below which it is not used) of a shift."""
    e = bare(shift)
    if e.op == "max":
        return e, -math.inf
    if e.op == "maximum":
        for x, c in (e.args, e.args[::-1]):
            if bare(x).op == "max" and bare(c).op == "const":
                return bare(x), float(bare(c).attrs[0])
    return None


def _weighted(node: Expr) -> _Weighted | str:
    axes, body = nest(node)
    factors = _factors(body)
    weights = [f for f in factors if _exponent(f)]
    if len(weights) != 1:
        return "a sum without the exponential of a score minus its maximum" if not weights else "a sum of powers of the weights"
    exponent = _exponent(weights[0])
    assert exponent
    rest = [f for f in factors if f is not weights[0]]
    value = rest[0] if rest else const(1.0, body.dtype)
    for f in rest[1:]:
        value = apply("mul", value, f)
    return _Weighted(node, frozenset(axes), weights[0], *exponent, value)


def _checked(program: Program, found: list[_Weighted], maxima: list[Expr]) -> OnlineProblem | str:
    first = found[0]
    over, score, shift = first.over, first.score, first.shift
    maximum = _maximum(shift)
    assert maximum
    pivot, floor = maximum
    if any(f.over != over or f.score != score or bare(f.shift) != shift for f in found):
        return "its weighted sums do not share the keys, the score and the maximum"
    for e in (pivot, *maxima):
        axes, body = nest(e)
        if frozenset(axes) != over or bare(body) != score:
            return "a maximum is not that of the score over the keys"
    if not score.dtype.is_float:
        return f"the score is {score.dtype}, not a float"
    if over & score.axes != over:
        return "the score does not vary over all keys"
    inner = _inner(score, over)
    if isinstance(inner, str):
        return inner
    contraction, statistics = inner
    rows = score.axes - over
    refusal = _value_refusal(found, contraction, rows | over) or _output_refusal(program, found, rows)
    return refusal or _problem(program, found, contraction, statistics, pivot, floor)


def _inner(score: Expr, over: frozenset[str]) -> tuple[Contraction | None, tuple[Expr, ...]] | str:
    """Return the one contraction inside the score (None if there is none), the rows' operand first, and statistics of that."""
    found = outer_reductions([score])
    if not found:
        return None, ()
    products = [e for e in found if e.axes & over]
    if len(products) != 1:
        return "the score holds more than one reduction"
    (node,) = products
    axes, body = nest(node)
    if node.op != "sum" or any(e.row.kind is Kind.REDUCE for e in body.walk()):
        return "the reduction inside the score is not a plain sum of products"
    sides: tuple[list[Expr], list[Expr]] = ([], [])
    for f in _factors(body):
        sides[bool(f.axes & over)].append(f)
    if not all(sides):
        return "the sum inside the score is not a product of one operand for the rows and one for the keys"
    a, b = (_product(side) for side in sides)
    if not (set(axes) <= a.axes and set(axes) <= b.axes):
        return "an operand of the contraction inside the score does not vary over the summed axes"
    statistics = tuple(e for e in found if e != node)
    read = {e for e in a.walk() if e.op in ("read", "access")}
    for s in statistics:
        along, inside = nest(s)
        if set(along) != set(axes) or any(e.row.kind is Kind.REDUCE for e in inside.walk()):
            return "a statistic beside the contraction inside the score is over other axes, or needs another"
        if any(e.op in ("read", "access") and e not in read for e in inside.walk()):
            return "a statistic beside the contraction inside the score reads something else than the rows' operand"
    return Contraction(node, a, b), statistics


def _product(factors: list[Expr]) -> Expr:
    out = factors[0]
    for f in factors[1:]:
        out = apply("mul", out, f)
    return out


def _value_refusal(found: list[_Weighted], contraction: Contraction | None, scored: frozenset[str]) -> str | None:
    for f in found:
        inner = {e.digest for e in outer_reductions([f.value])}
        allowed = {contraction.node.digest} if contraction and f.value.axes <= scored else set()
        if inner - allowed:
            return "a value that is summed with weights is itself reduced"
    return None


def _output_refusal(program: Program, found: list[_Weighted], rows: frozenset[str]) -> str | None:
    over = found[0].over
    own = {f.node.digest: f.value.axes - rows - over for f in found}
    for out in program.outputs:
        tops = outer_reductions([out.expr])
        if not tops:
            return f"output {out.name!r} uses no accumulator"
        groups = {own.get(e.digest, frozenset()) for e in tops} - {frozenset()}
        if len(groups) > 1:
            return f"output {out.name!r} joins accumulators over different value axes"
        if out.expr.axes != rows.union(*groups):
            return f"output {out.name!r} varies over {sorted(out.expr.axes)}, not over the rows and one accumulator's value axes"
    return None


def _problem(
    program: Program,
    found: list[_Weighted],
    contraction: Contraction | None,
    statistics: tuple[Expr, ...],
    pivot: Expr,
    floor: float,
) -> OnlineProblem:
    first = found[0]
    over, score = first.over, first.score
    rows = score.axes - over
    order = _order(program)
    own = [frozenset(f.value.axes - rows - over) for f in found]
    keyed = [contraction.b.axes] if contraction else []
    keyed += [f.value.axes for f, axes in zip(found, own, strict=True) if axes]
    batch = rows & frozenset().union(*keyed)
    d = frozenset(nest(contraction.node)[0]) if contraction else frozenset()

    def sort(axes: frozenset[str]) -> tuple[str, ...]:
        return tuple(sorted(axes, key=order.__getitem__))

    accumulators = tuple(Accumulated(f.node, f.weight, f.value, sort(axes)) for f, axes in zip(found, own, strict=True))
    return OnlineProblem(
        program, sort(over), sort(batch), sort(rows - batch), sort(d), score, pivot, first.shift, floor, contraction, accumulators,
        statistics,
    )  # fmt: skip


def _order(program: Program) -> dict[str, int]:
    """Rank the axes as the outputs lay them out, then as the reads do, the largest first."""
    reads = sorted((e for e in _nodes(program) if e.op == "read"), key=lambda e: -e.type.elements)
    named = [a for o in program.outputs for a in o.axes] + [a for e in reads for a in e.attrs[1]]
    return {a: i for i, a in enumerate(dict.fromkeys([*(a for a in named if a), *program.extents]))}
