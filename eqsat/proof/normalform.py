"""A normal form of tensor values: sums of products over index variables. Equal forms mean equal values, for all extents.

A value at one point of its axes is a polynomial. Its atoms are tensor elements, numbers without a value (extents,
constants of a rule), sums over index variables, and functions of polynomials. A sum is kept as one atom for each group of
factors that its variables connect, with the variables renamed to a canonical order, so that regrouped, interchanged and
factored sums are one form. Exponentials are split into one factor for each summand of the exponent. A power may be any
rational: what that assumes of the base is recorded apart (`eqsat.proof.meaning`), so x·x⁻¹ is 1 here.

The functions of polynomials (powers, exponentials, comparisons, maxima, products) are in `eqsat.proof.functions`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fractions import Fraction
from typing import Any

_LONG = 200  # characters of a key before it is replaced by its hash
_MOST_TERMS = 3000  # summands of one form: a product of sums may have exponentially many
_MOST_ORDERS = 720  # orders of bound variables tried for the canonical one


class UndecidedError(Exception):
    """The forms become too large, or mean something that they cannot say."""


_LEFT: ContextVar[list[int] | None] = ContextVar("products left to multiply", default=None)


@contextmanager
def effort(products: int) -> Iterator[None]:
    """Give up with `UndecidedError` once this many products have been multiplied out (some ten thousand take a second)."""
    token = _LEFT.set([products])
    try:
        yield
    finally:
        _LEFT.reset(token)


def _spend() -> None:
    left = _LEFT.get()
    if left is not None:
        left[0] -= 1
        if left[0] < 0:
            raise UndecidedError("the forms take too long to multiply out")


def _key(part: object) -> str:
    if isinstance(part, (Atom, Mono, Poly)):
        return part.key
    if isinstance(part, tuple):
        return f"({','.join(map(_key, part))})"
    return str(part)


def _short(text: str) -> str:
    return text if len(text) <= _LONG else f"h{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


class Atom:
    """What a form does not look into: a tensor element, an unknown number, a sum, a function value.

    Parameters
    ----------
    kind : str
        What it is; `index` and `sum` have a meaning here, the others in `eqsat.proof.functions`.
    args : tuple
        Text, numbers, forms, index variables.
    bounds : tuple of Atom
        Index variables that it binds.
    integer, idempotent, positive, nonnegative : bool
        What is known of its values; `idempotent` values are 0 or 1.
    """

    __slots__ = ("args", "bounds", "free", "height", "idempotent", "integer", "key", "kind", "nonnegative", "positive")

    def __init__(
        self, kind: str, args: tuple[Any, ...], bounds: tuple[Atom, ...] = (), *, integer: bool = False,
        idempotent: bool = False, positive: bool = False, nonnegative: bool = False,
    ) -> None:  # fmt: skip
        self.kind, self.args, self.bounds = kind, args, bounds
        self.integer = integer or idempotent
        self.idempotent, self.positive = idempotent, positive
        self.nonnegative = nonnegative or positive or idempotent
        marks = f"{'z' if self.integer else ''}{'p' if positive else ''}{'i' if idempotent else ''}"
        self.key = _short(f"{kind}{marks}{_key(bounds) if bounds else ''}{_key(args)}")
        forms = list(forms_in(args))
        inside: frozenset[str] = frozenset().union(*(f.free for f in forms)) if forms else frozenset()
        self.free = frozenset((args[0],)) if kind == "index" else inside - {b.args[0] for b in bounds}
        self.height: int = max((f.height for f in forms), default=0) + (1 if bounds else 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Atom) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return self.key


def forms_in(args: Iterable[Any]) -> Iterator[Poly]:
    """Yield the forms among the arguments of an atom."""
    for a in args:
        if isinstance(a, Poly):
            yield a
        elif isinstance(a, tuple):
            yield from forms_in(a)


class Mono:
    """A product of powers of atoms, without a coefficient."""

    __slots__ = ("factors", "free", "height", "key")

    def __init__(self, factors: Mapping[Atom, Fraction]) -> None:
        self.factors = tuple(sorted(factors.items(), key=lambda f: f[0].key))
        self.key = _short("*".join(a.key if p == 1 else f"{a.key}^{p}" for a, p in self.factors))
        self.free: frozenset[str] = frozenset().union(*(a.free for a, _ in self.factors))
        self.height: int = max((a.height for a, _ in self.factors), default=0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mono) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


ONE = Mono({})


class Poly:
    """A sum of products with rational coefficients; no two products are the same and no coefficient is 0."""

    __slots__ = ("free", "height", "key", "terms")

    def __init__(self, terms: Mapping[Mono, Fraction]) -> None:
        if len(terms) > _MOST_TERMS:
            raise UndecidedError(f"a form has more than {_MOST_TERMS} terms")
        self.terms = tuple(sorted(((m, c) for m, c in terms.items() if c), key=lambda t: t[0].key))
        self.key = _short("+".join(f"{c}.{m.key}" for m, c in self.terms) or "0")
        self.free: frozenset[str] = frozenset().union(*(m.free for m, _ in self.terms))
        self.height: int = max((m.height for m, _ in self.terms), default=0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __add__(self, other: Poly) -> Poly:
        terms = dict(self.terms)
        for m, c in other.terms:
            terms[m] = terms.get(m, Fraction(0)) + c
        return Poly(terms)

    def __sub__(self, other: Poly) -> Poly:
        return self + other * Fraction(-1)

    def __neg__(self) -> Poly:
        return self * Fraction(-1)

    def __mul__(self, other: Poly | Fraction | int) -> Poly:
        if not isinstance(other, Poly):
            return Poly({m: c * other for m, c in self.terms}) if other != 1 else self
        if self.constant is not None:
            return other * self.constant
        if other.constant is not None:
            return self * other.constant
        if len(self.terms) * len(other.terms) > 4 * _MOST_TERMS:
            raise UndecidedError("a product of forms is too long")
        return total(product((*m.factors, *n.factors), c * d) for m, c in self.terms for n, d in other.terms)

    @property
    def constant(self) -> Fraction | None:
        """Its value if it is a number."""
        if not self.terms:
            return Fraction(0)
        return self.terms[0][1] if len(self.terms) == 1 and not self.terms[0][0].factors else None

    @property
    def lone(self) -> Atom | None:
        """The atom that it is, if it is one."""
        if len(self.terms) != 1 or self.terms[0][1] != 1:
            return None
        factors = self.terms[0][0].factors
        return factors[0][0] if len(factors) == 1 and factors[0][1] == 1 else None

    @property
    def atoms(self) -> set[Atom]:
        """The atoms of its products (not those inside atoms)."""
        return {a for m, _ in self.terms for a, _ in m.factors}

    @property
    def integer(self) -> bool:
        """Whether every value is a whole number."""
        return all(
            c.denominator == 1 and all(a.integer and p > 0 and p.denominator == 1 for a, p in m.factors) for m, c in self.terms
        )

    def __repr__(self) -> str:
        return self.key


def number(value: Fraction | int) -> Poly:
    """Return a rational constant."""
    return Poly({ONE: Fraction(value)})


ZERO, UNIT = number(0), number(1)


def single(atom: Atom, power: Fraction | int = 1) -> Poly:
    """Return a power of an atom."""
    return product(((atom, Fraction(power)),), Fraction(1))


def total(parts: Iterable[Poly]) -> Poly:
    """Return the sum of forms."""
    terms: dict[Mono, Fraction] = {}
    for part in parts:
        for m, c in part.terms:
            terms[m] = terms.get(m, Fraction(0)) + c
    return Poly(terms)


def index(name: str, extent: Poly) -> Atom:
    """Return an index variable over 0 … extent − 1."""
    return Atom("index", (name, extent), integer=True, nonnegative=True)


def product(factors: Iterable[tuple[Atom, Fraction]], coefficient: Fraction) -> Poly:
    """Return a product of powers of atoms: powers of one atom added, powers that are forms multiplied out."""
    _spend()
    powers: dict[Atom, Fraction] = {}
    for a, p in factors:
        powers[a] = powers.get(a, Fraction(0)) + p
    expanded: list[Poly] = []
    for a in [a for a in powers if a.idempotent or a.kind in ("base", "prime", "above")]:
        p = powers[a]
        if a.idempotent and p > 0:
            powers[a] = Fraction(1)
        elif a.kind == "base" and p > 0 and p.denominator == 1:
            expanded += [a.args[0]] * int(p)
            powers[a] = Fraction(0)
        elif a.kind == "prime":
            whole = p.numerator // p.denominator
            coefficient *= Fraction(a.args[0]) ** whole
            powers[a] = p - whole
    kept = {a: p for a, p in powers.items() if p}
    if _contradictory(kept):
        return ZERO
    out = Poly({Mono(_strongest(kept)): coefficient})
    for e in expanded:
        out = out * e
    return out


def _contradictory(powers: Mapping[Atom, Fraction]) -> bool:
    """Whether two brackets exclude each other: [x > 0]·[x = 0] is 0."""
    signs = {a.args for a in powers if a.kind == "positive"}
    return bool(signs) and any(a.kind == "zero" and a.args in signs for a in powers)


def _strongest(powers: dict[Atom, Fraction]) -> dict[Atom, Fraction]:
    """Of several brackets [x > c] of one whole number x keep the one with the largest c."""
    above: dict[Poly, Atom] = {}
    for a in [a for a in powers if a.kind == "above"]:
        other = above.setdefault(a.args[0], a)
        if other is not a:
            weaker, stronger = sorted((a, other), key=lambda x: x.args[1])
            del powers[weaker]
            above[a.args[0]] = stronger
    return powers


# ---- substitution and binding

Rebuild = Callable[[Atom, Fraction, Mapping[str, Poly]], Poly]


def substitute(form: Poly, by: Mapping[str, Poly], rebuild: Rebuild) -> Poly:
    """Return the form with index variables replaced; `rebuild` does the same to a power of one atom."""
    by = {v: p for v, p in by.items() if v in form.free}
    if not by:
        return form
    changed: dict[tuple[Atom, Fraction], Poly] = {}
    out = []
    for m, c in form.terms:
        moving = [f for f in m.factors if f[0].free & by.keys()]
        part = product([f for f in m.factors if f not in moving], c)
        for f in moving:
            if f not in changed:
                changed[f] = rebuild(*f, by)
            part = part * changed[f]
        out.append(part)
    return total(out)


def fresh(count: int, taken: Iterable[str]) -> list[str]:
    """Return variable names that are not taken."""
    used = set(taken)
    return list(itertools.islice((n for n in (f"~{i}" for i in itertools.count()) if n not in used), count))


Rename = Callable[[Poly, Mapping[str, Poly]], Poly]


def bind(bounds: Sequence[Atom], inside: Poly, rename: Rename) -> tuple[tuple[Atom, ...], Poly]:
    """Rename bound variables to the canonical order: that in which the form reads least.

    Returns
    -------
    tuple of Atom, Poly
        The variables, named by height so that no inner ones are captured, and the form.
    """
    _, named, form = arrange(bounds, inside, rename)
    return named, form


def arrange(variables: Sequence[Atom], inside: Poly, rename: Rename) -> tuple[tuple[Atom, ...], tuple[Atom, ...], Poly]:
    """Return the variables in canonical order, their canonical names, and the form in terms of these."""
    height = inside.height + 1
    seen = _seen(variables, inside, rename)
    groups = [list(g) for _, g in itertools.groupby(sorted(variables, key=seen.__getitem__), key=seen.__getitem__)]
    if math.prod(math.factorial(len(g)) for g in groups) > _MOST_ORDERS:
        raise UndecidedError("a reduction binds too many variables that look alike")
    candidates = []
    for arranged in itertools.product(*(itertools.permutations(g) for g in groups)):
        ordered = tuple(v for g in arranged for v in g)
        named = tuple(index(f"#{height}.{i}", v.args[1]) for i, v in enumerate(ordered))
        renamed = rename(inside, {v.args[0]: single(n) for v, n in zip(ordered, named, strict=True)})
        candidates.append((ordered, named, renamed))
    return min(candidates, key=lambda c: c[2].key)


def _seen(bounds: Sequence[Atom], inside: Poly, rename: Rename) -> dict[Atom, str]:
    """Return what each variable looks like when the others are not told apart."""
    if len(bounds) == 1:
        return {bounds[0]: ""}
    out = {}
    for v in bounds:
        names = {b.args[0]: single(index("?one" if b is v else "?other", b.args[1])) for b in bounds}
        out[v] = f"{v.args[1].key} {rename(inside, names).key}"
    return out
