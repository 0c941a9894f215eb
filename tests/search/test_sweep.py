"""Sweeps: schedules that were slow for kernels alike are left out, and counted."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from eqsat.array import Array
from eqsat.codegen.cpu.point import CpuPointTile
from eqsat.codegen.kernel import KernelSource
from eqsat.codegen.problem import point_problem
from eqsat.ir import Program
from eqsat.kernelgraph import KernelNode
from eqsat.numpy_like import exp
from eqsat.search.candidates import Candidate, Sweep, is_wide_product
from eqsat.search.device import Trial
from eqsat.search.progress import progress_for
from eqsat.search.store import Store
from eqsat.search.sweep import Sweeper
from eqsat.trace import tensor, to_program
from tests.search.fake_device import FakeDevice

SCHEDULES = tuple(CpuPointTile(b, u, 0, 1, 0) for b in (16, 32, 64) for u in (1, 2))


def candidate(
    added: float,
    size: int = 4096,
    legal: tuple[CpuPointTile, ...] = SCHEDULES,
    function: Callable[[Array], Array] = lambda x: x,
) -> Candidate:
    program = to_program(function(tensor("x", (size,), "f32") + added))
    problem = point_problem(program)
    assert not isinstance(problem, str)
    node = KernelNode((0,), frozenset(), "point", program)
    return Candidate(node, problem, program.digest, ("PointSpace", (size,)), lambda: legal, len(legal), 1.0)


def by_width(_: Program, source: KernelSource) -> float:
    """Return times of which those of the widest vectors are best by far."""
    return 100.0 if "vector_bytes=64" in source.text else 200.0


@pytest.fixture
def sweeper() -> Sweeper:
    return Sweeper(FakeDevice(times_ns=by_width), Store(":memory:"), "", math.inf, progress_for(False))


def ok(sweep: Sweep) -> int:
    return sweep.counts.get("ok", 0)


def test_schedules_slow_for_two_kernels_are_left_out_for_the_next_and_counted(sweeper: Sweeper) -> None:
    first, second, third = (sweeper(candidate(a), math.inf) for a in (1.0, 2.0, 3.0))
    assert ok(first) == ok(second) == len(SCHEDULES)
    assert ok(third) == 2
    assert third.counts["pruned"] == sweeper.counts["pruned"] == len(SCHEDULES) - 2
    assert third.complete
    assert third.best is not None
    assert third.best.schedule.vector_bytes == 64


def test_a_kernel_whose_likeliest_schedule_is_far_too_slow_gets_no_other(sweeper: Sweeper) -> None:
    for added in (1.0, 2.0):
        sweeper(candidate(added), math.inf)
    near, far = sweeper(candidate(3.0), 95.0), sweeper(candidate(4.0), 80.0)
    assert (ok(near), near.counts["pruned"]) == (2, 4)
    assert (ok(far), far.counts["pruned"]) == (1, 5)
    assert far.best is not None
    assert far.best.median_ns == 100.0


def test_kernels_of_other_extents_or_work_are_tried_with_every_schedule(sweeper: Sweeper) -> None:
    for added in (1.0, 2.0):
        sweeper(candidate(added), math.inf)
    assert ok(sweeper(candidate(3.0, size=8192), math.inf)) == len(SCHEDULES)
    assert ok(sweeper(candidate(3.0, function=exp), math.inf)) == len(SCHEDULES)


def test_a_schedule_that_the_earlier_kernels_could_not_have_is_tried(sweeper: Sweeper) -> None:
    for added in (1.0, 2.0):
        sweeper(candidate(added, legal=SCHEDULES[2:]), math.inf)
    assert ok(sweeper(candidate(3.0), math.inf)) == 4  # the two widest, and the two that were not legal before


@pytest.mark.parametrize(("rows", "columns", "wide"), [(16, 16, True), (3, 64, False), (4, 64, True), (64, 1, False)])
def test_only_products_with_many_rows_and_columns_are_left_to_contractions(rows: int, columns: int, wide: bool) -> None:
    x, w = tensor("x", (rows, 32), "f32"), tensor("w", (32, columns), "f32")
    assert is_wide_product(to_program(x @ w)) == wide


class GivesUp(FakeDevice):
    """Gives every kernel up before it has had all its checks."""

    def sweep(self, *args: Any, **options: Any) -> list[Trial | None]:
        return [t and dataclasses.replace(t, partial=True) for t in super().sweep(*args, **options)]


def test_a_kernel_that_was_given_up_half_checked_is_not_remembered() -> None:
    store = Store(":memory:")
    given_up = Sweeper(GivesUp(times_ns=by_width), store, "", math.inf, progress_for(False))(candidate(1.0), math.inf)
    assert (given_up.counts["slow"], ok(given_up)) == (len(SCHEDULES), 0)
    again = Sweeper(FakeDevice(times_ns=by_width), store, "", math.inf, progress_for(False))
    assert ok(again(candidate(1.0), math.inf)) == len(SCHEDULES)
    assert again.counts["remembered"] == 0
