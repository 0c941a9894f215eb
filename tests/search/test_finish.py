"""The end of a search: plans of several kernels for a GPU are timed with kernels that overlap and without."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from eqsat.codegen.cuda.point import PointFamily, PointTile
from eqsat.codegen.kernel import KernelBinary, KernelSource
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.codegen.problem import point_problem
from eqsat.errors import WrongResultError
from eqsat.ir import Expr, Input, Output, Program, apply, const, read
from eqsat.search.device import Check, Measurement, Verdict
from eqsat.search.finish import select
from eqsat.types import DType

F32, N = DType.F32, 256


class Judge:
    """A device that knows only whether a plan overlaps: how fast it is then, and whether it is right."""

    def __init__(self, overlapped_ns: float, *, right: bool = True) -> None:
        self.overlapped_ns, self.right = overlapped_ns, right
        self.timed: list[bool] = []

    def verify_plan(self, plan: Executable) -> Verdict:
        return Verdict((Check("exact", self.right or not plan.overlapped, 0.0, 0),))

    def time_plans(self, plans: Sequence[Executable], *, rounds: int = 30) -> list[Measurement]:
        self.timed = [p.overlapped for p in plans]
        times = [self.overlapped_ns if p.overlapped else 5000.0 for p in plans]
        return [Measurement(t, t, t, (t,)) for t in times]


def _step(name: str, origin: str, e: Expr, language: str = "cuda") -> Step:
    problem = point_problem(Program((Input(origin, (N,), F32),), (Output(name, e, ("i",), F32),)))
    assert not isinstance(problem, str)
    source = PointFamily().emit(problem, PointTile(128, 1, 16, 0))
    if language == "c":
        source = KernelSource("c", "", "f", source.args)
    return Step(Kernel(problem), PointTile(128, 1, 16, 0), KernelBinary(source, b"image", "none"))


def _plan(language: str = "cuda", *, kernels: int = 2) -> Executable:
    x, t = read("x", ("i",), (N,), F32), read("t", ("i",), (N,), F32)
    twice = apply("mul", x, const(2.0, F32))
    more = apply("add", t if kernels == 2 else twice, const(1.0, F32))
    steps = [_step("y", "t" if kernels == 2 else "x", more, language)]
    if kernels == 2:
        steps.insert(0, _step("t", "x", twice, language))
    whole = Program((Input("x", (N,), F32),), (Output("y", apply("add", twice, const(1.0, F32)), ("i",), F32),))
    return Executable(Plan(whole, tuple(s.kernel for s in steps)), tuple(steps))


def test_the_faster_of_overlapping_and_separate_launches_is_kept_and_said() -> None:
    device = Judge(4000.0)
    decided = select(device, [_plan()], None)  # type: ignore[arg-type]
    assert device.timed == [False, True]
    assert decided.executable.overlapped
    assert "its kernels overlap: 4.00 µs instead of 5.00" in decided.notes
    assert [a["note"].endswith("(overlapping)") for a in decided.alternatives] == [True, False]


def test_separate_launches_are_kept_where_overlapping_ones_are_slower() -> None:
    decided = select(Judge(6000.0), [_plan()], None)  # type: ignore[arg-type]
    assert not decided.executable.overlapped
    assert decided.notes == ()


def test_an_overlap_that_gives_wrong_results_is_refused_and_noted() -> None:
    decided = select(Judge(4000.0, right=False), [_plan()], None)  # type: ignore[arg-type]
    assert not decided.executable.overlapped
    assert "(overlapping) failed its check as a whole" in decided.notes[0]


@pytest.mark.parametrize(("language", "kernels"), [("cuda", 1), ("c", 2)])
def test_one_kernel_and_kernels_for_the_cpu_have_nothing_to_overlap(language: str, kernels: int) -> None:
    device = Judge(4000.0)
    select(device, [_plan(language, kernels=kernels)], None)  # type: ignore[arg-type]
    assert device.timed == [False]


def test_no_right_plan_is_an_error() -> None:
    class Never(Judge):
        def verify_plan(self, plan: Executable) -> Verdict:
            return Verdict((Check("exact", False, 1.0, 0, "bad"),))

    with pytest.raises(WrongResultError, match="bad"):
        select(Never(1.0), [_plan()], None)  # type: ignore[arg-type]
