"""Piecewise, whole-number and order laws by z3: what normal forms leave open, with sums and unknown functions as unknowns.

z3-solver is an optional dependency (`pip install "eqsat[prove]"`): it is needed only to prove new rules that normal forms do
not decide. A maximum over an axis is at least the value at every place that occurs, and its value at one place. An
exponential is positive, at least 1 + x, and 1 at most where x ≤ 0. What these facts do not settle is not proved.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from eqsat.proof.laws import Goal
from eqsat.proof.normalform import Atom, Mono, Poly, index, single
from eqsat.proof.reductions import rename

_MOST_INSTANCES = 200  # places at which a maximum is compared with its operand
_ROUNDS = 2  # times that places found by comparing are compared again
_MOST_EXPONENTIALS = 10  # exponentials whose order is compared with that of their exponents
_MOST_DEGREE = 8  # of powers and roots that are written as products
_EFFORT = 2_000_000  # z3's count of steps: the same on every machine, unlike a time
_TIMEOUT_MS = 2000  # and a time, should a step be slow


@dataclass(frozen=True, slots=True)
class Outcome:
    """What z3 says of a goal.

    Attributes
    ----------
    verdict : {"proved", "refuted", "open"}
        `refuted` only says that the unknowns can be chosen so; whether the rule is false is for the oracle to say.
    values : dict of str to Fraction
        For a refuted goal: the numbers of the rule and the tensors without axes.
    why : str
        What stopped an open goal.
    """

    verdict: Literal["proved", "refuted", "open"]
    values: Mapping[str, Fraction]
    why: str = ""


def available() -> bool:
    """Whether z3-solver is installed."""
    return importlib.util.find_spec("z3") is not None


def decide(goal: Goal) -> Outcome:
    """Ask z3 whether the two forms of a goal are equal wherever both sides are defined."""
    if not available():
        return Outcome("open", {}, 'z3-solver is not installed: pip install "eqsat[prove]"')
    return _Query(goal).run()


class _Query:
    """One question, in z3's terms."""

    def __init__(self, goal: Goal) -> None:
        import z3  # optional dependency

        self.z3 = z3
        self.goal = goal
        self.facts: list[Any] = []
        self.values: dict[str, Any] = {}
        self._maxima: dict[Atom, Any] = {}
        self._exponentials: dict[str, tuple[Any, Any]] = {}
        self._places: dict[str, Atom] = {}
        self._names = itertools.count()
        for point in goal.points:
            self.atom(point)

    def run(self) -> Outcome:
        """Return what z3 finds."""
        z3 = self.z3
        difference = self.form(self.goal.left - self.goal.right)
        for head, form in self.goal.premises:
            self.facts.append(_COMPARED[head](self.form(form)))
        for side in self.goal.violations:
            self.facts += [self.form(v) <= 0 for v in side.values() if not any(n.startswith("#") for n in v.free)]
        self._compare_maxima()
        self._order_exponentials()
        solver = z3.Solver()
        solver.set("rlimit", _EFFORT)
        solver.set("timeout", _TIMEOUT_MS)
        solver.add(*self.facts, difference != 0)
        answer = solver.check()
        if answer == z3.unsat:
            return Outcome("proved", {})
        if answer == z3.sat:
            return Outcome("refuted", self._model(solver.model()))
        return Outcome("open", {}, f"z3 gave up ({solver.reason_unknown()})")

    def _model(self, model: Any) -> dict[str, Fraction]:
        out = {}
        for name, term in self.values.items():
            value = model.eval(term, model_completion=True)
            if self.z3.is_algebraic_value(value):
                value = value.approx(20)
            out[name] = Fraction(value.numerator_as_long(), value.denominator_as_long())
        return out

    def form(self, form: Poly) -> Any:
        """Return a form as a real term."""
        return self.z3.Sum([self._mono(m) * self.z3.RealVal(str(c)) for m, c in form.terms] or [self.z3.RealVal(0)])

    def _mono(self, mono: Mono) -> Any:
        return self.z3.Product([self._power(a, p) for a, p in mono.factors] or [self.z3.RealVal(1)])

    def _power(self, atom: Atom, power: Fraction) -> Any:
        far = max(abs(power.numerator), power.denominator) > _MOST_DEGREE
        if far or (atom.kind == "exp" and power != 1):
            term = self._opaque_power(atom, power)
            if not far:
                self.facts.append(term == self._near_power(atom, power))
            return term
        return self._near_power(atom, power)

    def _near_power(self, atom: Atom, power: Fraction) -> Any:
        value = self.atom(atom)
        if power.denominator != 1:
            root = self._unknown(f"{atom.key} root {power.denominator}")
            self.facts.append(
                self.z3.Implies(value >= 0, self.z3.And(root >= 0, self._product(root, power.denominator) == value))
            )
            value = root
        if power > 0:
            return self._product(value, power.numerator)
        inverse = self._unknown(f"{atom.key} inverse {power.denominator}")
        self.facts.append(self.z3.Implies(value != 0, inverse * value == 1))
        return self._product(inverse, -power.numerator)

    def _opaque_power(self, atom: Atom, power: Fraction) -> Any:
        """Return a power that is no product of a few factors: an unknown, for exponentials with what is known of them."""
        term = self._unknown(f"{atom.key}^{power}")
        if atom.positive:
            self.facts.append(term > 0)
        if atom.kind == "exp":
            x = self.form(atom.args[0] * power)
            self._exponential(f"{atom.key}^{power}", x, term)
        return term

    def _order_exponentials(self) -> None:
        """State that e^x grows with x, also among reciprocals: e^x = 1/e^−x."""
        found = list(self._exponentials.values())[:_MOST_EXPONENTIALS]
        for (x, a), (y, b) in itertools.combinations(found, 2):
            self.facts += [(x < y) == (a < b), (y < x) == (b < a), (x + y < 0) == (a * b < 1), (x + y > 0) == (a * b > 1)]

    def _exponential(self, name: str, x: Any, term: Any) -> None:
        self.facts += [term >= 1 + x, self.z3.Implies(x <= 0, term <= 1)]
        self._exponentials[name] = x, term

    def _product(self, value: Any, times: int) -> Any:
        return self.z3.Product([value] * times)

    def _unknown(self, name: str, *, integer: bool = False) -> Any:
        return self.z3.ToReal(self.z3.Int(name)) if integer else self.z3.Real(name)

    def atom(self, atom: Atom) -> Any:
        """Return an atom as a real term, and note what is known of it."""
        z3 = self.z3
        match atom.kind, atom.args:
            case "base", (form,):
                return self.form(form)
            case "positive", (form,):
                return z3.If(self.form(form) > 0, z3.RealVal(1), z3.RealVal(0))
            case "zero", (form,):
                return z3.If(self.form(form) == 0, z3.RealVal(1), z3.RealVal(0))
            case "above", (form, least):
                return z3.If(self.form(form) > least, z3.RealVal(1), z3.RealVal(0))
            case "prime", (value,):
                return z3.RealVal(value)
        if atom.idempotent:
            return z3.If(z3.Bool(atom.key), z3.RealVal(1), z3.RealVal(0))
        term = self._unknown(atom.key, integer=atom.integer)
        if atom.positive:
            self.facts.append(term > 0)
        elif atom.nonnegative:
            self.facts.append(term >= 0)
        self._note(atom, term)
        return term

    def _note(self, atom: Atom, term: Any) -> None:
        z3 = self.z3
        match atom.kind, atom.args:
            case "tensor", (name, _, (), _):
                self.values[name] = term
            case "number", (name,):
                self.values[name] = term
            case "index", (name, extent) if name not in self._places:
                self._places[name] = atom
                self.facts.append(term < self.form(extent))
            case "exp", (form,):
                self._exponential(atom.key, self.form(form), term)
            case "function", ("floor", form):
                x = self.form(form)
                self.facts += [term <= x, x < term + 1]
            case "function", ("trunc", form):
                x = self.form(form)
                self.facts.append(z3.If(x >= 0, z3.And(term <= x, x < term + 1), z3.And(x <= term, term < x + 1)))
            case "function", (name, _) if name in ("erf", "sin", "cos"):
                self.facts += [term <= 1, term >= -1]
            case "quotient", (form, divisor):
                x, by = self.form(form), self.form(divisor)
                self.facts += [term * by <= x, x < term * by + by]
            case "max", _ if atom not in self._maxima:
                self._maxima[atom] = term
                self._attained(atom, term)

    def _attained(self, atom: Atom, term: Any) -> None:
        """State that a maximum is the value of a member at some place."""
        options = []
        for bounds, form in atom.args:
            chosen = {b.args[0]: index(f"!{next(self._names)}", b.args[1]) for b in bounds}
            for place in chosen.values():
                self.form(single(place))
            options.append(term == self.form(rename(form, {n: single(p) for n, p in chosen.items()})))
        self.facts.append(self.z3.Or(options))

    def _compare_maxima(self) -> None:
        """State for every place that occurs that a maximum is at least the value there."""
        done: set[tuple[str, ...]] = set()
        for _ in range(_ROUNDS):
            for atom, term in list(self._maxima.items()):
                for bounds, form in atom.args:
                    fitting = [[p for p in self._places.values() if p.args[1] == b.args[1]] for b in bounds]
                    for places in itertools.product(*fitting):
                        key = (atom.key, form.key, *(p.key for p in places))
                        if key in done or len(done) >= _MOST_INSTANCES:
                            continue
                        done.add(key)
                        there = {b.args[0]: single(p) for b, p in zip(bounds, places, strict=True)}
                        self.facts.append(term >= self.form(rename(form, there)))


_COMPARED: Mapping[str, Any] = {
    "=": lambda d: d == 0, "!=": lambda d: d != 0, "<": lambda d: d < 0,
    "<=": lambda d: d <= 0, ">": lambda d: d > 0, ">=": lambda d: d >= 0,
}  # fmt: skip
