"""Which families serve a target, and the schedule points that the e-graph's keyed spaces offer for a problem."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from eqsat.codegen.cpu import families as cpu
from eqsat.codegen.cuda import families as cuda
from eqsat.codegen.kernel import Family, Schedule
from eqsat.codegen.online import OnlineProblem
from eqsat.codegen.problem import Contract, PointProblem, Problem, SummedContractProblem

Space = tuple[str, tuple[int, ...]]  # constructor of the space, and its integer key


def families(kind: str) -> tuple[Family, ...]:
    """Return the kernel families of a kind of target, "cpu" or "cuda"."""
    return cpu.FAMILIES if kind == "cpu" else cuda.FAMILIES


@functools.cache
def schedule_classes() -> dict[str, type[Schedule]]:
    """Return every schedule class by its name (the name of its constructor in the rule files)."""
    return {s.__name__: s for f in (*cpu.FAMILIES, *cuda.FAMILIES) for s in f.schedules}


def family_of(schedule: Schedule) -> Family:
    """Return the family that emits kernels for a schedule."""
    return next(f for f in (*cpu.FAMILIES, *cuda.FAMILIES) if type(schedule) in f.schedules)


def space_of(problem: Problem) -> Space:
    """Return the key of the schedule space of a problem: problems of equal extents share one space."""
    if isinstance(problem, PointProblem):
        return "PointSpace", (problem.output.expr.type.elements,)
    if isinstance(problem, Contract | SummedContractProblem):
        return "ContractSpace", problem.shape
    if isinstance(problem, OnlineProblem):
        return "OnlineSpace", problem.shape
    return "ReduceSpace", (problem.row_count, problem.length)


def space_term(kind: str, space: Space) -> str:
    """Return the space as an e-graph term."""
    name, key = space
    return f'({name} "{kind}" {" ".join(map(str, key))})'


def points(found: Sequence[tuple[str, tuple[object, ...]]]) -> tuple[Schedule, ...]:
    """Return the schedules among the points of a space; each repeats the space's key before its own fields."""
    classes = schedule_classes()
    out = []
    for name, literals in found:
        if name in classes:
            cls = classes[name]
            count = len(dataclasses.fields(cls))
            out.append(cls(*(literals[len(literals) - count :] if count else ())))
    return tuple(out)
