"""The gate: no rule is used before its law has been proved or tested, and a false one is refused with a counterexample.

Each equation that a rule claims is evaluated on both sides in random situations that satisfy its guards: at several extent
assignments (distinct extents, each axis once of extent 1), over every combination of axis sets, with negatives, zeros,
operands equal to each other and to constants; in float64 with a tolerance from a running error. Then it is proved for all
extents (`eqsat.proof.prover`). What is not proved is tested further: polynomial and rational laws in two prime fields, where a
false law passes with a probability that is computed; order and choice over the integers. The numeric class is tested in any
case, since a proof speaks of the reals: `exact` bit by bit in float32, the others at large magnitudes, `approximates` also
at many numbers of all magnitudes.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from eqsat.errors import FalseRuleError, RuleError
from eqsat.gate.draw import EXTENTS, Draw, applied, axes_of, degree, draws, evaluate, tensor_numbers, within_ranges
from eqsat.gate.equation import Equation, IllTypedError, UncheckableError, dtype_of, equations, typings
from eqsat.gate.evidence import Evidence, cached, committed, keep
from eqsat.gate.shrink import Situation, shown, shrink
from eqsat.gate.value import (
    EXTREMA,
    INTEGER_OPS,
    RING_OPS,
    Comparison,
    Domain,
    Float32,
    Float64,
    Integers,
    PrimeField,
    UntestableError,
)
from eqsat.gate.whole import fraction_among_whole
from eqsat.proof.prover import Proof, prove
from eqsat.rulefile import Rule

PRIMES = (2147483647, 2147483629)
"""The two largest primes below 2^31: products of residues fit 64 bits."""

_DRAWS, _DRAWS_PROVED = 8, 2  # situations for each extent assignment and number system; fewer of what is proved, if they differ
_DISTINCT = 3  # extent assignments that must have come up
_LEAST = 24  # elements that must have been compared with a tolerance that says something; a third of it for what is proved
_WIDE = 4096  # numbers of all magnitudes at which a stated bound is tested, for each situation


def check_rules(
    rules: Iterable[Rule], cache_dir: Path | None = None, seed: int = 0, *, use_committed: bool = True
) -> list[Evidence]:
    """Prove or test every rule and return the evidence, in order.

    Parameters
    ----------
    rules : iterable of Rule
    cache_dir : Path, optional
        Folder with evidence by digest of rule and gate; what is there is not tested again, what is new is added.
    seed : int
    use_committed : bool
        Whether the evidence that is shipped with eqsat counts.

    Returns
    -------
    list of Evidence

    Raises
    ------
    FalseRuleError
        At the first false rule, with the smallest counterexample found.
    RuleError
        At a rule that cannot be tested.
    """
    found = []
    for rule in rules:
        evidence = (committed(rule.digest, rule.name) if use_committed else None) or cached(rule.digest, rule.name, cache_dir)
        if evidence is None:
            evidence = check_rule(rule, seed)
            keep(evidence, cache_dir)
        found.append(evidence)
    return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a rule is admitted: with its evidence, or with the reason why not."""

    rule: Rule
    evidence: Evidence | None
    refusal: str = ""

    @property
    def admitted(self) -> bool:
        """Whether there is evidence."""
        return self.evidence is not None

    def record(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        e, r = self.evidence, self.rule
        found = {
            "method": e.method, "how": e.how, "why": e.why, "log2_bound": e.log2_bound, "trials": e.trials,
            "compared": e.compared, "extents": list(e.extents), "time_ms": e.time_ms,
        } if e else {}  # fmt: skip
        said = {"counterexample": self.refusal} if not self.admitted else {}
        place = {"file": r.file, "line": r.line, "digest": r.digest}
        return {"name": r.name, "admitted": self.admitted, "numerics": r.numerics, "bound": r.bound, **found, **said, **place}

    def __str__(self) -> str:
        if self.evidence is None:
            return f"{self.rule.name:<36}REFUSED  {self.refusal}"
        e = self.evidence
        bound = f"a false law passes with probability ≤ 2^{e.log2_bound:.0f}" if e.log2_bound is not None else e.why
        return f"{self.rule.name:<36}ok  {' '.join(filter(None, (e.method, f'({e.how or bound})' if e.how or bound else '')))}"


def judge_rules(rules: Iterable[Rule], seed: int = 0) -> list[Verdict]:
    """Prove or test every rule anew and say of each whether it is admitted; none stops the others."""
    out = []
    for rule in rules:
        try:
            out.append(Verdict(rule, check_rule(rule, seed)))
        except (FalseRuleError, RuleError) as e:
            out.append(Verdict(rule, None, str(e)))
    return out


def check_rule(rule: Rule, seed: int = 0) -> Evidence:
    """Prove or test one rule.

    Parameters
    ----------
    rule : Rule
    seed : int
        The same rule and seed give the same evidence.

    Returns
    -------
    Evidence

    Raises
    ------
    FalseRuleError
        If the two sides differ, change the dtype or the axes, or break the numeric class that the rule states.
    RuleError
        If it cannot be tested: it only states facts, its guards are never satisfied, or it uses what the gate cannot evaluate.
    """
    claims = equations(rule)
    if not claims:
        if not rule.builtin and rule.phase not in ("lowering", "schedule"):
            raise _untestable(rule, "it states facts and no equation between tensors, which only lowering and schedule rules may")
        return Evidence(rule.name, rule.digest, "structural", rule.numerics, seed=seed)
    rng = random.Random(f"{rule.digest} {seed}")
    began = time.perf_counter()
    try:
        tallies = [_Tester(rule, claim, rng).run() for claim in claims]
    except UncheckableError as e:
        raise _untestable(rule, str(e)) from e
    spent_ms = round((time.perf_counter() - began) * 1e3, 1)
    proofs = [t.proof for t in tallies]
    bounds = [t.log2_bound for t in tallies if t.log2_bound is not None]
    proved, in_field = (
        all(p.found for p in proofs),
        all(p.found or t.log2_bound is not None for p, t in zip(proofs, tallies, strict=True)),
    )
    return Evidence(
        rule.name, rule.digest, "proved" if proved else "field" if in_field else "fuzz", rule.numerics,
        sum(t.trials for t in tallies), sum(t.compared for t in tallies), sum(t.skipped for t in tallies),
        tuple(dict.fromkeys(e for t in tallies for e in t.extents)),
        round(max(bounds), 1) if in_field and not proved else None, seed,
        ", ".join(sorted({h for p in proofs for h in p.how})) if proved else "",
        next((p.why for p in proofs if not p.found), ""), spent_ms,
    )  # fmt: skip


def _untestable(rule: Rule, why: str) -> RuleError:
    return RuleError(f"the rule {rule.name} cannot be tested: {why}", file=rule.file, line=rule.line)


@dataclass(slots=True)
class _Tally:
    """What the tests of one equation add up to."""

    trials: int = 0
    compared: int = 0
    skipped: int = 0
    extents: tuple[str, ...] = ()
    log2_bound: float | None = None
    proof: Proof = field(default_factory=Proof)


class _Tester:
    """Tests one equation of a rule."""

    def __init__(self, rule: Rule, equation: Equation, rng: random.Random) -> None:
        self.rule, self.equation, self.rng = rule, equation, rng
        self.arrays = np.random.default_rng(rng.getrandbits(64))
        self.typings = typings(equation)
        self.tally = _Tally()
        self._drawn: list[Draw] = []
        literals = {n.number for t in (equation.left, equation.right) for n in t.walk() if n.kind == "float"}
        finite = {abs(x) for x in literals if math.isfinite(x)}
        self._near = sorted({sign * y for x in finite for y in (x - 1, x, x + 1, 2 * x) for sign in (-1, 1)})

    def run(self) -> _Tally:
        """Run every test that fits the equation's ops and the rule's numeric class."""
        if not self.typings:
            raise _untestable(self.rule, "for no dtypes of its variables is the left side a term that programs have")
        self._check_types()
        used = self.equation.operations
        self.tally.proof = proof = prove(self.equation, self.typings)
        self._drawn = list(self._few()) if proof.found else []
        self._floats("ordinary")
        if not proof.found and self.rule.numerics == "approximates":
            self.tally.proof = replace(proof, why="what approximates is tested, not proved")
            self._bound()
        elif not proof.found:
            self._further(proof, used)
        if self.rule.numerics == "exact":
            for draw in self._twice():
                self._test(draw, Float32(open_zero=bool(used & EXTREMA)), "signed")
        if self.rule.numerics != "unstable" and not used <= RING_OPS | INTEGER_OPS:
            self._floats("large")
        if self.rule.phase == "fold":
            for draw in self._situations():
                self._test(draw, Float64(self.rule.bound, where_finite=True), "masked")
        self._check_whole()
        if self.tally.compared < (_LEAST // 3 if proof.found else _LEAST) or self.tally.compared * 10 < self.tally.skipped:
            raise _untestable(
                self.rule,
                f"only {self.tally.compared} elements could be compared, {self.tally.skipped} are undefined; state the domain in a guard",
            )
        return self.tally

    def _further(self, proof: Proof, used: frozenset[str]) -> None:
        """Test what is not proved: where z3 thinks it false, in prime fields or over the integers."""
        self._suspected(proof)
        if len(self._near):
            for draw in self._situations():
                self._test(draw, Float64(self.rule.bound), "near")
        if used <= RING_OPS:
            self.tally.log2_bound = self._field()
        elif used <= INTEGER_OPS:
            for draw in self._situations():
                self._test(draw, Integers(), "whole")

    def _suspected(self, proof: Proof) -> None:
        """Evaluate both sides where z3 has found the unknowns to be a counterexample."""
        if not proof.values:
            return
        kinds = {"real": ("f32", "bf16", "f16", "weak"), "whole": ("i32",), "truth": ("bool", "weak")}
        fitting = [t for t in self.typings if all(t[v] in kinds[k] for v, k in proof.kinds.items())]
        for drawn, types in zip(
            draws(self.equation, fitting[:1], EXTENTS[0], self.rng) if fitting else (), fitting, strict=False
        ):
            numbers = {v: proof.values.get(v, Fraction(1)) for v, _ in self.equation.numbers}
            bare = dict.fromkeys(self.equation.tensors, frozenset[str]())
            draw = applied(self.equation, replace(drawn, axes=bare, types=types, numbers=numbers, same={}))
            if draw is not None:
                values = {v: np.full(draw.shape(v), float(proof.values.get(v, 0))) for v in self.equation.tensors}
                situation = Situation(draw, values)
                if self._compare(situation, domain := Float64(self.rule.bound)).wrong.any():
                    self._refuse(situation, domain, "suspected")

    def _bound(self) -> None:
        """Test a stated bound at many numbers of all magnitudes, on an axis that the rule does not mention."""
        domain = Float64(self.rule.bound)
        for draw in self._situations():
            along = next(a for a in reversed(list(draw.extents)) if a not in draw.axis.values())
            wide = replace(draw, extents={**draw.extents, along: _WIDE})
            values = self._values(wide, "wide", domain)
            try:
                comparison = self._compare(Situation(wide, values), domain)
            except UntestableError:
                continue
            if comparison.wrong.any():
                place = np.argwhere(comparison.wrong)[0][list(wide.extents).index(along)]
                at = list(wide.extents).index(along)
                one = {v: np.take(x, [min(place, x.shape[at] - 1)], at) for v, x in values.items()}
                self._refuse(Situation(replace(draw, extents={**draw.extents, along: 1}), one), domain, "wide")

    def _check_types(self) -> None:
        e = self.equation
        for types in self.typings:
            left = dtype_of(e.left, types)
            try:
                right = dtype_of(e.right, types)
            except IllTypedError as error:
                right = f"ill-typed ({error})"
            if left != right:
                given = ", ".join(f"{v}: {types[v]}" for v in (*e.tensors, *e.types))
                raise FalseRuleError(
                    f"{self._head()} changes the dtype: with {given} the left side is {left} and the right side {right}.\n"
                    f"  left   {e.left}\n  right  {e.right}\n"
                    "A constant has no dtype (weak) and takes that of what it meets; guard with (float a), (typed a) or (same-dtype a b)."
                )

    def _check_whole(self) -> None:
        """Refuse a true law that puts a constant beside whole numbers, which it did not meet on the left."""
        e = self.equation
        for types in self.typings:
            if (constant := fraction_among_whole(e, types)) is not None:
                given = ", ".join(f"{v}: {types[v]}" for v in e.tensors)
                raise FalseRuleError(
                    f"{self._head()} lets a fraction meet whole numbers: with {given} the constant {constant} takes a whole dtype.\n"
                    f"  left   {e.left}\n  right  {e.right}\n"
                    "Guard with (groups a b) for those that come together, with (float a), or write the law with whole constants."
                )

    def _field(self) -> float:
        """Test each situation in every prime field; return log2 of the chance that a law false in one of them passes."""
        worst = -math.inf
        for draw in self._situations():
            (a, c), (b, d) = (degree(t, draw) for t in (self.equation.left, self.equation.right))
            log2 = 0.0
            for prime in PRIMES:
                self._test(draw, PrimeField(prime), "residues")
                log2 += min(0.0, math.log2(max(a + d, b + c, 1) / prime))
            worst = max(worst, log2)
        return worst

    def _floats(self, style: str) -> None:
        """Test in float64; this is what the counts of elements and extents speak of."""
        done = []
        for draw in self._twice() if style == "large" else self._situations():
            comparison = self._test(draw, Float64(self.rule.bound), style)
            if comparison is not None:
                done.append(tuple(draw.extents.items()))
                self.tally.compared += comparison.compared
                self.tally.skipped += comparison.skipped
        self.tally.extents += tuple(" ".join(f"{a}={n}" for a, n in d) for d in dict.fromkeys(done))
        if len(set(done)) < _DISTINCT:
            raise _untestable(
                self.rule, "its guards hold in too few of the situations drawn; state them as (has k a), (free-of k a), …"
            )

    def _situations(self) -> Iterator[Draw]:
        """Yield some situations for each extent assignment: anew for each test, but the same ones of what is proved."""
        if self._drawn:
            yield from self._drawn
            return
        for row in EXTENTS:
            yield from self._drawn_for(row, _DRAWS)

    def _twice(self) -> Iterator[Draw]:
        """Yield situations; where they are few, twice: the numeric class needs many numbers."""
        yield from self._situations()
        yield from self._drawn

    def _few(self) -> Iterator[Draw]:
        """Yield few situations, more where few extents came up in them."""
        extents: set[tuple[int, ...]] = set()
        for _ in range(0, _DRAWS, _DRAWS_PROVED):
            for row in EXTENTS:
                for draw in self._drawn_for(row, _DRAWS_PROVED):
                    extents.add(tuple(draw.extents.values()))
                    yield draw
            if len(extents) >= _DISTINCT:
                return

    def _drawn_for(self, row: Sequence[int], count: int) -> Iterator[Draw]:
        for draw, _ in zip(draws(self.equation, self.typings, row, self.rng), range(count), strict=False):
            self._check_axes(draw)
            yield draw

    def _test(self, draw: Draw, domain: Domain, style: str) -> Comparison | None:
        """Test one situation; None if a number in it has no meaning in `domain`."""
        situation = Situation(draw, self._values(draw, style, domain))
        try:
            comparison = self._compare(situation, domain)
        except UntestableError:
            return None
        if comparison.wrong.any():
            self._refuse(situation, domain, style)
        self.tally.trials += 1
        return comparison

    def _check_axes(self, draw: Draw) -> None:
        left, right = axes_of(self.equation.left, draw), axes_of(self.equation.right, draw)
        if left == right:
            return
        given = ", ".join(f"{v}[{' '.join(sorted(draw.axes[v]))}]" for v in self.equation.tensors)
        what = (
            "reduces over an axis that its operand lacks"
            if right is None
            else f"varies over [{' '.join(sorted(right))}], the left side over [{' '.join(sorted(left or ()))}]"
        )
        raise FalseRuleError(
            f"{self._head()} changes the axes: with {given} the right side {what}.\n"
            f"  left   {self.equation.left}\n  right  {self.equation.right}\n"
            "Add a guard such as (has k a), (free-of k a) or (within a b)."
        )

    def _values(self, draw: Draw, style: str, domain: Domain) -> dict[str, np.ndarray[Any, Any]]:
        out: dict[str, np.ndarray[Any, Any]] = {}
        for v in self.equation.tensors:
            prime = domain.prime if isinstance(domain, PrimeField) else 0
            if draw.same.get(v) in out and not prime:
                out[v] = out[draw.same[v]]
            elif style == "near" and draw.types[v] != "bool":
                drawn = self.arrays.choice(self._near, draw.shape(v))
                out[v] = np.round(drawn) if draw.types[v] == "i32" else drawn
            else:
                out[v] = tensor_numbers(self.arrays, draw.shape(v), draw.types[v], style, prime)
        return out if isinstance(domain, PrimeField) else within_ranges(self.equation, draw, out)

    def _compare(self, situation: Situation, domain: Domain) -> Comparison:
        draw = situation.draw
        tensors = {v: domain.tensor(x, draw.types[v]) for v, x in situation.values.items()}
        with np.errstate(all="ignore"):
            left = evaluate(self.equation.left, draw, domain, tensors)
            right = evaluate(self.equation.right, draw, domain, tensors)
            return domain.compare(left, right)

    def _refuse(self, situation: Situation, domain: Domain, style: str) -> None:
        """Raise FalseRuleError with the smallest counterexample."""
        if isinstance(domain, PrimeField):  # residues say little to a reader: look for small whole numbers first
            domain, situation = self._whole_counterexample() or (domain, situation)

        def failing(candidate: Situation) -> Situation | None:
            draw = applied(self.equation, candidate.draw)
            if draw is None or axes_of(self.equation.right, draw) is None:
                return None
            there = Situation(draw, candidate.values)
            fitting = within_ranges(self.equation, draw, candidate.values)
            if any(not np.array_equal(x, fitting[v]) for v, x in candidate.values.items()):
                return None
            try:
                return there if self._compare(there, domain).wrong.any() else None
            except UntestableError:
                return None

        least = shrink(situation, failing)
        why, advice = _VERDICTS.get((domain.name, style), _VERDICTS["", ""])
        raise FalseRuleError(
            f"{self._head()} {why}.\n{shown(self.equation, least, domain, self._compare(least, domain))}\n{advice}"
        )

    def _whole_counterexample(self) -> tuple[Domain, Situation] | None:
        domain = Float64(self.rule.bound)
        for row in EXTENTS:
            for draw, _ in zip(draws(self.equation, self.typings, row, self.rng), range(4 * _DRAWS), strict=False):
                situation = Situation(draw, self._values(draw, "whole", domain))
                if self._compare(situation, domain).wrong.any():
                    return domain, situation
        return None

    def _head(self) -> str:
        law = f" ({self.rule.law})" if self.rule.law else ""
        return f"the rule {self.rule.name}{law} at {self.rule.file}:{self.rule.line}"


_VERDICTS = {
    ("float32", "signed"): (
        "claims to be exact, but its sides differ in float32",
        "State :numerics reassociates if only rounding differs.",
    ),
    ("float64", "wide"): (
        "does not hold the bound that it states",
        "State a larger :bound, or the domain in a guard.",
    ),
    ("float64", "large"): (
        "loses range: at large magnitudes its sides differ",
        "State :numerics unstable (such rules are off by default), or write the law so that nothing overflows.",
    ),
    ("float64", "masked"): (
        "does not bear masked scores: where an operand is −∞ its sides differ",
        "A part of an axis may be wholly masked: hold its maximum above the least number, as the rules in fold.egg do.",
    ),
    ("", ""): ("is false", "Add the guard that excludes this, or correct the law."),
}
