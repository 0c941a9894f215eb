"""The CPU device on hand-written kernels: compile, verify, time, survive crashes and hangs; run for a user."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from eqsat.codegen.cpu import compiler as cc
from eqsat.codegen.kernel import BufferArg, KernelBinary, KernelSource, Schedule, WorkspaceArg
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.codegen.problem import PointProblem
from eqsat.errors import CompileError, DTypeError, EnvironmentMissingError, KernelFaultError, ShapeError, UsageError
from eqsat.ir import Input, Output, Program, apply, read, reduce
from eqsat.search.beside import MISLEADING
from eqsat.search.cpu_device import CpuDevice, CpuRunner, fingerprint
from eqsat.search.cpu_timing import COLD_FACTOR, BufferSets, buffers_of
from eqsat.search.device import Trial
from eqsat.search.watched import WatchedWorker
from eqsat.types import DType

F32 = DType.F32
N = 3000
X = read("x", ("i",), (N,), F32)
DOUBLE = Program((Input("x", (N,), F32),), (Output("y", apply("add", X, X), ("i",), F32),))

LOOP = "for (long i = 0; i < {n}; i++) y[i] = {value};"


def source(
    body: str, *, workspace_bytes: int = 0, options: tuple[str, ...] = (), args: tuple[str, ...] = ("x", "y")
) -> KernelSource:
    text = f"void k(void **args) {{ const float *x = args[0]; float *y = args[{len(args) - 1}]; {body} }}"
    every = tuple(BufferArg(a) for a in args)
    return KernelSource(
        "c", text, "k", (*every, WorkspaceArg()) if workspace_bytes else every, workspace_bytes=workspace_bytes, options=options
    )


def loop(value: str, n: int = N) -> KernelSource:
    return source(LOOP.format(value=value, n=n))


RIGHT = loop("x[i] + x[i]")
SLOW = source("for (int r = 0; r < 40; r++) { " + LOOP.format(value="x[i] + x[i]", n=N) + ' __asm__ volatile("" ::: "memory"); }')


def executable(*kernels: tuple[Program, KernelSource], whole: Program) -> Executable:
    nodes = [Kernel(PointProblem(p, ("i",))) for p, _ in kernels]
    binaries = [cc.compile_source(s) for _, s in kernels]
    return Executable(Plan(whole, tuple(nodes)), tuple(Step(n, Schedule(), b) for n, b in zip(nodes, binaries, strict=True)))


@pytest.fixture(scope="module")
def device() -> Iterator[CpuDevice]:
    with CpuDevice(limit_s=2.0) as opened:
        yield opened


def compiled(*sources: KernelSource) -> list[KernelBinary]:
    return [cc.compile_source(s) for s in sources]


# -- compiling


def test_every_compiler_found_compiles_the_same_kernel_reproducibly() -> None:
    for compiler in cc.compilers():
        chosen = source(LOOP.format(value="2.0f * x[i]", n=N), options=(f"compiler={compiler.name}",))
        first, again = compiled(chosen, chosen)
        assert first.image == again.image
        assert first.compiler.startswith(f"{compiler.name} {compiler.version} -O3 -march=native")


def test_a_source_that_does_not_compile_gives_the_log(device: CpuDevice) -> None:
    results = dict(device.compile([RIGHT, loop("nowhere[i]"), RIGHT]))
    assert isinstance(results[0], KernelBinary)
    assert results[0] is results[2]
    assert isinstance(results[1], CompileError)
    assert "nowhere" in str(results[1])


def test_a_compiler_that_is_not_here_is_named() -> None:
    with pytest.raises(CompileError, match="asks for the compiler 'tcc'; this machine has"):
        cc.compile_source(source("", options=("compiler=tcc",)))


def test_a_machine_without_a_compiler_says_what_was_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CC", "")
    monkeypatch.setattr(cc.importlib.util, "find_spec", lambda name: None)
    cc._find.cache_clear()
    try:
        with pytest.raises(EnvironmentMissingError, match=r"looked for \$CC, clang and gcc on the path, .*ziglang"):
            CpuDevice()
    finally:
        cc._find.cache_clear()


def test_the_compiler_in_cc_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    other = cc.compilers()[-1]
    monkeypatch.setenv("CC", " ".join(other.command))
    assert cc.compilers()[0].name == other.name


# -- sweeping


def test_a_sweep_verifies_before_it_times_and_survives_crashes_and_hangs(device: CpuDevice) -> None:
    crash = source("*(volatile int *)0 = 1;")
    hang = source("for (volatile int i = 0;; i++) {}")
    wrong = loop("x[i] + x[i] + 1e-5f")
    seen: list[int] = []
    trials = device.sweep(DOUBLE, compiled(RIGHT, crash, wrong, hang, SLOW), progress=lambda i, _: seen.append(i))
    assert [t.status for t in trials if t] == ["ok", "fault", "wrong", "timeout", "ok"]
    assert sorted(seen) == [0, 1, 2, 3, 4]
    right, _, refused, _, slow = trials
    assert isinstance(right, Trial)
    assert right.verdict is not None
    assert right.verdict.ok
    assert right.verdict.power[0] == right.verdict.power[1] > 0
    assert refused is not None
    assert "expected" in refused.note
    assert slow is not None
    assert slow.measurement is not None
    assert right.measurement is not None
    assert right.measurement.low_ns <= right.measurement.median_ns <= right.measurement.high_ns
    assert slow.measurement.median_ns > 5 * right.measurement.median_ns
    assert len(right.measurement.samples_ns) > len(slow.measurement.samples_ns)  # only the fast are timed again

    replaced = device.workers_replaced
    again = device.sweep(DOUBLE, compiled(crash, RIGHT))
    assert [t.status for t in again if t] == ["fault", "ok"]
    assert device.workers_replaced == replaced  # the crash was remembered, not repeated


@pytest.mark.parametrize(
    ("name", "broken", "said"),
    [
        ("a write past the end", loop("x[i] + x[i]", N + 2), "outside the buffer 'y'"),
        ("a changed input", source(LOOP.format(value="x[i] + x[i]", n=N) + " ((float *)x)[7] = 3;"), "changed its input 'x'"),
        ("a part not written", loop("x[i] + x[i]", N - 1), "got nan"),
        ("a read past the end", loop("x[i] + x[i + 1] * 0 + x[i]"), "expected"),
        ("state between calls", source("static int calls; " + LOOP.format(value="x[i] + x[i] + (calls > 0)", n=N) + " calls++;"), "expected"),
    ],
)  # fmt: skip
def test_a_subtle_fault_is_found(device: CpuDevice, name: str, broken: KernelSource, said: str) -> None:
    (trial,) = device.sweep(DOUBLE, compiled(broken))
    assert trial is not None
    assert trial.status == "wrong"
    assert said in trial.note


def test_what_the_deadline_cuts_off_is_none(device: CpuDevice) -> None:
    assert device.sweep(DOUBLE, compiled(RIGHT, SLOW), deadline_s=time.monotonic()) == [None, None]


def test_a_kernel_above_the_limit_gets_no_more_samples(device: CpuDevice) -> None:
    (trial,) = device.sweep(DOUBLE, compiled(SLOW), stop_above_ns=1.0)
    assert trial is not None
    assert trial.status == "ok"
    assert trial.measurement is not None
    assert len(trial.measurement.samples_ns) == 1


def test_a_workspace_is_aligned_and_reductions_are_verified(device: CpuDevice) -> None:
    total = Program((Input("x", (N,), F32),), (Output("y", reduce("sum", "i", X), (), F32),))
    body = f"float *w = args[2]; if ((unsigned long)w % 64) return; for (int l = 0; l < 64; l++) w[l] = 0; for (long i = 0; i < {N}; i++) w[i % 64] += x[i]; float s = 0; for (int l = 0; l < 64; l++) s += w[l]; y[0] = s;"
    text = source(body, args=("x", "y"), workspace_bytes=256)
    (trial,) = device.sweep(total, compiled(text))
    assert trial is not None
    assert trial.status == "ok", trial.note


@pytest.mark.parametrize(("apart", "copies"), [(0, 34), (1 << 20, 44), (1 << 14, 34)])
def test_copies_exceed_the_private_caches_and_what_the_program_touches_between(apart: int, copies: int) -> None:
    private, last = 100_000, 4_000_000
    sets = BufferSets(buffers_of(DOUBLE), {}, private, last, apart)
    assert sets.count == copies
    assert sets.count * DOUBLE.bytes >= max(COLD_FACTOR * private, apart)


def test_openmp_kernels_run_where_the_compiler_has_it(device: CpuDevice) -> None:
    parallel = source("\n#pragma omp parallel for\n" + LOOP.format(value="x[i] + x[i]", n=N), options=("-fopenmp",))
    ((_, result),) = device.compile([parallel])
    if isinstance(result, CompileError):
        assert "OpenMP" in str(result)
    else:
        before = device.workers_replaced
        trials = device.sweep(DOUBLE, [result, *compiled(RIGHT)]) + device.sweep(DOUBLE, compiled(SLOW))
        assert [t.status if t else None for t in trials] == ["ok", "ok", "ok"]
        assert device.workers_replaced == before, "its threads outlive the kernel and must not lose their code"


def test_a_process_of_one_thread_refuses_kernels_with_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cc.usable_threads() == 1
    if cc.default_compiler().has_openmp:
        with pytest.raises(CompileError, match="this process may use one"):
            cc.compile_source(source("", options=("-fopenmp",)))


def test_a_kernel_that_takes_far_longer_than_the_best_is_given_up_before_all_checks(device: CpuDevice) -> None:
    text = RIGHT.text.replace("{ const", "{ for (volatile long r = 0; r < 100000000; r++); const")
    fast, slow = device.sweep(DOUBLE, compiled(RIGHT, dataclasses.replace(RIGHT, text=text)))
    assert fast is not None
    assert slow is not None
    assert fast.verdict is not None
    assert slow.verdict is not None
    assert slow.status == "ok"
    assert "too slow" in slow.note
    assert slow.verdict.ok
    assert len(slow.verdict.checks) < len(fast.verdict.checks)


def test_the_time_of_one_thread_leaves_out_what_others_run(device: CpuDevice) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        (loaded,) = device.sweep(DOUBLE, compiled(SLOW))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    (quiet,) = device.sweep(DOUBLE, compiled(SLOW))
    assert loaded is not None
    assert quiet is not None
    assert loaded.measurement is not None
    assert quiet.measurement is not None
    assert loaded.measurement.median_ns < 2 * quiet.measurement.median_ns


# -- plans and runs


def two_kernels(second: str = "x[i] * x[i]") -> Executable:
    t = read("t", ("i",), (N,), F32)
    square = Program((Input("t", (N,), F32),), (Output("z", apply("mul", t, t), ("i",), F32),))
    first = Program(DOUBLE.inputs, (Output("t", DOUBLE.outputs[0].expr, ("i",), F32),))
    whole_expr = apply("mul", DOUBLE.outputs[0].expr, DOUBLE.outputs[0].expr)
    whole = Program(DOUBLE.inputs, (Output("z", whole_expr, ("i",), F32),))
    return executable(
        (first, source(LOOP.format(value="x[i] + x[i]", n=N), args=("x", "t"))),
        (square, source(LOOP.format(value=second, n=N), args=("t", "z"))),
        whole=whole,
    )


def test_plans_are_verified_and_timed_whole(device: CpuDevice) -> None:
    plan = two_kernels()
    assert device.verify_plan(plan).ok
    wrong = device.verify_plan(two_kernels("x[i] * x[i] * 1.001f"))
    assert not wrong.ok
    assert "z[" in wrong.reason
    quick, slow = device.time_plans(
        [executable((DOUBLE, RIGHT), whole=DOUBLE), executable((DOUBLE, SLOW), whole=DOUBLE)], rounds=7
    )
    assert slow.median_ns > 5 * quick.median_ns
    assert len(quick.samples_ns) + quick.rejected >= 7


def test_a_plan_that_crashes_fails_its_check_and_names_itself_when_timed(device: CpuDevice) -> None:
    plan = executable((DOUBLE, source("*(volatile int *)0 = 2;")), whole=DOUBLE)
    verdict = device.verify_plan(plan)
    assert not verdict.ok
    assert "launch" in verdict.reason
    with pytest.raises(KernelFaultError, match="timing plan 0 of 1"):
        device.time_plans([plan])
    assert device.verify_plan(two_kernels()).ok


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        (lambda x: x + x, ""),
        (lambda x: x.astype(np.float64) * 2, ""),
        (lambda x: x * 1.001, "expected"),
        (lambda x: x[1:], "it returns shapes [(2999,)], the program [(3000,)]"),
    ],
)
def test_a_baseline_is_timed_beside_the_plan_and_its_result_compared(
    device: CpuDevice, baseline: Callable[..., np.ndarray], said: str
) -> None:
    found = device.time_beside(executable((DOUBLE, RIGHT), whole=DOUBLE), baseline, rounds=5)
    assert found.plan.median_ns > 0
    assert found.baseline.median_ns > 0
    assert (said in found.difference) if said else not found.difference


def test_rates_are_plausible_and_measured_once(device: CpuDevice) -> None:
    rates = device.rates()
    assert device.rates() is rates
    assert rates.empirical
    assert 0.5 < rates.read < rates.issue
    assert rates.rate("f64") < rates.rate("f32")
    assert 0 < rates.launch_ns < 1000
    assert rates.cache_bytes > 0


def test_a_worker_runs_without_the_variables_that_slow_its_references(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*MISLEADING, "EQSAT_KEPT"):
        monkeypatch.setenv(name, "Haswell")
    worker = WatchedWorker("tests.search.faulty_backend:FaultyBackend")
    try:
        names = worker.call("variables")
    finally:
        worker.close()
    assert "EQSAT_KEPT" in names
    assert not set(MISLEADING) & set(names)


def test_the_fingerprint_names_cpu_and_compilers() -> None:
    assert all(str(c) in fingerprint() for c in cc.compilers())


def test_a_runner_gives_numpy_arrays_and_takes_out() -> None:
    run = CpuRunner(two_kernels())
    x = np.linspace(-1, 1, N, dtype=np.float32)
    y = run(x)
    assert (y == 4 * x * x).all()
    assert y.dtype == np.float32
    assert y.ctypes.data % 64 == 0
    out = np.empty(N, np.float32)
    assert run(x * 2, out=out) is out
    assert (out == 16 * x * x).all()
    assert (y == 4 * x * x).all()


def test_a_runner_refuses_what_its_kernels_cannot_read() -> None:
    run = CpuRunner(executable((DOUBLE, RIGHT), whole=DOUBLE))
    good = np.zeros(N, np.float32)
    with pytest.raises(ShapeError, match="'x'"):
        run(np.zeros(N + 1, np.float32))
    with pytest.raises(DTypeError, match="'x'"):
        run(np.zeros(N))
    with pytest.raises(UsageError, match="not contiguous"):
        run(np.zeros(2 * N, np.float32)[::2])
    with pytest.raises(UsageError, match="expected 1 arguments"):
        run(good, good)
    frozen = np.zeros(N, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(UsageError, match="writeable"):
        run(good, out=frozen)
    assert (run(frozen) == 0).all()
