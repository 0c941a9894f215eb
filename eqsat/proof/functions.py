"""Functions of forms: powers, exponentials, comparisons as brackets, floor division; and what is known of signs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction

from eqsat.proof.normalform import (
    ONE,
    UNIT,
    ZERO,
    Atom,
    Mono,
    Poly,
    UndecidedError,
    number,
    product,
    single,
    total,
)

_MOST_CASES = 4  # truth values in one argument that are told apart
_MOST_POWER = 12  # largest whole power that is multiplied out
_PRIMES = tuple(p for p in range(2, 1000) if all(p % q for q in range(2, math.isqrt(p) + 1)))


# ---- what is known of values


def is_positive(form: Poly) -> bool:
    """Whether every value is known to be > 0."""
    if _nonnegative_terms(form) and any(all(a.positive for a, _ in m.factors) for m, _ in form.terms):
        return True
    return form.integer and _least(form) >= 1


def is_nonnegative(form: Poly) -> bool:
    """Whether every value is known to be ≥ 0."""
    return _nonnegative_terms(form) or (form.integer and _least(form) >= 0)


def _nonnegative_terms(form: Poly) -> bool:
    return all(_nonnegative_term(m, c) for m, c in form.terms)


def _nonnegative_term(mono: Mono, coefficient: Fraction) -> bool:
    if coefficient < 0:  # −max(x, y) where x, y ≤ 0
        factors = mono.factors
        lone = factors[0][0] if len(factors) == 1 and factors[0][1] == 1 else None
        return lone is not None and lone.kind == "max" and all(is_nonnegative(-f) for _, f in lone.args)
    return all(a.nonnegative or _even(p) or p.denominator % 2 == 0 for a, p in mono.factors)


def _even(power: Fraction) -> bool:
    return power.denominator == 1 and power.numerator % 2 == 0


def _least(form: Poly) -> Fraction | float:
    """Return a lower bound of a whole-numbered form, −∞ if none is known; index variables reach from 0 to extent − 1."""
    lowered: list[Poly] = []
    for m, c in form.terms:
        variables = [a for a, p in m.factors if a.kind in ("index", "quotient") and p == 1]
        if c > 0:
            if not all(a.nonnegative for a, _ in m.factors):
                return -math.inf
            if not any(not a.positive for a, _ in m.factors):
                lowered.append(Poly({m: c}))
            continue
        rest = [(a, p) for a, p in m.factors if a.positive]
        if len(rest) + len(variables) != len(m.factors) or not all(v.nonnegative for v in variables[1:]):
            return -math.inf
        part = product(rest, c)
        for v in variables:
            top = _greatest(v)
            if top is None:
                return -math.inf
            part = part * top
        lowered.append(part)
    low = total(lowered)
    # Unknown whole numbers that are positive are at least 1: with s = 1 + t, t ≥ 0, a form without negative terms is least at t = 0.
    atoms = sorted(low.atoms, key=lambda a: a.key)
    if any(not (a.positive and a.integer) for a in atoms):
        return -math.inf
    shifted = low
    for a in atoms:
        shifted = replaced(shifted, a, single(a) + UNIT)
    if any(c < 0 and m.factors for m, c in shifted.terms):
        return -math.inf
    return next((c for m, c in shifted.terms if not m.factors), Fraction(0))


def _greatest(variable: Atom) -> Poly | None:
    """Return the largest value of an index variable or of a quotient of one form by a number."""
    if variable.kind == "index":
        extent: Poly = variable.args[1]
        return extent - UNIT
    form, divisor = variable.args
    top = Fraction(0)
    for m, c in form.terms:
        factors = m.factors
        if not factors:
            top += c
        elif c < 0 and all(a.nonnegative for a, _ in factors):
            continue
        elif len(factors) == 1 and factors[0][0].kind == "index" and factors[0][1] == 1:
            reach: Poly = factors[0][0].args[1]
            if reach.constant is None:
                return None
            top += c * (reach.constant - 1)
        else:
            return None
    by = divisor.constant
    return number(math.floor(top / by)) if by else None


def replaced(form: Poly, atom: Atom, by: Poly) -> Poly:
    """Replace an atom of whole positive powers."""
    out = []
    for m, c in form.terms:
        part = product([(a, p) for a, p in m.factors if a != atom], c)
        for a, p in m.factors:
            if a == atom:
                part = part * raised(by, p)
        out.append(part)
    return total(out)


# ---- truth values


def _told_apart(function: Callable[[Poly], Poly]) -> Callable[[Poly], Poly]:
    """Lift a function over truth values in its argument: f(x) = c·f(x with c) + (1 − c)·f(x without c)."""

    @functools.wraps(function)
    def lifted(form: Poly) -> Poly:
        truths = sorted((a for a in form.atoms if a.idempotent), key=lambda a: a.key)
        if not 0 < len(truths) <= _MOST_CASES:
            return function(form)
        c = truths[0]
        with_c, without = lifted(replaced(form, c, UNIT)), lifted(replaced(form, c, ZERO))
        return single(c) * (with_c - without) + without

    return lifted


@_told_apart
def greater(form: Poly) -> Poly:
    """Return the bracket [form > 0], which is 1 where that holds and 0 elsewhere."""
    if form.constant is not None:
        return number(int(form.constant > 0))
    if form.integer:
        return _greater_whole(form)
    if is_positive(form):
        return UNIT
    if is_nonnegative(-form):
        return ZERO
    scale, form = _canonical_scale(form)
    if scale > 0:
        return single(Atom("positive", (form,), idempotent=True))
    return UNIT - single(Atom("positive", (form,), idempotent=True)) - equals_zero(form)


def _greater_whole(form: Poly) -> Poly:
    """[form > 0] of a whole number: [x > c] with x without a common divisor and of one sign."""
    if _least(form) >= 1:
        return UNIT
    if _least(-form) >= 0:
        return ZERO
    offset = next((c for m, c in form.terms if not m.factors), Fraction(0))
    rest = form - number(offset)
    common = Fraction(math.gcd(*(c.numerator for _, c in rest.terms)))
    if rest.terms[0][1] > 0:  # g·x + o > 0 where x > ⌊−o/g⌋
        return single(Atom("above", (rest * (1 / common), math.floor(-offset / common)), idempotent=True))
    # o − g·x > 0 where x < o/g, and so not where x > ⌈o/g⌉ − 1
    return UNIT - single(Atom("above", (rest * (-1 / common), math.ceil(offset / common) - 1), idempotent=True))


@_told_apart
def equals_zero(form: Poly) -> Poly:
    """Return the bracket [form = 0]."""
    if form.constant is not None:
        return number(int(form.constant == 0))
    if form.integer:
        return greater(form + UNIT) - greater(form)
    if is_positive(form) or is_positive(-form):
        return ZERO
    if len(form.terms) == 1:
        form = Poly({Mono({a: Fraction(1) for a, _ in form.terms[0][0].factors}): Fraction(1)})
    return single(Atom("zero", (_canonical_scale(form)[1],), idempotent=True))


def _canonical_scale(form: Poly) -> tuple[Fraction, Poly]:
    """Divide by positive common factors and by the first coefficient, which is returned."""
    _, form = _without_common(form, positive_only=True)
    first = form.terms[0][1]
    return first, form * (1 / first)


# ---- powers, exponentials, logarithms, other functions


def raised(form: Poly, power: Fraction | int) -> Poly:
    """Return a rational power of a form, where it has one."""
    power = Fraction(power)
    if power == 1:
        return form
    if power.denominator == 1 and 0 <= power <= _MOST_POWER and (len(form.terms) != 1 or power == 0):
        out = UNIT
        for _ in range(int(power)):
            out = out * form
        return out
    return _power(power)(form)


@functools.lru_cache(maxsize=64)
def _power(power: Fraction) -> Callable[[Poly], Poly]:
    return _told_apart(functools.partial(_raise, power=power))


def _raise(form: Poly, power: Fraction) -> Poly:
    if not form.terms:
        if power > 0:
            return ZERO
        raise UndecidedError("a negative power of 0")
    whole = power.denominator == 1
    if len(form.terms) == 1:
        return _raise_product(*form.terms[0], power)
    common, form = _without_common(form, positive_only=not whole)
    first = form.terms[0][1] if whole else abs(form.terms[0][1])
    out = _number_power(first, power) * product([(a, p * power) for a, p in common], Fraction(1))
    return out * _base(form * (1 / first), power)


def _raise_product(mono: Mono, coefficient: Fraction, power: Fraction) -> Poly:
    """Raise factor by factor where that is a law: for whole powers, and for what is not negative."""
    if power.denominator == 1:
        return number(coefficient**power.numerator) * product([(a, p * power) for a, p in mono.factors], Fraction(1))
    out = _number_power(abs(coefficient), power)
    rest: dict[Atom, Fraction] = {}
    for a, p in mono.factors:
        if a.nonnegative or p.denominator % 2 == 0:
            out = out * product([(a, p * power)], Fraction(1))
        elif _even(p):  # (x²)^½ is |x|
            out = out * _base(Poly({Mono({a: Fraction(2)}): Fraction(1)}), p * power / 2)
        else:
            rest[a] = p
    sign = coefficient / abs(coefficient)
    if len(rest) == 1 and sign > 0:
        ((a, p),) = rest.items()
        return out * product([(a, p * power)], Fraction(1))
    return out * _base(Poly({Mono(rest): sign}), power) if rest or sign < 0 else out


def _base(form: Poly, power: Fraction) -> Poly:
    return single(Atom("base", (form,), positive=is_positive(form), nonnegative=is_nonnegative(form)), power)


def _without_common(form: Poly, *, positive_only: bool) -> tuple[tuple[tuple[Atom, Fraction], ...], Poly]:
    """Take the powers of atoms out that all terms share."""
    shared: dict[Atom, Fraction] = {}
    for a in form.atoms:
        if a.idempotent or (positive_only and not a.positive):
            continue
        least = min(dict(m.factors).get(a, Fraction(0)) for m, _ in form.terms)
        if least:
            shared[a] = least
    if not shared:
        return (), form
    rest = Poly(
        {
            Mono(
                {a: q for a, p in m.factors if (q := p - shared.get(a, 0))}
                | {a: -p for a, p in shared.items() if a not in dict(m.factors)}
            ): c
            for m, c in form.terms
        }
    )
    return tuple(shared.items()), rest


def _number_power(value: Fraction, power: Fraction) -> Poly:
    if power.denominator == 1:
        return number(value**power.numerator)
    out = UNIT
    for part, sign in ((value.numerator, 1), (value.denominator, -1)):
        for p in _PRIMES:
            while part % p == 0:
                part //= p
                out = out * single(Atom("prime", (p,), positive=True), power * sign)
        if part > 1:
            out = out * single(Atom("prime", (part,), positive=True), power * sign)
    return out


def is_infinite(mono: Mono) -> bool:
    """Whether a product is an infinity times positive factors."""
    return all(a.positive for a, _ in mono.factors) and any(a.kind == "infinity" and p > 0 for a, p in mono.factors)


@_told_apart
def exponential(form: Poly) -> Poly:
    """Return e^form as a product with one factor for each term; e^−∞ is 0."""
    if any(c < 0 and is_infinite(m) for m, c in form.terms):
        return ZERO
    return product([(Atom("exp", (Poly({m: Fraction(1)}),), positive=True), c) for m, c in form.terms], Fraction(1))


@_told_apart
def logarithm(form: Poly) -> Poly:
    """Return log form, split over positive factors."""
    if len(form.terms) != 1:
        common, rest = _without_common(form, positive_only=True)
        outside = product(common, Fraction(1))
    else:
        mono, c = form.terms[0]
        outside = product([(a, p) for a, p in mono.factors if a.positive], abs(c))
        rest = product([(a, p) for a, p in mono.factors if not a.positive], c / abs(c))
    out = ZERO if rest == UNIT else single(Atom("log", (rest,)))
    for m, c in outside.terms:
        for a, p in (
            *m.factors,
            *((Atom("prime", (int(c.numerator),), positive=True), Fraction(1)),),
            *((Atom("prime", (int(c.denominator),), positive=True), Fraction(-1)),),
        ):
            if a.kind == "exp":
                out = out + a.args[0] * p
            elif a.kind != "prime" or a.args[0] != 1:
                out = out + single(Atom("log", (single(a) if a.kind != "prime" else number(a.args[0]),))) * p
    return out


_ODD, _EVEN = frozenset({"sin", "erf"}), frozenset({"cos"})


def function(name: str, form: Poly) -> Poly:
    """Return an odd, even or other function that nothing else is known of."""
    return _function(name)(form)


@functools.lru_cache(maxsize=64)
def _function(name: str) -> Callable[[Poly], Poly]:
    return _told_apart(functools.partial(_opaque, name))


def _opaque(name: str, form: Poly) -> Poly:
    if form.terms and form.terms[0][1] < 0 and name in _ODD | _EVEN:
        return single(Atom("function", (name, -form))) * (-1 if name in _ODD else 1)
    if not form.terms and name in _ODD:
        return ZERO
    return single(Atom("function", (name, form)))


@_told_apart
def floor(form: Poly) -> Poly:
    """Return the largest whole number that is not above the form."""
    whole = Poly({m: c for m, c in form.terms if Poly({m: c}).integer})
    rest = form - whole
    if rest.constant is not None:
        return whole + number(math.floor(rest.constant))
    return whole + single(Atom("function", ("floor", rest), integer=True))


@_told_apart
def truncated(form: Poly) -> Poly:
    """Return the form without its fraction."""
    if form.integer:
        return form
    if form.constant is not None:
        return number(math.trunc(form.constant))
    return single(Atom("function", ("trunc", form), integer=True))


def quotient(form: Poly, divisor: Poly) -> Poly:
    """Return ⌊form / divisor⌋ for a whole form and a positive whole divisor."""
    if divisor == UNIT:
        return form
    by = divisor.constant
    whole: dict[Mono, Fraction] = {}
    rest: dict[Mono, Fraction] = {}
    for m, c in form.terms:
        shared = divisor.terms[0][0] if len(divisor.terms) == 1 else ONE
        powers = dict(m.factors)
        if by is not None:
            whole[m], rest[m] = Fraction(math.floor(c / by)), c - by * math.floor(c / by)
        elif (
            shared.factors
            and all(powers.get(a, 0) >= p for a, p in shared.factors)
            and (c / divisor.terms[0][1]).denominator == 1
        ):
            left = {a: q for a, p in m.factors if (q := p - dict(shared.factors).get(a, 0))}
            whole[Mono(left)] = whole.get(Mono(left), Fraction(0)) + c / divisor.terms[0][1]
        else:
            rest[m] = c
    out, part = Poly(whole), Poly(rest)
    if _least(part) >= 0 and _least(divisor - UNIT - part) >= 0:
        return out
    lone = part.lone
    if lone is not None and lone.kind == "quotient":
        return out + quotient(lone.args[0], lone.args[1] * divisor)
    return out + single(Atom("quotient", (part, divisor), integer=True, nonnegative=_least(part) >= 0))


def tensor(name: str, kind: str, places: tuple[tuple[str, Poly], ...], *, nonnegative: bool = False) -> Poly:
    """Return the element of a tensor at a place; `kind` is "real", "whole" or "truth"."""
    integer, truth = kind == "whole", kind == "truth"
    return single(Atom("tensor", (name, kind, places, nonnegative), integer=integer, idempotent=truth, nonnegative=nonnegative))


def any_power(base: Poly, exponent: Poly) -> Poly:
    """Return base^exponent."""
    if exponent.constant is not None:
        return raised(base, exponent.constant)
    if is_positive(base):
        return exponential(exponent * logarithm(base))
    return single(Atom("function", ("power", base, exponent)))
