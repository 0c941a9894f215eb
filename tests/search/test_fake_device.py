"""The fake device keeps the protocol, so that the search's tests mean something."""

from __future__ import annotations

from eqsat.codegen.kernel import BufferArg, KernelSource
from eqsat.errors import CompileError
from eqsat.ir import Input, Output, Program, apply, read
from eqsat.search.device import Device
from eqsat.types import DType
from tests.search.fake_device import FakeDevice

X = read("x", ("i",), (1000,), DType.F32)
PROGRAM = Program((Input("x", (1000,), DType.F32),), (Output("y", apply("add", X, X), ("i",), DType.F32),))


def source(text: str) -> KernelSource:
    return KernelSource("c", text, "k", (BufferArg("x"), BufferArg("y")))


def test_times_are_the_same_every_time_and_never_below_the_rates() -> None:
    device: Device = FakeDevice()
    binaries = [b for _, b in device.compile([source("a"), source("b")]) if not isinstance(b, CompileError)]
    first, again = (device.sweep(PROGRAM, binaries) for _ in range(2))
    assert first == again
    medians = [t.measurement.median_ns for t in first if t is not None and t.measurement is not None]
    assert len(set(medians)) == 2
    assert all(m >= PROGRAM.bytes / device.rates().read for m in medians)


def test_faults_are_injected_and_the_clock_cuts_off() -> None:
    device = FakeDevice(
        refused=lambda s: s.text == "refused", wrong=lambda s: s.text == "wrong", faulty=lambda s: s.text == "fault",
        hanging=lambda s: s.text == "hang",
    )  # fmt: skip
    built = dict(device.compile([source(t) for t in ("wrong", "refused", "fault", "hang", "right", "late")]))
    assert isinstance(built.pop(1), CompileError)
    trials = device.sweep(PROGRAM, list(built.values()), deadline_s=device.clock_s + 3.5 * device.trial_s)
    assert [t and t.status for t in trials] == ["wrong", "fault", "timeout", "ok", None]
