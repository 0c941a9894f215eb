"""What a score's masks say of a whole tile: whether every position of it is masked out, or none is.

Comparisons of affine forms of positions are decided over a box by interval arithmetic: i − k ≥ 0 holds everywhere if it holds
for the least i and the greatest k. The answers are conditions in C over the first and last position of each axis, to be
evaluated once for each tile; nothing here knows a mask by name.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from eqsat.ir import Expr, Output, Program, apply, const, iota, rebuild, substitute
from eqsat.ops import Kind
from eqsat.oracle import evaluate
from eqsat.types import DType

Uniform = Callable[[Expr], str | None]

ALWAYS, NEVER = "1", ""  # conditions that need no test
SURE = 0.95  # of a share that was counted on a grid, this much is sure


@dataclass(frozen=True, slots=True)
class Box:
    """A tile: for each axis the C text of its first and last position, and its extent.

    `uniform` prints a whole-number value that is the same everywhere in the tile, or returns None.
    """

    span: Mapping[str, tuple[str, str]]
    extents: Mapping[str, int]
    uniform: Uniform = lambda _: None


def spans(
    axes: Sequence[tuple[str, int]], first: str, last: str, prefix: str, ctype: str
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Return the spans of (axis, extent)s, outer to inner, over positions `first` to `last` of them counted as one.

    Where the positions run past the end of an inner axis, the axis spans all of its extent. The lines name the ends.
    """
    out: dict[str, tuple[str, str]] = {}
    lines: list[str] = []
    step, wraps = math.prod(n for _, n in axes), ""
    for axis, extent in axes:
        step //= max(extent, 1)
        ends = [f"({x}) / {step}" if step > 1 else f"({x})" for x in (first, last)]
        if wraps:
            ends = [f"{wraps} ? {x} % {extent} : {edge}" for x, edge in zip(ends, (0, extent - 1), strict=True)]
        names = f"{prefix}{len(lines)}_first", f"{prefix}{len(lines)}_last"
        lines.append(f"const {ctype} {names[0]} = {ends[0]}, {names[1]} = {ends[1]};")
        out[axis] = names
        wraps = f"({first}) / {step} == ({last}) / {step}" if step > 1 else ""
    return out, lines


@dataclass(frozen=True, slots=True)
class _Affine:
    """constant + Σ factor·position + Σ factor·uniform value (by its C text)."""

    factors: tuple[tuple[str, int], ...] = ()
    constant: int = 0
    values: tuple[tuple[str, int], ...] = ()

    def scaled(self, by: int) -> _Affine:
        return _Affine(
            tuple((a, f * by) for a, f in self.factors), self.constant * by, tuple((v, f * by) for v, f in self.values)
        )

    def plus(self, other: _Affine) -> _Affine:
        return _Affine(_sum(self.factors, other.factors), self.constant + other.constant, _sum(self.values, other.values))

    def bounds(self, extents: Mapping[str, int]) -> tuple[float, float]:
        """Return the least and the greatest value over all positions."""
        if self.values:
            return -math.inf, math.inf
        ends = [sorted((0, f * (extents[a] - 1))) for a, f in self.factors]
        return self.constant + sum(low for low, _ in ends), self.constant + sum(high for _, high in ends)

    def text(self, box: Box, greatest: bool) -> str:
        """Print its least or greatest value over the box."""
        terms = [(box.span[a][(f > 0) == greatest], f) for a, f in self.factors]
        printed = [x if f == 1 else f"{f} * {x}" for x, f in (*terms, *self.values)]
        return " + ".join([*printed, *([str(self.constant)] if self.constant or not printed else [])])


def _sum(a: tuple[tuple[str, int], ...], b: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    out = dict(a)
    for name, factor in b:
        out[name] = out.get(name, 0) + factor
    return tuple((name, factor) for name, factor in sorted(out.items()) if factor)


def _affine(e: Expr, box: Box) -> _Affine | None:
    if e.op == "iota" and e.attrs[0] in box.span:
        return _Affine(((e.attrs[0], 1),))
    if e.op == "const" and not isinstance(e.attrs[0], bool):
        value = float(e.attrs[0])
        return _Affine(constant=int(value)) if value.is_integer() and abs(value) < 2**52 else None
    if e.op == "cast" and e.dtype.numpy.kind != "b" and _exact_cast(e):
        return _affine(e.args[0], box)
    if e.op in ("add", "sub"):
        a, b = (_affine(x, box) for x in e.args)
        return a.plus(b.scaled(1 if e.op == "add" else -1)) if a and b else None
    if e.op == "neg":
        a = _affine(e.args[0], box)
        return a.scaled(-1) if a else None
    if e.op == "mul":
        a, b = (_affine(x, box) for x in e.args)
        for x, y in ((a, b), (b, a)):
            if x and y and not x.factors and not x.values:
                return y.scaled(x.constant)
        return None
    if not e.dtype.is_float and e.dtype.numpy.kind == "i":
        text = box.uniform(e)
        return _Affine(values=((text, 1),)) if text else None
    return None


def _exact_cast(e: Expr) -> bool:
    """Whether a cast keeps every position: to whole numbers, or to a float with digits enough for all of them."""
    digits = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}.get(e.dtype.value, 63)
    most = max((n for _, n in e.type.axes), default=1)
    return digits == 63 or (e.args[0].op == "iota" and most <= 2**digits)


def surely(e: Expr, want: bool, box: Box) -> str:
    """Return a condition under which the truth value `e` is `want` in the whole box (NEVER if none is known)."""
    if e.op == "const":
        return ALWAYS if bool(e.attrs[0]) == want else NEVER
    if e.op == "not":
        return surely(e.args[0], not want, box)
    if e.op in ("and", "or"):
        parts = [surely(a, want, box) for a in e.args]
        return both(parts) if (e.op == "and") == want else either(parts)
    if e.op not in ("lt", "le", "eq"):
        return NEVER
    a, b = (_affine(x, box) for x in e.args)
    if a is None or b is None:
        return NEVER
    gap = b.plus(a.scaled(-1))
    if e.op == "eq":
        sides = [_positive(gap, 0, box), _positive(gap.scaled(-1), 0, box)]
        return both([_positive(gap, -1, box), _positive(gap.scaled(-1), -1, box)]) if want else either(sides)
    least = 0 if e.op == "lt" else -1  # true while gap > least
    return _positive(gap, least, box) if want else _positive(gap.scaled(-1), -1 - least, box)


def _positive(gap: _Affine, least: int, box: Box) -> str:
    """Return the condition that `gap` > `least` everywhere in the box."""
    low, high = gap.bounds(box.extents)
    if low > least:
        return ALWAYS
    return NEVER if high <= least else f"{gap.text(box, greatest=False)} > {least}"


def both(parts: list[str]) -> str:
    """Return the condition that all of `parts` hold."""
    return NEVER if NEVER in parts else _joined([p for p in parts if p != ALWAYS], " && ") or ALWAYS


def either(parts: list[str]) -> str:
    """Return the condition that one of `parts` holds."""
    return ALWAYS if ALWAYS in parts else _joined([p for p in parts if p != NEVER], " || ")


def _joined(parts: list[str], by: str) -> str:
    found = list(dict.fromkeys(parts))
    return found[0] if len(found) == 1 else by.join(f"({p})" for p in found)


def vanishes(score: Expr, box: Box) -> str:
    """Return a condition under which the score is −inf in the whole box, so that the tile adds nothing.

    Notes
    -----
    A NaN or an infinity hidden under −inf by an addition, or a value that is one, would come through 0·inf if the tile were
    computed; it does not if the tile is skipped.
    """
    e = score
    match e.op:
        case "const":
            return ALWAYS if e.attrs[0] == -math.inf else NEVER
        case "where":
            yes, no = (vanishes(a, box) for a in e.args[1:])
            return either([both([yes, no]), both([surely(e.args[0], True, box), yes]), both([surely(e.args[0], False, box), no])])
        case "add" | "minimum":
            return either([vanishes(a, box) for a in e.args])
        case "maximum":
            return both([vanishes(a, box) for a in e.args])
        case "sub" | "cast":
            return vanishes(e.args[0], box)
        case "mul" | "div" if e.args[1].op == "const" and e.args[1].attrs[0] > 0:
            return vanishes(e.args[0], box)
        case "mul" if e.args[0].op == "const" and e.args[0].attrs[0] > 0:
            return vanishes(e.args[1], box)
        case _:
            return NEVER


@functools.lru_cache(maxsize=256)  # asked once for each schedule of a space
def kept_share(score: Expr) -> float | None:
    """Return the share of positions whose score is not −inf by its masks; None if that depends on what is loaded.

    Counted on a grid of at most 2^18 positions (masks are affine comparisons, so that a grid shows their areas).
    """
    gone = _gone(score)
    if gone is None or gone.op == "const":
        return None if gone is None else float(not gone.attrs[0])
    steps = {a: max(1, n // 512) for a, n in gone.type.axes}
    by = {
        e: apply("mul", iota(a, -(-n // steps[a]), e.dtype), const(steps[a], e.dtype))
        for e in gone.walk()
        if e.op == "iota"
        for a, n in e.type.axes
    }
    small = substitute(gone, by)
    axes = tuple(a for a, _ in small.type.axes)
    (found,) = evaluate(Program((), (Output("gone", small, axes, DType.BOOL),)), {})
    return 1.0 - float(found.mean())


def _gone(e: Expr) -> Expr | None:
    """Return the truth value that `e` is −inf by a mask of positions; None where that depends on what is loaded."""
    false = const(False, DType.BOOL)
    match e.op:
        case "const":
            return const(e.attrs[0] == -math.inf, DType.BOOL)
        case "where":
            yes, no = _gone(e.args[1]), _gone(e.args[2])
            if yes == no:
                return yes
            if (
                yes is None
                or no is None
                or any(x.op in ("read", "access") or x.row.kind is Kind.REDUCE for x in e.args[0].walk())
            ):
                return None
            condition = e.args[0]
            return apply("or", apply("and", condition, yes), apply("and", apply("not", condition), no))
        case "add" | "minimum" | "maximum":
            a, b = (_gone(x) for x in e.args)
            op = "and" if e.op == "maximum" else "or"
            return (
                None
                if a is None or b is None
                else a
                if b == false and op == "or"
                else b
                if a == false and op == "or"
                else apply(op, a, b)
            )
        case "sub" | "cast" | "mul" | "div":
            found = [_gone(x) for x in (e.args if e.op == "mul" else e.args[:1])]
            return next((x for x in found if x != false), false)
        case _:
            return false


def unmasked(score: Expr, box: Box) -> tuple[str, Expr]:
    """Return a condition under which masks of the score are decided alike in the whole box, and the score without them.

    The branch kept is the one that is not −inf. NEVER if there is no mask that can be decided.
    """
    conditions: list[str] = []
    memo: dict[str, Expr] = {}
    for e in score.walk():
        args = tuple(memo[a.digest] for a in e.args)
        memo[e.digest] = rebuild(e, args) if args else e
        if e.op == "where":
            want = vanishes(e.args[1], box) != ALWAYS
            condition = surely(e.args[0], want, box)
            kept = args[1] if want else args[2]
            if condition != NEVER and kept.dtype is e.dtype:
                conditions.append(condition)
                memo[e.digest] = kept
    return (both(conditions), memo[score.digest]) if conditions else (NEVER, score)
