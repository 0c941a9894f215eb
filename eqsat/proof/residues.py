"""Numbers modulo a prime, in which programs are compared exactly; what has no meaning there is a random function.

A function such as exp, or a comparison, becomes a random function of the residues of its operands: equal operands give equal
results, and nothing else is assumed. The maximum is a random function of the set of its operands, so that order, grouping and
repetition do not matter. Programs that agree so agree under every such function, and the chance that a difference goes unseen
is bounded (`Residues.miss`).

With `laws` the functions that rules know more about are models of that: e^(a+b) = e^a·e^b, √ is multiplicative, |x| = √(x·x), and
order is the order of the residues. Agreement is then evidence without a computed chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from eqsat.ir import Expr
from eqsat.proof.compressed import Array, mix
from eqsat.proof.constants import Constants
from eqsat.proof.degrees import Degree
from eqsat.proof.valuesets import ValueSets
from eqsat.types import DType

CHAINS = (
    (2146754399, 1073377199, 536688599, 268344299, 134172149),
    (2145312479, 1072656239, 536328119, 268164059, 134082029),
)
"""Chains of primes, each one more than twice the next: e^x modulo one is a power of a number whose order is the next."""

_CONSTANT = Degree()
_BITS = 31  # of a prime
_WHOLE = 1 << 31  # whole numbers up to here stay whole numbers, so that masks built from positions are exact
_EXACT = frozenset(
    ["add", "sub", "mul", "neg", "abs", "maximum", "minimum", "lt", "le", "eq", "and", "or", "not", "where", "floor", "cast"]
)


@dataclass(frozen=True, slots=True)
class Whole:
    """Whole numbers or truth values that are known as such."""

    numbers: Array


@dataclass(frozen=True, slots=True)
class Residue:
    """Residues: one array for each prime of the chain that still has a meaning.

    `fine` is false where a division by zero happened, `infinite` is the sign where the value is infinite; None: nowhere.
    """

    parts: tuple[Array, ...]
    degree: Degree = _CONSTANT
    fine: Array | None = None
    infinite: Array | None = None


Value = Whole | Residue


class Residues:
    """The algebra of residues modulo a prime chain.

    Parameters
    ----------
    primes : tuple of int
        Values are residues modulo all of them, drawn independently; with `laws`, a chain of primes.
    constants : Constants
        What float constants stand for.
    seed : int
    laws : bool
    """

    def __init__(self, primes: Sequence[int], constants: Constants, seed: int, *, laws: bool = False) -> None:
        self.primes = tuple(primes)
        self.laws = laws
        self._inverses = 0
        self.calls: dict[str, tuple[int, int]] = {}  # random function -> elements, largest degree of an argument
        self._constants, self._seed = constants, np.uint64(seed)
        self._composites: dict[str, ValueSets] = {}
        self._roots = tuple(
            pow(int(self._random("root", np.asarray([p], np.uint64))[0] % (p - 3)) + 2, 2, p) for p in self.primes[:-1]
        )

    # Leaves

    def leaf(self, e: Expr, codes: Array) -> Value:
        """Return random residues."""
        return self._drawn(codes, Degree(1))

    def constant(self, e: Expr) -> Value:
        """Return a constant's residue; a whole number stays one."""
        number = self._constants.of(e)
        if isinstance(number, Fraction):
            if number.denominator == 1 and abs(number) < _WHOLE:
                return Whole(np.asarray(int(number), bool if e.dtype.value == "bool" else np.int64))
            return self._rational(number)
        zero = tuple(np.zeros((), np.int64) for _ in self.primes)
        if math.isinf(number):
            return Residue(zero, infinite=np.asarray(1 if number > 0 else -1, np.int8))
        return Residue(zero, fine=np.asarray(False))

    def positions(self, numbers: Array) -> Value:
        """Return whole numbers."""
        return Whole(numbers)

    def reshape(self, value: Value, change: Callable[[Array], Array]) -> Value:
        """Return the value with its arrays' shapes changed."""
        if isinstance(value, Whole):
            return Whole(change(value.numbers))
        fine, infinite = (None if x is None else change(x) for x in (value.fine, value.infinite))
        return Residue(tuple(map(change, value.parts)), value.degree, fine, infinite)

    def only(self, value: Value, inside: Array) -> Value:
        """Return the value with 0 where `inside` is false."""
        if isinstance(value, Whole):
            return Whole(np.where(inside, value.numbers, np.zeros((), value.numbers.dtype)))
        return Residue(
            tuple(np.where(inside, x, 0) for x in value.parts), value.degree,
            None if value.fine is None else value.fine | ~inside,
            None if value.infinite is None else np.where(inside, value.infinite, 0),
        )  # fmt: skip

    # Pointwise

    def apply(self, e: Expr, args: Sequence[Value]) -> Value:
        """Return a pointwise op."""
        wholes = [a.numbers for a in args if isinstance(a, Whole)]
        if e.op == "where" and isinstance(args[0], Whole):
            if len(wholes) == 3:
                return Whole(np.where(wholes[0].astype(bool), *wholes[1:]))
            return self._select(wholes[0].astype(bool), self.residue(args[1]), self.residue(args[2]))
        if len(wholes) == len(args) and e.op in _EXACT and all(_small(w) for w in wholes):
            return self._whole(e, wholes)
        values = [self.residue(a) for a in args]
        if any(v.infinite is not None for v in values):
            known = self._infinite(e, values)
            if known is not None:
                return known
            values = [self._without_infinite(v) for v in values]
        out = self._pointwise(e, values)
        fine = _both(*(v.fine for v in values), *([out.fine] if isinstance(out, Residue) else []))
        return replace(out, fine=fine) if isinstance(out, Residue) else out

    @staticmethod
    def _whole(e: Expr, args: list[Array]) -> Whole:
        if e.op == "cast":
            if e.dtype is DType.BOOL:
                return Whole(args[0] != 0)
            return Whole(args[0].astype(np.int64 if e.dtype.is_float else e.dtype.numpy).astype(np.int64))
        if e.op == "where":
            return Whole(np.where(args[0].astype(bool), args[1], args[2]))
        if e.op in ("and", "or", "not"):
            args = [a.astype(bool) for a in args]
        elif e.op not in ("lt", "le", "eq"):
            args = [a.astype(np.int64) for a in args]
        return Whole(args[0] if e.op == "floor" else np.asarray(e.row.evaluate(np, *args)))

    def _pointwise(self, e: Expr, v: list[Residue]) -> Value:
        match e.op:
            case "add":
                return self._each(lambda p, a, b: (a + b) % p, *v, degree=v[0].degree.plus(v[1].degree))
            case "sub":
                return self._each(lambda p, a, b: (a - b) % p, *v, degree=v[0].degree.plus(v[1].degree))
            case "neg":
                return self._negated(v[0])
            case "mul":
                return self._product(v[0], v[1])
            case "div":
                return self._product(v[0], self._inverse(v[1]))
            case "recip":
                return self._inverse(v[0])
            case "cast":
                return self._cast(e, v[0])
            case "maximum":
                return self._greater(v[0], v[1])
            case "minimum":
                return self._negated(self._greater(*map(self._negated, v)))
            case "where":
                rest = self._each(lambda p, c, a, b: (c * a + (1 - c) * b) % p, *v)
                return replace(rest, degree=v[0].degree.times(v[1].degree.plus(v[2].degree)))
            case "lt" | "le" | "eq" | "and" | "or" | "not":
                return self._logic(e.op, v)
            case "exp" | "sqrt" | "rsqrt" | "abs" | "sigmoid" | "tanh" | "pow":
                return self._function(e, v)
            case _:
                return self._opaque(e.op, *v)

    def _function(self, e: Expr, v: list[Residue]) -> Residue:
        match e.op:
            case "exp":
                return self._exp(v[0])
            case "sqrt":
                return self._sqrt(v[0])
            case "rsqrt":
                return self._inverse(self._sqrt(v[0]))
            case "abs":
                return self._abs(v[0])
            case "sigmoid":  # 1/(1 + e^−x)
                return self._inverse(self._shifted(self._exp(self._negated(v[0])), 1))
            case "tanh":  # 2/(1 + e^−2x) − 1
                half = self._inverse(self._shifted(self._exp(self._times(v[0], -2)), 1))
                return self._shifted(self._times(half, 2), -1)
            case _:
                return self._power(e, v)

    def _power(self, e: Expr, v: list[Residue]) -> Residue:
        exponent = self._constants.of(e.args[1]) if e.args[1].op == "const" else None
        if isinstance(exponent, Fraction) and exponent.denominator in (1, 2) and abs(exponent) <= 8:
            base = v[0] if exponent.denominator == 1 else self._sqrt(v[0])
            out = replace(base, parts=tuple(np.ones_like(x) for x in base.parts), degree=Degree())
            for _ in range(abs(exponent.numerator)):
                out = self._product(out, base)
            return self._inverse(out) if exponent < 0 else out
        return self._opaque("pow", *v)

    def _cast(self, e: Expr, v: Residue) -> Residue:
        """Return a cast: rounding is none over the reals; what cuts a fraction off, wraps around or asks for zero is random."""
        source, to = e.args[0].dtype, e.dtype
        if to.is_float or source is to or source is DType.BOOL:
            return v
        if not source.is_float and to is not DType.BOOL and np.can_cast(source.numpy, to.numpy):
            return v
        return self._opaque(f"cast {to}", v)

    def _exp(self, v: Residue) -> Residue:
        if not self.laws or len(v.parts) == 1:
            out = self._opaque("exp", v)
            return replace(out, parts=tuple(np.where(self._code(v) == 0, 1, x) for x in out.parts))
        parts = [_power_of(root, x, p) for root, x, p in zip(self._roots, v.parts[1:], self.primes, strict=False)]
        return Residue(tuple(parts), Degree(1), v.fine)

    def _sqrt(self, v: Residue) -> Residue:
        if not self.laws:
            return self._opaque("sqrt", v)
        return self._each(lambda p, x: _raised(x, (p + 1) // 4, p), v, degree=v.degree)

    def _abs(self, v: Residue) -> Residue:
        if not self.laws:
            mirrored = self._negated(v)
            return self._opaque("abs", self._select(self._code(v) < self._code(mirrored), v, mirrored))
        return self._each(lambda p, x: _raised(x, (p + 1) // 2, p), v, degree=v.degree)

    def _greater(self, a: Residue, b: Residue) -> Residue:
        if self.laws:
            return self._select(a.parts[0] < b.parts[0], b, a)
        return self._of_set("max", self._stacked(a, b), a.degree.total + b.degree.total)

    def _logic(self, op: str, v: list[Residue]) -> Value:
        if self.laws:
            a = [x.parts[0] for x in v]
            match op:
                case "lt" | "le" | "eq":
                    return Whole({"lt": np.less, "le": np.less_equal, "eq": np.equal}[op](a[0], a[1]))
                case "not":
                    return Whole(a[0] == 0)
                case _:
                    return Whole((a[0] != 0) & (a[1] != 0) if op == "and" else (a[0] != 0) | (a[1] != 0))
        match op:
            case "not":
                return self._shifted(self._negated(v[0]), 1)
            case "le":  # a ≤ b: not b < a
                return self._shifted(self._negated(self._opaque("lt", v[1], v[0])), 1)
            case "lt":
                return self._opaque("lt", *v)
            case "eq":
                ordered = self._code(v[0]) < self._code(v[1])
                return self._opaque("eq", self._select(ordered, *v), self._select(ordered, v[1], v[0]))
            case _:
                return self._of_set(op, self._stacked(*v), sum(x.degree.total for x in v))

    # Reductions

    def reduce(self, e: Expr, arg: Value, dimension: int, counts: Array | None) -> Value:
        """Return a reduction."""
        if isinstance(arg, Whole) and counts is None and e.op in ("any", "all", "max", "min", "argmax", "argmin"):
            return Whole(np.asarray(e.row.evaluate(np, arg.numbers, dimension)))
        v = self.residue(arg)
        fine = None if v.fine is None else np.asarray(v.fine.all(axis=dimension))
        if v.infinite is not None and e.op in ("max", "min"):
            rest, left = self._without_lost(v, dimension, -1 if e.op == "max" else 1)
            best = self._reduced(e, rest, dimension, counts)
            assert isinstance(best, Residue)
            return replace(best, fine=fine, infinite=left)
        if v.infinite is not None:
            v = self._without_infinite(v)
            fine = None if v.fine is None else np.asarray(v.fine.all(axis=dimension))
        out = self._reduced(e, v, dimension, counts)
        return replace(out, fine=fine) if isinstance(out, Residue) else out

    def _reduced(self, e: Expr, v: Residue, dimension: int, counts: Array | None) -> Value:
        size = v.parts[0].shape[dimension]
        if e.op in ("sum", "prod"):
            parts = []
            for x, p in zip(v.parts, self.primes, strict=False):
                along = None if counts is None else counts.reshape((-1,) + (1,) * (x.ndim - dimension - 1))
                if e.op == "sum":
                    parts.append((x if along is None else x * (along % p) % p).sum(axis=dimension) % p)
                    continue
                total = np.ones(x.shape[:dimension] + x.shape[dimension + 1 :], np.int64)
                for i in range(size):
                    one = np.take(x, i, dimension)
                    total = total * (one if counts is None else _raised(one, int(counts[i]), p)) % p
                parts.append(total)
            times = size if counts is None else int(counts.sum())
            bottom = tuple((n, w, power * times) for n, w, power in v.degree.bottom)
            return Residue(tuple(parts), v.degree if e.op == "sum" else Degree(v.degree.top * times, bottom))
        if e.op in ("argmax", "argmin"):
            order = mix(np.arange(size, dtype=np.uint64)).reshape((-1,) + (1,) * (v.parts[0].ndim - dimension - 1))
            codes = mix(self._code(v).astype(np.uint64) + order).sum(axis=dimension, dtype=np.uint64)
            return self._noted(e.op, codes, v.degree)
        if self.laws:
            stack = np.moveaxis(v.parts[0], dimension, 0)
            if e.op in ("any", "all"):
                return Whole((stack != 0).any(axis=0) if e.op == "any" else (stack != 0).all(axis=0))
            best = stack.argmax(axis=0) if e.op == "max" else stack.argmin(axis=0)
            parts = [np.take_along_axis(x, np.expand_dims(best, dimension), dimension).squeeze(dimension) for x in v.parts]
            return Residue(tuple(parts), v.degree)
        if e.op == "min":
            return self._negated(self._of_set("max", np.moveaxis(self._code(self._negated(v)), dimension, 0), v.degree.total))
        name = {"any": "or", "all": "and"}.get(e.op, e.op)
        return self._of_set(name, np.moveaxis(self._code(v), dimension, 0), v.degree.total)

    def compare(self, a: Value, b: Value) -> tuple[int, int, int]:
        """Return how many elements differ, how many could be compared, and the degree of their difference at most."""
        x, y = self.residue(a), self.residue(b)
        sides = [np.zeros((), np.int8) if v.infinite is None else v.infinite for v in (x, y)]
        differ = np.where((sides[0] == 0) & (sides[1] == 0), self._code(x) != self._code(y), sides[0] != sides[1])
        fine = _both(x.fine, y.fine)
        defined = np.broadcast_to(np.asarray(True) if fine is None else fine, differ.shape)
        return int((differ & defined).sum()), int(defined.sum()), x.degree.plus(y.degree).total

    def miss(self, degree: int) -> float:
        """Return the logarithm to base 2 of the chance, at most, that values of this degree of difference agree by accident.

        Either two different arguments of a random function met, or the difference vanishes at the random inputs (Schwartz,
        Zippel): for each prime with a chance of degree/prime, independently.
        """
        count = len(self.primes)
        meetings = sum(calls * calls // 2 * max(1, 2 * worst) ** count for calls, worst in self.calls.values())
        return min(0.0, math.log2(max(1, degree) ** count + meetings) - sum(map(math.log2, self.primes)))

    # Building blocks

    def residue(self, value: Value) -> Residue:
        """Return any value as residues."""
        if isinstance(value, Residue):
            return value
        return Residue(tuple(value.numbers.astype(np.int64) % p for p in self.primes))

    def _each(self, f: Callable[..., Array], *values: Residue, degree: Degree = _CONSTANT) -> Residue:
        parts = tuple(f(p, *xs) for p, *xs in zip(self.primes, *(v.parts for v in values), strict=False))
        return Residue(parts, degree)

    def _negated(self, v: Residue) -> Residue:
        return replace(v, parts=tuple((-x) % p for x, p in zip(v.parts, self.primes, strict=False)))

    def _shifted(self, v: Residue, by: int) -> Residue:
        degree = v.degree.plus(Degree())
        return replace(v, parts=tuple((x + by) % p for x, p in zip(v.parts, self.primes, strict=False)), degree=degree)

    def _code(self, v: Residue) -> Array:
        """Return one number for each element: equal ones for equal elements."""
        return v.parts[0] if self.laws or len(v.parts) == 1 else v.parts[0] + (v.parts[1] << _BITS)

    def _stacked(self, *values: Residue) -> Array:
        """Return the operands' codes along a new first dimension."""
        codes = [self._code(v) for v in values]
        shape = np.broadcast_shapes(*(c.shape for c in codes))
        return np.stack([np.broadcast_to(c, shape) for c in codes])

    def _times(self, v: Residue, by: int) -> Residue:
        return replace(v, parts=tuple(x * (by % p) % p for x, p in zip(v.parts, self.primes, strict=False)))

    def _product(self, a: Residue, b: Residue) -> Residue:
        out = self._each(lambda p, x, y: x * y % p, a, b, degree=a.degree.times(b.degree))
        return replace(out, fine=_both(a.fine, b.fine))

    def _inverse(self, v: Residue) -> Residue:
        self._inverses += 1
        degree = v.degree.inverted(self._inverses, v.parts[0].size)
        out = self._each(lambda p, x: _raised(x, p - 2, p), v, degree=degree)
        nonzero = np.logical_and.reduce([x != 0 for x in v.parts])
        return replace(out, fine=_both(v.fine, None if nonzero.all() else nonzero))

    def _rational(self, q: Fraction) -> Residue:
        parts = [np.asarray(q.numerator * pow(q.denominator, -1, p) % p, np.int64) for p in self.primes]
        return Residue(tuple(parts))

    def _select(self, condition: Array, a: Residue, b: Residue) -> Residue:
        shape = np.broadcast_shapes(condition.shape, a.parts[0].shape, b.parts[0].shape)

        def chosen(x: Array | None, y: Array | None, blank: Any) -> Array | None:
            if x is None and y is None:
                return None
            return np.broadcast_to(np.where(condition, blank if x is None else x, blank if y is None else y), shape)

        parts = tuple(np.where(condition, x, y) for x, y in zip(a.parts, b.parts, strict=False))
        return Residue(parts, a.degree.plus(b.degree), chosen(a.fine, b.fine, True), chosen(a.infinite, b.infinite, np.int8(0)))

    def _random(self, name: str, codes: Array) -> Array:
        salt = mix(np.asarray([sum(c << (7 * i) for i, c in enumerate(name.encode()))], np.uint64) + self._seed)[0]
        return mix(codes + salt)

    def _drawn(self, codes: Array, degree: Degree) -> Residue:
        parts = (mix(codes + np.uint64(i)) % np.uint64(p) for i, p in enumerate(self.primes))
        return Residue(tuple(x.astype(np.int64) for x in parts), degree)

    def _opaque(self, name: str, *values: Residue) -> Residue:
        """Return a random function of the operands' first residues."""
        codes = np.zeros((), np.uint64)
        for v in values:
            codes = mix(codes + np.uint64(0x9E3779B97F4A7C15) + self._code(v).astype(np.uint64))
        return self._noted(name, codes, max((v.degree for v in values), key=lambda d: d.total))

    def _noted(self, name: str, codes: Array, degree: Degree) -> Residue:
        known, worst = self.calls.get(name, (0, 0))
        self.calls[name] = (known + codes.size, max(worst, degree.total))
        return self._drawn(self._random(name, codes), Degree(1))

    def _of_set(self, name: str, stack: Array, degree: int) -> Residue:
        """Return a random function of the set of elements along the first dimension; of one element, that element."""
        sets = self._composites.setdefault(name, ValueSets())
        codes, single = sets.codes(stack, lambda x: self._random(name, x.astype(np.uint64)))
        drawn = self._noted(name, codes, Degree(degree))
        out = np.where(single, stack[0], self._code(drawn))
        sets.add(out, stack, single)
        mask = (1 << _BITS) - 1
        return Residue((out & mask, out >> _BITS) if len(self.primes) > 1 else (out,), Degree(degree if single.any() else 1))

    # Infinite values

    def _infinite(self, e: Expr, v: list[Residue]) -> Residue | None:
        """Return the result of an op that masks rest on, with infinite operands; None: it is undefined where one is."""
        sign = [np.zeros((), np.int8) if x.infinite is None else x.infinite for x in v]
        finite = [replace(x, infinite=None) for x in v]
        match e.op:
            case "neg":
                return replace(self._negated(v[0]), infinite=-sign[0])
            case "cast" if e.dtype.is_float:
                return v[0]
            case "add" | "sub":
                other = -sign[1] if e.op == "sub" else sign[1]
                total = self._pointwise(e, finite)
                assert isinstance(total, Residue)
                clash = (sign[0] != 0) & (other != 0) & (sign[0] != other)
                fine = _both(v[0].fine, v[1].fine, ~clash)
                return replace(total, infinite=np.where(sign[0] != 0, sign[0], other), fine=fine)
            case "exp":
                out = self._exp(finite[0])
                parts = tuple(np.where(sign[0] != 0, 0, x) for x in out.parts)
                return Residue(parts, out.degree, _both(v[0].fine, sign[0] <= 0))
            case "maximum" | "minimum":
                lost = -1 if e.op == "maximum" else 1
                a, b = (np.where(s == lost, t, x) for s, t, x in ((sign[0], 1, 0), (sign[1], 1, 0)))
                between = self._pointwise(e, finite)
                assert isinstance(between, Residue)
                kept = self._select(a.astype(bool), finite[1], self._select(b.astype(bool), finite[0], between))
                both = np.where((sign[0] == lost) & (sign[1] == lost), np.int8(lost), np.int8(0))
                won = np.where((sign[0] == -lost) | (sign[1] == -lost), np.int8(-lost), both)
                return replace(kept, infinite=won, fine=_both(v[0].fine, v[1].fine))
            case _:
                return None

    @staticmethod
    def _without_infinite(v: Residue) -> Residue:
        if v.infinite is None:
            return v
        return replace(v, fine=_both(v.fine, np.asarray(v.infinite == 0)), infinite=None)

    @staticmethod
    def _without_lost(v: Residue, dimension: int, lost: int) -> tuple[Residue, Array]:
        """Replace infinities that lose an extremum by another element along the dimension; say where the result is infinite."""
        assert v.infinite is not None
        other = np.expand_dims((v.infinite != lost).argmax(axis=dimension), dimension)
        infinite = np.broadcast_to(v.infinite, v.parts[0].shape)
        parts = tuple(np.where(infinite == lost, np.take_along_axis(x, other, dimension), x) for x in v.parts)
        won = (infinite == -lost).any(axis=dimension)
        left = np.where((infinite == lost).all(axis=dimension), np.int8(lost), np.where(won, np.int8(-lost), np.int8(0)))
        return Residue(parts, v.degree), left


def _small(numbers: Array) -> bool:
    return numbers.dtype == bool or bool((abs(numbers) < _WHOLE).all())


def _both(*conditions: Array | None) -> Array | None:
    """Return where all conditions hold; None: everywhere."""
    out: Array | None = None
    for c in conditions:
        if c is not None:
            out = c if out is None else out & c
    return out


def _raised(base: Array, exponent: int, prime: int) -> Array:
    """Return base ** exponent modulo the prime."""
    out = np.ones_like(base)
    while exponent:
        if exponent & 1:
            out = out * base % prime
        base, exponent = base * base % prime, exponent >> 1
    return out


def _power_of(base: int, exponents: Array, prime: int) -> Array:
    """Return base ** exponents modulo the prime."""
    out = np.ones_like(exponents)
    left = exponents.copy()
    while left.any():
        out = np.where(left & 1, out * base % prime, out)
        base, left = base * base % prime, left >> 1
    return out
