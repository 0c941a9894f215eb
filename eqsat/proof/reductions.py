"""Reductions of forms over index variables, and renaming of index variables in a form."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence, Set
from fractions import Fraction

from eqsat.proof.functions import (
    any_power,
    equals_zero,
    exponential,
    floor,
    function,
    greater,
    is_infinite,
    is_nonnegative,
    is_positive,
    logarithm,
    quotient,
    raised,
    replaced,
    tensor,
    truncated,
)
from eqsat.proof.normalform import (
    UNIT,
    ZERO,
    Atom,
    Mono,
    Poly,
    bind,
    forms_in,
    fresh,
    index,
    number,
    product,
    single,
    substitute,
    total,
)

_MOST_CASES = 4  # truth values in one argument that are told apart
_MOST_OPENED = 4  # copies of a sum that a power of it is opened to
_MOST_POWER = 12  # largest known number of times that a factor is multiplied out
_MOST_CLEARED = 12  # denominators multiplied out to compare


def rename(form: Poly, by: Mapping[str, Poly]) -> Poly:
    """Return the form with index variables replaced."""
    return substitute(form, by, _rebuilt_power)


def _rebuilt_power(atom: Atom, power: Fraction, by: Mapping[str, Poly]) -> Poly:
    return raised(_rebuilt(atom, by), power)


def _rebuilt(atom: Atom, by: Mapping[str, Poly]) -> Poly:
    inner = {v: p for v, p in by.items() if v in atom.free}
    match atom.kind, atom.args:
        case "index", (name, _):
            return inner[str(name)]
        case "tensor", (name, kind, places, _):
            return tensor(name, kind, tuple((a, rename(p, inner)) for a, p in places), nonnegative=atom.nonnegative)
        case "base", (form,):  # its power is applied by the caller
            return rename(form, inner)
        case "exp", (form,):
            return exponential(rename(form, inner))
        case "log", (form,):
            return logarithm(rename(form, inner))
        case "positive", (form,):
            return greater(rename(form, inner))
        case "zero", (form,):
            return equals_zero(rename(form, inner))
        case "above", (form, least):
            return greater(rename(form, inner) - number(least))
        case "function", ("floor", form):
            return floor(rename(form, inner))
        case "function", ("trunc", form):
            return truncated(rename(form, inner))
        case "function", ("power", base, exponent):
            return any_power(rename(base, inner), rename(exponent, inner))
        case "function", (name, form):
            return function(name, rename(form, inner))
        case "quotient", (form, divisor):
            return quotient(rename(form, inner), rename(divisor, inner))
        case "max", members:
            return maximum([(bounds, rename(form, inner)) for bounds, form in members])
        case "sum", (form,):
            return functools.reduce(sum_over, atom.bounds, rename(form, inner))
        case "all", (form,):
            return functools.reduce(all_over, atom.bounds, rename(form, inner))
        case "prod", (form,):
            return functools.reduce(product_over, atom.bounds, rename(form, inner))
        case "argmax", (form,):
            return position_of_maximum(rename(form, inner), atom.bounds[0])
        case "repeat", (form, times):
            return repeated(rename(form, inner), times)
        case "undefined", (form,):
            return single(Atom("undefined", (rename(form, inner),), idempotent=True))
        case _:
            raise AssertionError(f"an atom of kind {atom.kind} has no index variables")


def sum_over(form: Poly, variable: Atom) -> Poly:
    """Return Σ form over an index variable."""
    name, extent = variable.args
    if extent == UNIT:
        return rename(form, {name: ZERO})
    return ZERO if extent == ZERO else total(_sum_of_product(m, c, variable) for m, c in form.terms)


def _extent(variable: Atom) -> Poly:
    extent: Poly = variable.args[1]
    return extent


def _sum_of_product(mono: Mono, coefficient: Fraction, variable: Atom) -> Poly:
    name, extent = str(variable.args[0]), _extent(variable)
    outside = [(a, p) for a, p in mono.factors if name not in a.free]
    inside = [(a, p) for a, p in mono.factors if name in a.free]
    if not inside:
        return product(outside, coefficient) * extent
    for a, _ in inside:
        if a.kind == "above" and (cut := _cut(a, variable)) is not None:
            rest = product([f for f in mono.factors if f[0] != a], coefficient)
            low = sum_over(rename(rest, {name: single(shorter := index(name, cut[1]))}), shorter)
            return sum_over(rest, variable) - low if cut[0] else low
    if (shift := _shift(inside, variable)) is not None:
        body, extent = product(mono.factors, coefficient), _extent(variable)
        longer, shorter = (index(name, e) for e in (extent + shift, shift))
        whole, before = (sum_over(rename(body, {name: single(v) - shift}), v) for v in (longer, shorter))
        return whole - before
    bounds, opened = [variable], UNIT
    taken = set(mono.free) | {name}
    for a, p in inside:
        if a.kind != "sum" or p.denominator != 1 or not 0 < p <= _MOST_OPENED:
            opened = opened * single(a, p)
            continue
        for _ in range(int(p)):
            names = fresh(len(a.bounds), taken)
            taken |= set(names)
            variables = [index(n, b.args[1]) for n, b in zip(names, a.bounds, strict=True)]
            opened = opened * rename(a.args[0], {b.args[0]: single(v) for b, v in zip(a.bounds, variables, strict=True)})
            bounds += variables
    parts = []
    for m, c in opened.terms:  # one term, unless renaming made a power of a form whole
        parts.append(_component(m, bounds) * c)
    return product(outside, coefficient) * total(parts)


def _cut(bracket: Atom, variable: Atom) -> tuple[bool, Poly] | None:
    """Return where a bracket [±v + r > c] divides the range of v, and whether it keeps the upper part; None if it is unknown."""
    form, c = bracket.args
    at = single(variable)
    for sign in (1, -1):
        rest = form - at * sign
        if rest.free:
            continue
        place = number(c + 1) - rest if sign == 1 else rest - number(c)
        if is_nonnegative(place) and is_nonnegative(_extent(variable) - place):
            return sign == 1, place
    return None


def _shift(factors: Sequence[tuple[Atom, Fraction]], variable: Atom) -> Poly | None:
    """Return s > 0 if a tensor is read at v + s: the sum is then taken over v + s itself, from s on."""
    at = single(variable)
    for a, _ in factors:
        for _, place in a.args[2] if a.kind == "tensor" else ():
            shift: Poly = place - at
            if variable.args[0] in place.free and not shift.free and shift != ZERO and is_nonnegative(shift):
                return shift
    return None


def _joined(bounds: Sequence[Atom], form: Poly) -> tuple[list[Atom], Poly]:
    """Join variables o, i that occur only as n·o + i, with n the extent of i, to one variable over all places."""
    left = list(bounds)
    met = _meeting(form)
    for o, i in itertools.permutations(left, 2):
        if frozenset((o.args[0], i.args[0])) not in met:
            continue
        (name,) = fresh(1, form.free | {b.args[0] for b in left})
        v = index(name, _extent(o) * _extent(i))
        together = rename(form, {i.args[0]: single(v) - single(o) * _extent(i)})
        if o.args[0] not in together.free:
            return _joined([v, *(b for b in left if b not in (o, i))], together)
    return left, form


def _meeting(form: Poly) -> set[frozenset[str]]:
    """Return the pairs of variables that stand in one place of a tensor."""
    found: set[frozenset[str]] = set()
    stack = [form]
    while stack:
        for a in stack.pop().atoms:
            if a.kind == "tensor":
                for _, place in a.args[2]:
                    found |= {frozenset(p) for p in itertools.combinations(sorted(place.free), 2)}
            stack += forms_in(a.args)
    return found


def _component(mono: Mono, bounds: Sequence[Atom]) -> Poly:
    """Return Σ mono over all bounds, which need not be connected."""
    out, left = UNIT, list(mono.factors)
    names = {b.args[0]: b for b in bounds}
    waiting = set(names)
    while waiting:
        group = {min(waiting)}
        while True:
            touched = [(a, p) for a, p in left if a.free & group]
            wider = group.union(*(a.free & names.keys() for a, _ in touched))
            if wider == group:
                break
            group = wider
        waiting -= group
        left = [f for f in left if f not in touched]
        if not touched:
            out = out * names[next(iter(group))].args[1]
            continue
        variables, form = [names[n] for n in sorted(group)], product(touched, Fraction(1))
        if len(variables) > 1:
            left_over, together = _joined(variables, form)
            if len(left_over) < len(variables):
                out = out * functools.reduce(lambda f, v: sum_over(f, v), left_over, together)
                continue
        named, form = bind(variables, form, rename)
        least = is_nonnegative(form)
        positive = least and is_positive(form) and all(is_positive(_extent(v)) for v in named)  # a range cut short may be empty
        out = out * single(Atom("sum", (form,), named, integer=form.integer, positive=positive, nonnegative=least))
    return out * product(left, Fraction(1))


def _outside_truth(form: Poly, bound: Set[str]) -> Atom | None:
    """Return a truth value in the form that does not depend on the bound variables, if there are few."""
    truths = sorted((a for a in form.atoms if a.idempotent and not a.free & bound), key=lambda a: a.key)
    return truths[0] if 0 < len(truths) <= _MOST_CASES else None


def _told_apart(reduce: Callable[[Poly, Atom], Poly]) -> Callable[[Poly, Atom], Poly]:
    """Lift a reduction over truth values that do not depend on its variable: r(x) = c·r(x with c) + (1 − c)·r(x without c)."""

    @functools.wraps(reduce)
    def lifted(form: Poly, variable: Atom) -> Poly:
        c = _outside_truth(form, {variable.args[0]})
        if c is None:
            return reduce(form, variable)
        with_c, without = (lifted(replaced(form, c, v), variable) for v in (UNIT, ZERO))
        return single(c) * (with_c - without) + without

    return lifted


@_told_apart
def all_over(form: Poly, variable: Atom) -> Poly:
    """Return whether a truth value holds at every place of an index variable."""
    name, extent = variable.args
    if extent == UNIT:
        return rename(form, {name: ZERO})
    if name not in form.free:
        return form
    out = UNIT
    for a in sorted((a for a in form.atoms if a.idempotent), key=lambda a: a.key):  # factors x and 1 − x
        for literal, value in ((single(a), UNIT), (UNIT - single(a), ZERO)):
            if literal != form and not replaced(form, a, UNIT - value).terms:
                out, form = out * all_over(literal, variable), replaced(form, a, value)
    return out * (_all(form, variable) if name in form.free else form)


def _all(form: Poly, variable: Atom) -> Poly:
    return single(Atom("all", *_nested("all", form, variable), idempotent=True))


def _nested(kind: str, form: Poly, variable: Atom) -> tuple[tuple[Poly], tuple[Atom, ...]]:
    """Join a reduction with one of the same kind under it."""
    bounds, lone = [variable], form.lone
    if lone is not None and lone.kind == kind:
        names = fresh(len(lone.bounds), form.free | {variable.args[0]})
        variables = [index(n, b.args[1]) for n, b in zip(names, lone.bounds, strict=True)]
        form = rename(lone.args[0], {b.args[0]: single(v) for b, v in zip(lone.bounds, variables, strict=True)})
        bounds += variables
    bounds, form = _joined(bounds, form) if len(bounds) > 1 else (bounds, form)
    named, form = bind(bounds, form, rename)
    return (form,), named


@_told_apart
def product_over(form: Poly, variable: Atom) -> Poly:
    """Return Π form over an index variable."""
    name, extent = variable.args
    if extent == UNIT:
        return rename(form, {name: ZERO})
    if not form.terms:
        return ZERO
    if len(form.terms) > 1:
        if name not in form.free:
            return repeated(form, extent)
        return single(_prod(form, variable))
    mono, c = form.terms[0]
    out = repeated(product([(a, p) for a, p in mono.factors if name not in a.free], c), extent)
    for a, p in mono.factors:
        if name in a.free and a.kind == "base" and len(a.args[0].terms) == 1:
            out = out * raised(product_over(a.args[0], variable), p)
        elif name in a.free and a.kind == "exp":
            out = out * exponential(sum_over(a.args[0] * p, variable))
        elif name in a.free:
            out = out * single(_prod(a.args[0] if a.kind == "base" else single(a), variable), p)
    return out


def _prod(form: Poly, variable: Atom) -> Atom:
    args, named = _nested("prod", form, variable)
    truth = len(args[0].terms) == 1 and args[0].terms[0][1] == 1 and all(a.idempotent for a in args[0].atoms)
    return Atom(
        "prod",
        args,
        named,
        integer=args[0].integer,
        idempotent=truth,
        positive=is_positive(args[0]),
        nonnegative=is_nonnegative(args[0]),
    )


def repeated(form: Poly, times: Poly) -> Poly:
    """Return form^times for a whole number of times, at least 1, that may be unknown."""
    if form == UNIT:
        return UNIT
    if times.constant is not None and times.constant <= _MOST_POWER:
        return raised(form, times.constant)
    lone = form.lone
    if lone is not None and lone.idempotent:
        return form
    if len(form.terms) > 1:
        return single(Atom("repeat", (form, times), positive=is_positive(form), nonnegative=is_nonnegative(form)))
    mono, c = form.terms[0]
    parts = [
        (Atom("repeat", (single(a), times), positive=a.positive, nonnegative=a.nonnegative, idempotent=a.idempotent), p)
        for a, p in mono.factors
    ]
    parts += [
        (Atom("repeat", (number(n), times), positive=n > 0), Fraction(s))
        for n, s in ((c.numerator, 1), (c.denominator, -1))
        if n != 1
    ]
    return product(parts, Fraction(1))


Member = tuple[Sequence[Atom], Poly]


def maximum(members: Sequence[Member]) -> Poly:
    """Return the largest of forms, each over index variables of its own.

    What all share is taken out: summands without bound variables, positive factors. A maximum of maxima is one maximum.
    """
    flat = [m for given in members for m in _opened(*given)]
    bound = {v.args[0] for b, _ in flat for v in b}
    for _, f in flat:
        if (c := _outside_truth(f, bound)) is not None:
            with_c, without = (maximum([(b, replaced(g, c, v)) for b, g in flat]) for v in (UNIT, ZERO))
            return single(c) * (with_c - without) + without
    shift = _common_shift(flat)
    flat = list({form: (bounds, form) for bounds, form in ((b, f - shift) for b, f in flat)}.values())
    if len(flat) == 1 and not flat[0][1].terms:
        return shift
    scale = _common_scale(flat)
    if scale != UNIT:
        flat = [(b, f * raised(scale, -1)) for b, f in flat]
    named = [bind(b, f, rename) if b else ((), f) for b, f in flat]
    kept = {(_names(b), f): (b, f) for b, f in named}
    for (names, f), (b, _) in list(kept.items()):  # what is never the largest goes
        if not b and any(f is not g and not c and is_nonnegative(g - f) for c, g in kept.values()):
            del kept[names, f]
    ordered = tuple(sorted(kept.values(), key=lambda m: (_names(m[0]), m[1].key)))
    if len(ordered) == 1 and not ordered[0][0]:
        return shift + scale * ordered[0][1]
    whole = all(f.integer for _, f in ordered)
    least = any(is_nonnegative(f) for _, f in ordered)
    bounds = tuple(dict.fromkeys(v for b, _ in ordered for v in b))
    above_zero = any(is_positive(f) for _, f in ordered)
    return shift + scale * single(Atom("max", ordered, bounds, integer=whole, positive=above_zero, nonnegative=least))


def _names(bounds: Sequence[Atom]) -> str:
    return " ".join(b.key for b in bounds)


def _opened(bounds: Sequence[Atom], form: Poly) -> list[Member]:
    """Drop variables that do not occur, and open a maximum that the form adds to."""
    for b in bounds:
        if b.args[1] == UNIT:
            form = rename(form, {b.args[0]: ZERO})
    bounds = [b for b in bounds if b.args[0] in form.free and b.args[1] != UNIT]
    bounds, form = _joined(bounds, form) if len(bounds) > 1 else (bounds, form)
    inner = [(a, c) for m, c in form.terms for a in [Poly({m: Fraction(1)}).lone] if a is not None and a.kind == "max"]
    if len(inner) != 1 or inner[0][1] <= 0:
        return [(bounds, form)]
    atom, c = inner[0]
    rest, out = form - single(atom) * c, []
    for variables, member in atom.args:
        names = fresh(len(variables), form.free | {b.args[0] for b in bounds})
        renamed = [index(n, v.args[1]) for n, v in zip(names, variables, strict=True)]
        by = {v.args[0]: single(r) for v, r in zip(variables, renamed, strict=True)}
        out += _opened([*bounds, *renamed], rename(member, by) * c + rest)
    return out


def _common_shift(members: Sequence[Member]) -> Poly:
    bound = {v.args[0] for b, _ in members for v in b}
    tables = [dict(f.terms) for _, f in members]
    out = {}
    for m in {m for t in tables for m in t if not m.free & bound}:
        out[m] = min(t.get(m, Fraction(0)) for t in tables)
    return Poly(out)


def _common_scale(members: Sequence[Member]) -> Poly:
    """Return the positive factor without bound variables that all members share, and the size of the first coefficient."""
    bound = {v.args[0] for b, _ in members for v in b}
    terms = [t for _, f in members for t in f.terms]
    shared = []
    for a in {a for m, _ in terms for a, _ in m.factors}:
        if a.positive and not a.free & bound:
            least = min(dict(m.factors).get(a, Fraction(0)) for m, _ in terms)
            if least:
                shared.append((a, least))
    sizes = [abs(c) for _, c in terms]
    by_shape: dict[str, Fraction] = {}
    for (m, _), size in zip(terms, sizes, strict=True):
        shape = "" if m.free & bound else m.key
        by_shape[shape] = max(by_shape.get(shape, Fraction(0)), size)
    return product(shared, by_shape[min(by_shape)])


@_told_apart
def position_of_maximum(form: Poly, variable: Atom) -> Poly:
    """Return the first place along an index variable at which the form is largest."""
    if variable.args[1] == UNIT or variable.args[0] not in form.free:
        return ZERO
    form = form - _common_shift([([variable], form)])
    scale = _common_scale([([variable], form)])
    named, form = bind([variable], form * raised(scale, -1), rename)
    return single(Atom("argmax", (form,), named, integer=True, nonnegative=True))


def cleared(form: Poly) -> Poly:
    """Multiply by the denominators without bound variables until none is left: 0 stays 0, and nothing else becomes 0."""
    for _ in range(_MOST_CLEARED):
        low = {a: p for m, _ in form.terms for a, p in m.factors if a.kind == "base" and p < 0}
        if not low:
            return form
        atom = min(low, key=lambda a: (a.height, a.key))
        least = min(dict(m.factors).get(atom, Fraction(0)) for m, _ in form.terms)
        form = total(product([*m.factors, (atom, -least)], c) for m, c in form.terms)
    return form


def _absorbed(form: Poly) -> Poly:
    signs = {c > 0: m for m, c in form.terms if is_infinite(m)}
    infinity = single(Atom("infinity", (), positive=True))
    return form if len(signs) != 1 else infinity * (1 if True in signs else -1)


def expand_equal(left: Poly, right: Poly) -> bool:
    """Whether two forms are equal wherever both are defined; ±∞ absorbs what is added to it."""
    if any(a.kind == "infinity" for f in (left, right) for a in f.atoms):
        truths = sorted((a for f in (left, right) for a in f.atoms if a.idempotent), key=lambda a: a.key)
        if 0 < len(truths) <= 2 * _MOST_CASES:
            return all(expand_equal(*(replaced(f, truths[0], v) for f in (left, right))) for v in (UNIT, ZERO))
        left, right = _absorbed(left), _absorbed(right)
    difference = left - right
    return not difference.terms or not cleared(difference).terms
