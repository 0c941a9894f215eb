"""The gate: no rule is used before its law has been tested, and a false one is refused with a counterexample.

Each equation that a rule claims is evaluated on both sides in random situations that satisfy its guards: at several extent
assignments (distinct extents, each axis once of extent 1), over every combination of axis sets, with negatives, zeros,
operands equal to each other and to constants. Polynomial and rational laws are tested in two prime fields, where a false
law passes with a probability that is computed; order and choice over the integers; everything in float64 with a tolerance
from a running error. The numeric class is tested too: `exact` bit by bit in float32, the others at large magnitudes.
A proof for all extents is the same seam: another `method` in the evidence.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eqsat import ops, rulegate_draw, rulegate_equation, rulegate_value
from eqsat.errors import FalseRuleError, RuleError
from eqsat.rulefile import Rule
from eqsat.rulegate_draw import EXTENTS, Draw, applied, axes_of, degree, draws, evaluate, tensor_numbers, within_ranges
from eqsat.rulegate_equation import Equation, IllTypedError, UncheckableError, dtype_of, equations, typings
from eqsat.rulegate_shrink import Situation, shown, shrink
from eqsat.rulegate_value import (
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

Method = Literal["field", "fuzz", "structural", "proved"]

PRIMES = (2147483647, 2147483629)
"""The two largest primes below 2^31: products of residues fit 64 bits."""

_DRAWS = 8  # situations for each extent assignment and number system
_LEAST = 24  # elements that must have been compared with a tolerance that says something
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a rule is admitted.

    Attributes
    ----------
    rule, digest : str
        Name and digest of the rule.
    method : {"field", "fuzz", "structural", "proved"}
        Tested in prime fields and floats; tested in floats (and integers where they serve); claims nothing about values.
    numerics : str
        The class that was tested.
    trials, compared, skipped : int
        Situations; elements compared; elements where a side is undefined or the tolerance says nothing.
    extents : tuple of str
        The extent assignments, such as `k=2 p=3 q=5`.
    log2_bound : float or None
        Base-2 logarithm of the chance that a law passes the field tests though it is false for some axes and extents drawn
        (degree over prime for each field, by Schwartz and Zippel; the largest over the situations).
    seed : int
    """

    rule: str
    digest: str
    method: Method
    numerics: str
    trials: int = 0
    compared: int = 0
    skipped: int = 0
    extents: tuple[str, ...] = ()
    log2_bound: float | None = None
    seed: int = 0

    def __str__(self) -> str:
        if self.method == "structural":
            return f"{self.rule}: structural, claims no values"
        bound = f", a false law passes with probability ≤ 2^{self.log2_bound:.0f}" if self.log2_bound is not None else ""
        return f"{self.rule}: {self.method}, {self.trials} situations, {self.compared} elements ({self.numerics}){bound}"


def check_rules(rules: Iterable[Rule], cache_dir: Path | None = None, seed: int = 0) -> list[Evidence]:
    """Test every rule and return the evidence, in order.

    Parameters
    ----------
    rules : iterable of Rule
    cache_dir : Path, optional
        Folder with evidence by digest of rule and gate; what is there is not tested again, what is new is added.
    seed : int

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
        evidence = _cached(rule, cache_dir)
        if evidence is None:
            evidence = check_rule(rule, seed)
            _keep(evidence, cache_dir)
        found.append(evidence)
    return found


def check_rule(rule: Rule, seed: int = 0) -> Evidence:
    """Test one rule.

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
    try:
        tallies = [_Tester(rule, claim, rng).run() for claim in claims]
    except UncheckableError as e:
        raise _untestable(rule, str(e)) from e
    bounds = [t.log2_bound for t in tallies]
    in_field = all(b is not None for b in bounds)
    return Evidence(
        rule.name, rule.digest, "field" if in_field else "fuzz", rule.numerics,
        sum(t.trials for t in tallies), sum(t.compared for t in tallies), sum(t.skipped for t in tallies),
        tuple(dict.fromkeys(e for t in tallies for e in t.extents)),
        round(max(b for b in bounds if b is not None), 1) if in_field else None, seed,
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


class _Tester:
    """Tests one equation of a rule."""

    def __init__(self, rule: Rule, equation: Equation, rng: random.Random) -> None:
        self.rule, self.equation, self.rng = rule, equation, rng
        self.arrays = np.random.default_rng(rng.getrandbits(64))
        self.typings = typings(equation)
        self.tally = _Tally()

    def run(self) -> _Tally:
        """Run every test that fits the equation's ops and the rule's numeric class."""
        if not self.typings:
            raise _untestable(self.rule, "for no dtypes of its variables is the left side a term that programs have")
        self._check_types()
        used = self.equation.operations
        if used <= RING_OPS:
            self.tally.log2_bound = self._field()
        elif used <= INTEGER_OPS:
            for draw in self._situations():
                self._test(draw, Integers(), "whole")
        self._floats("ordinary")
        if self.rule.numerics == "exact":
            for draw in self._situations():
                self._test(draw, Float32(open_zero=bool(used & EXTREMA)), "signed")
        if self.rule.numerics != "unstable" and not used <= RING_OPS | INTEGER_OPS:
            self._floats("large")
        if self.rule.phase == "fold":
            for draw in self._situations():
                self._test(draw, Float64(self.rule.bound, where_finite=True), "masked")
        if self.tally.compared < _LEAST or self.tally.compared * 10 < self.tally.skipped:
            raise _untestable(
                self.rule,
                f"only {self.tally.compared} elements could be compared, {self.tally.skipped} are undefined; state the domain in a guard",
            )
        return self.tally

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
        for draw in self._situations():
            comparison = self._test(draw, Float64(self.rule.bound), style)
            if comparison is not None:
                done.append(tuple(draw.extents.items()))
                self.tally.compared += comparison.compared
                self.tally.skipped += comparison.skipped
        self.tally.extents += tuple(" ".join(f"{a}={n}" for a, n in d) for d in dict.fromkeys(done))
        if len(set(done)) < 3:
            raise _untestable(
                self.rule, "its guards hold in too few of the situations drawn; state them as (has k a), (free-of k a), …"
            )

    def _situations(self) -> Iterator[Draw]:
        """Yield `_DRAWS` situations for each extent assignment."""
        for row in EXTENTS:
            found = draws(self.equation, self.typings, row, self.rng)
            for draw, _ in zip(found, range(_DRAWS), strict=False):
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


@functools.cache
def _gate_digest() -> str:
    """SHA-256 over the code that decides, so that no evidence outlives the gate or the op table that gave it."""
    modules = (ops, rulegate_draw, rulegate_equation, rulegate_value)
    texts = [Path(m.__file__ or "").read_bytes() for m in modules] + [Path(__file__).read_bytes()]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def _cached(rule: Rule, cache_dir: Path | None) -> Evidence | None:
    if cache_dir is None:
        return None
    try:
        kept = json.loads((cache_dir / f"{rule.digest}.json").read_text(encoding="utf-8"))
        if kept.pop("gate") != _gate_digest():
            return None
        return Evidence(**{**kept, "rule": rule.name, "extents": tuple(kept["extents"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nothing kept, or a file cut short: test again


def _keep(evidence: Evidence, cache_dir: Path | None) -> None:
    if cache_dir is None:
        return
    text = json.dumps(asdict(evidence) | {"gate": _gate_digest()})
    part = cache_dir / f"{evidence.digest}.{os.getpid()}.part"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(cache_dir / f"{evidence.digest}.json")
    except OSError as e:
        _LOG.warning("the evidence for %s could not be kept in %s (%s); it will be tested again", evidence.rule, cache_dir, e)
