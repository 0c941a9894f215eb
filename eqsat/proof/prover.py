"""The prover of rule equations: normal forms in every case, z3 where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from eqsat.gate.equation import Equation
from eqsat.proof.cases import NotProvedError
from eqsat.proof.laws import goals
from eqsat.proof.normalform import UndecidedError, effort
from eqsat.proof.solver import decide

_EFFORT = 100_000  # products multiplied out for one equation: some seconds


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of trying to prove an equation.

    Attributes
    ----------
    how : tuple of str
        "normal form", "z3" or both, if it is proved.
    why : str
        What stopped it, if it is not.
    values : dict of str to Fraction
        Numbers, and values of tensors without axes, for which z3 thinks that it is false.
    kinds : dict of str to str
        What those tensors hold ("real", "whole", "truth").
    """

    how: tuple[str, ...] = ()
    why: str = ""
    values: Mapping[str, Fraction] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def found(self) -> bool:
        """Whether the equation is proved."""
        return bool(self.how)


def prove(equation: Equation, typings: Sequence[Mapping[str, str]]) -> Proof:
    """Try to prove an equation over the reals (integers, truth values), for all extents and all axes that the guards allow.

    Parameters
    ----------
    equation : Equation
    typings : sequence of dict of str to str
        The dtypes under which the claim is made.

    Returns
    -------
    Proof
        Never of a false equation; a true one may be left open.
    """
    how: set[str] = set()
    try:
        with effort(_EFFORT):
            for goal in goals(equation, typings):
                if not goal.defined_alike:
                    return Proof(why="a side may be undefined (a quotient by 0, a root or logarithm) where the other is not")
                if goal.same:
                    how.add("normal form")
                    continue
                outcome = decide(goal)
                if outcome.verdict != "proved":
                    bare = outcome.verdict == "refuted" and not any(goal.case.axes.values())
                    why = outcome.why or "its normal forms differ, and z3 sees values for which the sides would"
                    return Proof((), why, outcome.values if bare else {}, goal.case.kinds if bare else {})
                how.add("z3")
    except (NotProvedError, UndecidedError) as e:
        return Proof(why=str(e))
    return Proof(tuple(sorted(how))) if how else Proof(why="its guards leave no case")
