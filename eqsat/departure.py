"""A derivation as a bisector: the first step that changes a value."""

from __future__ import annotations

from collections.abc import Mapping

from eqsat.derivation import Derivation
from eqsat.errors import EqsatError
from eqsat.ir import Expr, Program
from eqsat.proof.compressed import Evaluation, TooLargeError
from eqsat.proof.floats import Floats
from eqsat.terms import from_term


def first_departure(
    derivation: Derivation, program: Program, bounds: Mapping[str, float] | None = None, seed: int = 1
) -> int | None:
    """Return the number of the first step (from 1) that changes the value, or None: the derivation as a bisector.

    Both sides of every step are evaluated in float64 at the program's own extents, on inputs that are constant on a few
    blocks of each axis (`eqsat.proof.compressed`), and compared with an error that allows for rounding.

    Parameters
    ----------
    derivation : Derivation
        One that was found.
    program : Program
        The one it was derived for.
    bounds : mapping of str to float, optional
        Relative errors that rules are allowed: those that approximate.
    seed : int
    """
    names: dict[str, Expr] = {}
    for name, text in derivation.names:
        names[name] = from_term(text, program, names=names)
    trials = []
    for trial in range(2):
        algebra = Floats(positive=trial % 2 == 1)
        trials.append((algebra, Evaluation(algebra, seed + trial)))
    for n, step in enumerate(derivation.steps, 1):
        if not step.rule:
            continue
        try:
            before, after = (from_term(t, program, names=names) for t in (step.before, step.after))
        except EqsatError:
            continue  # a constant of a type that the operands beside it cannot hold: it is no expression by itself
        if before.digest == after.digest:
            continue
        if before.axes != after.axes:
            return n
        try:
            allowed = (bounds or {}).get(step.rule, 0.0)
            if any(algebra.compare(e.value(before), e.value(after), allowed)[0] for algebra, e in trials):
                return n
        except TooLargeError:
            continue
    return None
