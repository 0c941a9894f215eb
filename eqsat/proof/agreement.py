"""The proof that a plan computes its program: before anything of it is compiled, and which kind of proof it is.

In order: a derivation by admitted rules (`eqsat.derivation`), the normal form of sums of products, equality in prime fields with
a computed chance of a miss, models of the field that obey more laws, float64. The weaker kinds follow where the stronger
ones say nothing; what differs in float64 by more than rounding is refuted.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from eqsat.access import Index
from eqsat.ir import Expr, apply, const, rebuild
from eqsat.ops import Kind
from eqsat.proof.compressed import Evaluation, TooLargeError
from eqsat.proof.constants import Constants
from eqsat.proof.floats import Floats
from eqsat.proof.programs import equal
from eqsat.proof.residues import CHAINS, Residues

Method = Literal["identical", "normal form", "field", "laws", "float", "untested", "refuted"]
_ENOUGH = -40.0  # log2 of the chance of a miss at which no further trial is run
_TRIALS = 12
_PATIENCE_S = 0.25  # of processor time
_SHORT = 60  # operations of program and plan together that are always compared by normal form: tens of milliseconds


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two lists of values are known to be equal.

    Parameters
    ----------
    method : str
        "identical": the same expressions up to names of bound axes; "normal form": equal as sums of products, whatever the functions in them;
        "field": equal modulo primes, functions random; "laws": the same in models in which exp, √, |·| and order obey their
        laws; "float": equal in float64 up to rounding; "untested": too large, or nothing was defined; "refuted": they differ.
    log2_bound : float or None
        Of the chance that a difference goes unseen, if values agree in prime fields.
    trials, compared : int
        Trials run, and elements compared in all of them: values are compared beside a proof too.
    note : str
    """

    method: Method
    log2_bound: float | None = None
    trials: int = 0
    compared: int = 0
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it."""
        return self.method != "refuted"

    def __str__(self) -> str:
        match self.method:
            case "identical":
                return "the same expression"
            case "normal form":
                proved = "proved equal over the reals: one normal form of sums of products"
                return f"{proved}; besides, {self.note}" if self.note else proved
            case "field":
                return (
                    f"equal modulo two primes on {self.compared} elements in {self.trials} trials, functions random, inputs constant "
                    f"on blocks; chance that a difference on such inputs goes unseen ≤ 2^{self.log2_bound:.0f}"
                )
            case "laws":
                return f"equal modulo {self.trials} primes on {self.compared} elements, in models of exp, √, |x| and order, which give no bound"
            case "float":
                return f"equal in float64 up to rounding on {self.compared} elements"
            case "refuted":
                return f"not equal: {self.note}"
            case _:
                return f"not tested: {self.note}"


def agree(left: Sequence[Expr], right: Sequence[Expr], *, seed: int = 1, relative: float = 0.0) -> Agreement:
    """Return how far the values of `left` are known to equal those of `right`, one by one.

    Parameters
    ----------
    left, right : sequence of Expr
        Over the same inputs; each pair over the same axes.
    seed : int
    relative : float
        Relative difference allowed in float64: of rules that approximate.
    """
    left, right = ([_one_zero(e) for e in side] for side in (left, right))
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if a.digest != b.digest and nameless(a) != nameless(b)]
    if not pairs:
        return Agreement("identical")
    for a, b in pairs:
        if a.axes != b.axes:
            return Agreement("refuted", note=f"one varies over {sorted(a.axes)}, the other over {sorted(b.axes)}")
    try:
        found = _in_fields(pairs, seed) or _under_laws(pairs, seed) or _in_floats(pairs, seed, relative)
    except TooLargeError as error:
        found = Agreement("untested", note=f"{error} has too many elements")
    # A large program in which values agree already is not worth the seconds that its normal form may take.
    if found.holds and (found.method != "field" or _operations(pairs) <= _SHORT) and all(map(_proved, pairs)):
        return replace(found, method="normal form", note="" if found.method == "untested" else str(found))
    return found


def _one_zero(expr: Expr) -> Expr:
    """Return the expression with 0 in the place of the constant −0: rules do not tell them apart."""
    memo: dict[str, Expr] = {}
    for e in expr.walk():
        zero = e.op == "const" and e.dtype.is_float and e.attrs[0] == 0
        memo[e.digest] = const(0.0, e.dtype) if zero else rebuild(e, tuple(memo[a.digest] for a in e.args))
    return memo[expr.digest]


def nameless(expr: Expr) -> str:
    """Return a digest that is equal for expressions that differ in the names of bound axes alone.

    Each node's digest speaks of its free axes by their order of first occurrence, so that a node has one digest wherever it
    stands, and the names come last.
    """
    known: dict[str, tuple[str, tuple[str, ...]]] = {}
    for e in expr.walk():
        known[e.digest] = _shape(e, [known[a.digest] for a in e.args])
    shape, axes = known[expr.digest]
    return f"{shape} {axes}"


def _shape(e: Expr, args: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[str, tuple[str, ...]]:
    """Return a node's digest, and its axes in the order in which that speaks of them."""
    if e.op == "read":
        axes = tuple(a for a in e.attrs[1] if a)
        return _digest(e, e.attrs[0], [e.type.extents.get(a, 1) for a in e.attrs[1]], [bool(a) for a in e.attrs[1]]), axes
    if e.op == "iota":
        return _digest(e, e.type.axes[0][1]), (e.attrs[0],)
    if e.row.kind is Kind.REDUCE:
        shape, axes = args[0]
        return _digest(e, shape, axes.index(e.attrs[0])), tuple(a for a in axes if a != e.attrs[0])
    if e.row.kind is Kind.ACCESS:
        shape, inner = args[0]
        index = dict(e.attrs[0].entries)
        parts = [index.get(a, Index.axis(a)) for a in inner]
        axes = tuple(dict.fromkeys(a for part in parts for a in _axes_in_order(part)))
        if _calls(e):
            return shape, axes
        by = {a: Index.axis(f"#{n} {e.type.extents[a]}") for n, a in enumerate(axes)}
        return _digest(e, shape, *(str(part.substitute(by)) for part in parts)), axes
    axes = tuple(dict.fromkeys(a for _, own in args for a in own))
    return _digest(e, e.attrs, *((shape, [axes.index(a) for a in own]) for shape, own in args)), axes


def _digest(e: Expr, *parts: object) -> str:
    return hashlib.sha256(repr((e.op, str(e.dtype), *parts)).encode()).hexdigest()


def _axes_in_order(index: Index) -> list[str]:
    return [index.name] if index.op == "axis" else [a for part in index.args for a in _axes_in_order(part)]


def _calls(e: Expr) -> bool:
    """Whether `e` is an access that does nothing but call axes otherwise."""
    if e.row.kind is not Kind.ACCESS:
        return False
    (arg,) = e.args
    entries = e.attrs[0].entries
    new = {x.name for a, x in entries if x.op == "axis" and e.type.extents[x.name] == arg.type.extents[a]}
    return len(new) == len(entries) and not new & (arg.axes - {a for a, _ in entries})


def _operations(pairs: Sequence[tuple[Expr, Expr]]) -> int:
    return len({e.digest for pair in pairs for side in pair for e in side.walk() if e.args})


def _proved(pair: tuple[Expr, Expr]) -> bool:
    a, b = pair
    return bool(equal(a, b if a.dtype is b.dtype else apply("cast", b, dtype=a.dtype)))


def _in_fields(pairs: Sequence[tuple[Expr, Expr]], seed: int) -> Agreement | None:
    """Return the agreement in prime fields with random functions; None if they differ there."""
    constants, began = Constants(), time.process_time()
    primes = tuple(chain[0] for chain in CHAINS)
    bound, compared = 0.0, 0
    for trial in range(_TRIALS):
        algebra = Residues(primes, constants, seed + trial)
        evaluation = Evaluation(algebra, seed + trial)
        degree = 0
        for a, b in pairs:
            differ, seen, most = algebra.compare(evaluation.value(a), evaluation.value(b))
            if differ:
                return None
            compared, degree = compared + seen, max(degree, most)
        bound += algebra.miss(degree) if compared else 0.0
        if trial and (bound <= _ENOUGH or time.process_time() - began > _PATIENCE_S):
            break
    return Agreement("field", bound, trial + 1, compared) if compared else None


def _under_laws(pairs: Sequence[tuple[Expr, Expr]], seed: int) -> Agreement | None:
    """Return the agreement in models that obey more laws; None if they differ there."""
    constants, compared = Constants(), 0
    for trial, chain in enumerate(CHAINS):
        algebra = Residues(chain, constants, seed + trial, laws=True)
        evaluation = Evaluation(algebra, seed + trial)
        for a, b in pairs:
            differ, seen, _ = algebra.compare(evaluation.value(a), evaluation.value(b))
            if differ:
                return None
            compared += seen
    return Agreement("laws", None, len(CHAINS), compared) if compared else None


def _in_floats(pairs: Sequence[tuple[Expr, Expr]], seed: int, relative: float) -> Agreement:
    """Return the agreement in float64, or the refutation."""
    compared = 0
    for trial in range(4):
        algebra = Floats(positive=trial % 2 == 1, relative=relative)
        evaluation = Evaluation(algebra, seed + trial)
        for n, (a, b) in enumerate(pairs):
            differ, seen, apart = algebra.compare(evaluation.value(a), evaluation.value(b))
            if differ:
                return Agreement(
                    "refuted", None, trial + 1, seen, f"value {n} differs by {apart:.3g} at {differ} of the elements tried"
                )
            compared += seen
    if not compared:
        return Agreement("untested", note="they differ in prime fields, and no element was defined in float64")
    return Agreement("float", None, 4, compared)
