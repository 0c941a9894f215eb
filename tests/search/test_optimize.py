"""The pipeline on a device without hardware: what is chosen, what never is, and what the receipt says of it."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eqsat import numpy_like as fn
from eqsat.array import Array
from eqsat.codegen.kernel import KernelBinary, KernelSource
from eqsat.codegen.plan import Executable
from eqsat.codegen.targets import parse_target
from eqsat.errors import EnvironmentMissingError, FalseRuleError, KernelFaultError, NoKernelError, UsageError
from eqsat.ir import Program
from eqsat.search import extraction, machine, optimize, sweep
from eqsat.search.device import Measurement, Trial
from eqsat.search.machine import Place
from eqsat.search.optimize import optimize as search
from eqsat.search.result import Optimized
from eqsat.search.store import Store
from eqsat.trace import tensor, to_program
from tests.search.fake_device import RATES, FakeDevice

Rigged = Callable[[FakeDevice], FakeDevice]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Rigged:
    """Return a function that makes every target resolve to the fake device given."""

    def rig(device: FakeDevice) -> FakeDevice:
        place = Place(parse_target("cpu"), device.name, device.fingerprint, lambda store: device)
        monkeypatch.setattr(machine, "resolve", lambda target: place)
        return device

    return rig


def row_max() -> Array:
    return fn.max(tensor("x", (6, 40), "f32"), axis=-1)


def two_steps() -> Array:
    x = tensor("x", (32, 48), "f32")
    return fn.softmax(x)


def schedules(found: Optimized) -> list[str]:
    return [k["schedule"] for k in found.receipt.plan["kernels"]]


def test_a_search_with_time_is_closed_and_says_what_it_counted(on: Rigged) -> None:
    device = on(FakeDevice())
    found = search(row_max(), store=":memory:")
    assert found.receipt.closed
    counts = found.receipt.counts
    assert counts["ok"] > 0
    assert counts["ok"] == sum(n for _, n in device.swept)
    assert counts["enumerated"] == counts["ok"] + counts["illegal"]
    assert device.closed


def test_the_fastest_schedule_of_the_space_is_chosen(on: Rigged) -> None:
    device = on(FakeDevice())
    found = search(row_max(), store=":memory:")
    (step,) = found.executable.steps
    fastest = min(device.kernel_ns(step.kernel.program, s) for s in device.compiled)
    assert device.kernel_ns(step.kernel.program, step.binary.source) == fastest


@pytest.mark.parametrize(
    ("kind", "status"), [("wrong", "wrong"), ("faulty", "fault"), ("hanging", "timeout"), ("refused", "refused")]
)
def test_a_kernel_that_is_not_right_is_never_chosen_however_fast(on: Rigged, kind: str, status: str) -> None:
    before = search(row_max(), store=":memory:") if on(FakeDevice()) else None
    assert before is not None
    fastest = before.executable.steps[0].binary.source.digest
    bad: dict[str, Any] = {kind: lambda source: source.digest == fastest}
    on(FakeDevice(**bad))
    found = search(row_max(), store=":memory:")
    assert found.executable.steps[0].binary.source.digest != fastest
    assert found.receipt.counts[status] == 1


class Busy(FakeDevice):
    """A device whose kernels with threads are fast alone, and slow as a plan: another process has taken the cores."""

    def time_plans(self, plans: Sequence[Executable], *, rounds: int = 30) -> list[Measurement]:
        found = FakeDevice.time_plans(self, plans, rounds=rounds)
        slow = [any(threaded(step.binary.source) for step in p.steps) for p in plans]
        return [dataclasses.replace(m, median_ns=m.median_ns * (1000 if s else 1)) for m, s in zip(found, slow, strict=True)]


def threaded(source: KernelSource) -> bool:
    return "-fopenmp" in source.options


@pytest.mark.parametrize(("device", "threads"), [(FakeDevice, "threads=0"), (Busy, "threads=1")])
def test_a_plan_with_threads_must_also_win_as_a_whole_beside_one_thread(
    on: Rigged, device: type[FakeDevice], threads: str
) -> None:
    on(device(times_ns=lambda program, source: 10.0 if threaded(source) else 20.0))
    found = search(fn.max(tensor("x", (4096, 40), "f32"), axis=-1), store=":memory:")
    assert all(threads in s for s in schedules(found))


def test_nothing_right_at_all_is_an_error_that_shows_the_counts(on: Rigged) -> None:
    on(FakeDevice(wrong=lambda source: True))
    with pytest.raises(NoKernelError, match="'wrong': "):
        search(row_max(), store=":memory:")


def test_a_second_run_is_answered_from_the_store(on: Rigged, tmp_path: Path) -> None:
    on(FakeDevice())
    first = search(row_max(), store=tmp_path / "s.sqlite")
    again = on(FakeDevice())
    second = search(row_max(), store=tmp_path / "s.sqlite")
    assert not again.swept
    assert not again.compiled
    assert json.dumps(first.receipt.record) == json.dumps(second.receipt.record)
    assert first.source == second.source


def test_a_program_that_shares_a_kernel_measures_it_no_more(on: Rigged, tmp_path: Path) -> None:
    on(FakeDevice())
    search(row_max(), store=tmp_path / "s.sqlite")
    again = on(FakeDevice())
    found = search(fn.max(tensor("other_name", (6, 40), "f32"), axis=-1), store=tmp_path / "s.sqlite")
    assert not again.swept
    assert found.receipt.counts["remembered"] > 0
    assert found.receipt.closed


def test_another_device_does_not_believe_the_store(on: Rigged, tmp_path: Path) -> None:
    on(FakeDevice())
    search(row_max(), store=tmp_path / "s.sqlite")
    other = on(FakeDevice(name="another device"))
    search(row_max(), store=tmp_path / "s.sqlite")
    assert other.swept


def test_a_budget_that_ends_early_leaves_the_search_open(on: Rigged, monkeypatch: pytest.MonkeyPatch) -> None:
    device = on(FakeDevice(trial_s=1.0, compile_s=0.0))
    clock = SimpleNamespace(monotonic=lambda: device.clock_s)
    for module in (optimize, extraction, sweep):
        monkeypatch.setattr(module, "time", clock)
    found = search(row_max(), budget=3, store=":memory:")
    assert not found.receipt.closed
    assert found.receipt.search["verdict"] == "open"
    assert found.receipt.counts["cut"] > 0
    assert 0 < found.receipt.counts["ok"] <= 3


def test_a_budget_too_short_for_anything_still_ends_with_a_verified_plan(on: Rigged, monkeypatch: pytest.MonkeyPatch) -> None:
    device = on(FakeDevice(trial_s=1.0, compile_s=1.0))
    for module in (optimize, extraction, sweep):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: device.clock_s))
    found = search(two_steps(), budget="1ms", store=":memory:")
    assert found.receipt.search["verdict"] == "open"
    assert found.receipt.verification["checks"]
    assert found.receipt.counts["ok"] == len(found.executable.steps)


def test_an_open_search_is_taken_up_again_where_it_ended(on: Rigged, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = on(FakeDevice(trial_s=1.0, compile_s=0.0))
    with monkeypatch.context() as m:
        for module in (optimize, extraction, sweep):
            m.setattr(module, "time", SimpleNamespace(monotonic=lambda: device.clock_s))
        first = search(row_max(), budget=3, store=tmp_path / "s.sqlite")
    on(FakeDevice())
    second = search(row_max(), store=tmp_path / "s.sqlite")
    assert second.receipt.closed
    assert second.receipt.counts["remembered"] == first.receipt.counts["ok"]


def test_a_plan_that_faults_when_it_is_timed_is_left_out_and_noted(on: Rigged) -> None:
    def times_ns(program: Program, source: KernelSource) -> float:
        alone = [i.name for i in program.inputs] == ["x"] and program.outputs[0].name == "out"
        return 10_100.0 if alone else 5_000.0  # two kernels are a little faster than one

    on(FakeDevice(times_ns=times_ns))
    first = search(two_steps(), store=":memory:")
    winner = first.executable.plan.digest
    assert len(first.receipt.alternatives) > 1

    class Faulty(FakeDevice):
        def time_plans(self, plans: Any, *, rounds: int = 30) -> list[Measurement]:
            if any(p.plan.digest == winner for p in plans):
                raise KernelFaultError("injected fault")
            return FakeDevice.time_plans(self, plans, rounds=rounds)

    on(Faulty(times_ns=times_ns))
    found = search(two_steps(), store=":memory:")
    assert found.executable.plan.digest != winner
    assert any("faulted when it was timed" in note for note in found.receipt.notes)


def test_looking_inside_writes_every_stage_as_a_numbered_file(
    on: Rigged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(FakeDevice())
    monkeypatch.setenv("EQSAT_DUMP", str(tmp_path / "dump"))
    found = search(row_max(), store=":memory:")
    names = sorted(p.name for p in (tmp_path / "dump").iterdir())
    assert [n[:3] for n in names] == [f"{i:03d}" for i in range(len(names))]
    assert {n[4:] for n in names} >= {"saturation.txt", "kernels.txt", "sources.c", "leaderboard.txt"}
    assert found.source in [p.read_text() for p in (tmp_path / "dump").glob("*sources.c")]


@dataclasses.dataclass(slots=True)
class Interrupted(FakeDevice):
    """Ctrl-C arrives in the sweep, plan check or plan timing of the number given."""

    at: tuple[str, int] = ("sweep", 2)
    calls: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1))

    def _arrive(self, stage: str) -> None:
        if stage == self.at[0] and next(self.calls) == self.at[1]:
            raise KeyboardInterrupt

    def sweep(self, program: Program, binaries: Any, **options: Any) -> list[Trial | None]:
        self._arrive("sweep")
        return FakeDevice.sweep(self, program, binaries, **options)

    def verify_plan(self, plan: Executable) -> Any:
        self._arrive("verify")
        return FakeDevice.verify_plan(self, plan)

    def time_plans(self, plans: Any, *, rounds: int = 30) -> list[Measurement]:
        self._arrive("time")
        return FakeDevice.time_plans(self, plans, rounds=rounds)


@pytest.mark.parametrize("at", [("sweep", 3), ("verify", 1), ("time", 1)])
def test_an_interrupt_keeps_the_best_so_far_and_says_so(on: Rigged, at: tuple[str, int], tmp_path: Path) -> None:
    on(Interrupted(at=at, spread=30.0))
    store = Store(tmp_path / "s.sqlite")
    found = search(two_steps(), store=store)
    assert found.receipt.interrupted
    assert found.executable.steps
    assert store.counts()["results"] == 0, "an interrupted search is no final answer"
    store.close()


def test_an_interrupt_before_the_first_plan_is_an_interrupt_and_frees_the_device(on: Rigged) -> None:
    device = on(Interrupted(at=("sweep", 1)))
    with pytest.raises(KeyboardInterrupt):
        search(row_max(), store=":memory:")
    assert device.closed


@pytest.mark.parametrize(("baseline_ns", "said"), [(1e9, "beats the baseline"), (1.0, "does not beat the baseline")])
def test_the_baseline_is_timed_beside_and_the_receipt_says_who_won(on: Rigged, baseline_ns: float, said: str) -> None:
    on(FakeDevice(baseline_ns=baseline_ns))
    found = search(row_max(), store=":memory:", baseline=lambda x: x.max(-1))
    assert any(said in note for note in found.receipt.notes)
    assert [a["median_ns"] for a in found.receipt.alternatives if a["plan"] == "baseline"] == [baseline_ns]


def test_a_baseline_that_nothing_beats_is_what_the_result_calls(on: Rigged) -> None:
    on(FakeDevice(baseline_ns=1.0))
    found = search(row_max(), store=":memory:", baseline=lambda x: "the baseline's own")
    assert found(None) == "the baseline's own"
    assert "nothing beat the baseline" in " ".join(found.receipt.notes)


def test_a_baseline_that_computes_something_else_is_noted(on: Rigged) -> None:
    on(FakeDevice(baseline_differs="y[0]: expected 1 within 0.1; got 2"))
    found = search(row_max(), store=":memory:", baseline=lambda x: x.max(-1))
    assert any("computes something else" in note and "expected 1 within 0.1; got 2" in note for note in found.receipt.notes)


def test_choosing_by_model_measures_nothing_and_says_so(on: Rigged, monkeypatch: pytest.MonkeyPatch) -> None:
    device = on(FakeDevice())

    def compile_for(place: Place, sources: list[KernelSource]) -> Iterator[tuple[int, KernelBinary]]:
        return ((i, KernelBinary(s, b"image", "fake")) for i, s in enumerate(sources))

    monkeypatch.setattr("eqsat.search.finish.compile_for", compile_for)
    found = search(row_max(), measure=False, store=":memory:")
    assert not device.swept
    assert found.receipt.search["verdict"] == "unmeasured"
    assert not found.receipt.closed
    assert found.receipt.median_ns is None
    assert "unmeasured" in str(found)
    assert schedules(found)


FALSE_RULE = """
(rewrite (Sub a b) (Sub b a) :phase algebra :numerics exact :name "sub-commute" :law "a − b = b − a")
"""


def test_a_rule_file_that_is_false_is_refused_before_any_kernel_is_made(on: Rigged, tmp_path: Path) -> None:
    device = on(FakeDevice())
    file = tmp_path / "mine.egg"
    file.write_text(FALSE_RULE)
    with pytest.raises(FalseRuleError, match="mine/sub-commute"):
        search(row_max(), rules=[file], store=":memory:")
    assert not device.compiled


def test_a_true_rule_of_the_caller_is_used_and_named_in_the_receipt(on: Rigged, tmp_path: Path) -> None:
    on(FakeDevice(times_ns=lambda program, source: float(program.flops + 1)))
    file = tmp_path / "mine.egg"
    file.write_text(
        """(rewrite (Maximum (Mul (Const c) a) (Const 0.0)) (Mul (Const c) (Maximum a (Const 0.0))) :when ((> c 0.0))
        :name "scale-out" :phase algebra :numerics exact :law "max(c·a, 0) = c·max(a, 0)   if c > 0")"""
    )
    x = tensor("x", (64,), "f32")
    program = 0.5 * fn.maximum(2.0 * x, 0.0)
    found = search(program, rules=[file], store=":memory:", without=["relu-mul"])  # the built-in rule of the same law
    assert found.receipt.flops < search(program, store=":memory:", without=["relu-mul"]).receipt.flops
    assert "mine/scale-out" in [s["rule"] for s in found.receipt.derivation["steps"]]
    (mine,) = [r for r in found.receipt.rules if r["name"] == "mine/scale-out"]
    assert mine["evidence"]["method"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "sm_91"}, "expected a target out of"),
        ({"budget": "soon"}, "expected a budget"),
        ({"precision": "half"}, "expected precision"),
        ({"numerics": ["roughly"]}, "expected numeric classes"),
        ({"rules": ["no/such.egg"]}, "expected a rule file"),
        ({"epsilon": 2.0}, "expected 0 ≤ epsilon < 1"),
    ],
)
def test_options_out_of_range_are_refused_with_what_was_expected(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        search(row_max(), store=":memory:", **options)


def test_a_store_that_cannot_be_opened_is_noted_and_the_search_goes_on(on: Rigged, tmp_path: Path) -> None:
    on(FakeDevice())
    (tmp_path / "file").write_text("in the way")
    found = search(row_max(), store=tmp_path / "file" / "s.sqlite")
    assert any("memory only" in n for n in found.receipt.notes)


def test_a_folder_that_cannot_be_written_is_named(on: Rigged, tmp_path: Path) -> None:
    on(FakeDevice())
    found = search(row_max(), store=":memory:")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentMissingError, match="Choose a folder"):
        found.save(tmp_path / "file" / "bundle")


@pytest.mark.parametrize(
    ("elements", "cache_bytes", "apart"),
    [(1 << 20, 0, 0), (1 << 20, 1 << 25, 0), (3 << 20, 1 << 25, 1 << 24), (1 << 28, 1 << 25, 1 << 27)],
)
def test_kernels_are_timed_as_far_apart_as_their_program_leaves_them(elements: int, cache_bytes: int, apart: int) -> None:
    rates = dataclasses.replace(RATES, cache_bytes=cache_bytes)
    program = to_program(tensor("x", (elements,), "f32") + 1)
    assert optimize.apart_bytes(program, rates) == apart
