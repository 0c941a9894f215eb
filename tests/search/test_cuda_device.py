import signal
import time

import pytest

from eqsat.codegen.cuda import driver
from eqsat.codegen.kernel import BufferArg, KernelBinary, KernelSource
from eqsat.errors import EnvironmentMissingError, KernelFaultError, UsageError
from eqsat.ir import Input, Output, Program, read
from eqsat.search.cuda_device import CudaDevice, target_of
from eqsat.search.supervised import WorkerLostError, WorkerProcess
from eqsat.search.watched import WatchedWorker, launch_key
from eqsat.types import DType

BACKEND = "tests.search.faulty_backend:FaultyBackend"


def binary(image, grid=1):
    source = KernelSource("cuda", "", "k", (BufferArg("x"), BufferArg("y")), (grid, 1, 1), 32)
    return KernelBinary(source, image.encode(), "none")


@pytest.fixture(scope="module")
def program():
    return Program((Input("x", (4,), DType.F32),), (Output("y", read("x", ("i",), (4,), DType.F32), ("i",), DType.F32),))


@pytest.fixture
def worker():
    made = WatchedWorker(BACKEND, limit_s=1.0)
    yield made
    made.close()


def test_a_job_s_result_comes_back(worker):
    assert worker.call("echo", {"a": 1}) == {"a": 1}


def test_an_error_in_a_job_is_raised_in_the_parent_and_the_worker_lives(worker):
    worker.call("echo", 1)
    first = worker.process.description
    with pytest.raises(UsageError, match="expected something else"):
        worker.call("refuse")
    worker.call("echo", 1)
    assert worker.process.description == first


def test_a_worker_that_cannot_start_says_what_is_missing():
    with pytest.raises(EnvironmentMissingError, match="there is none"):
        WorkerProcess(BACKEND, ("missing",))


def test_a_job_beyond_its_limit_is_killed_and_the_next_job_runs(worker):
    start = time.monotonic()
    with pytest.raises(WorkerLostError, match=r"thinking: it did not end within 0\.2 s"):
        worker.call("slow")
    assert time.monotonic() - start < 10
    assert worker.call("echo", 5) == 5
    assert worker.replaced == 1


def test_a_sweep_goes_on_after_a_fault_a_hang_and_a_crash(worker, program):
    images = ["good:a", "fault", "good:bb", "hang", "crash", "good:ccc", "wrong"]
    trials = worker.sweep(program, [binary(i) for i in images])
    assert [t.status for t in trials] == ["ok", "fault", "ok", "timeout", "fault", "ok", "wrong"]
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in trials[1].note
    assert "within 1 s" in trials[3].note
    assert "exit code -11" in trials[4].note


def test_what_a_crashed_worker_wrote_last_is_in_the_note(worker, program):
    (trial,) = worker.sweep(program, [binary("exit")])
    assert "exit code 7" in trial.note
    assert "last words of the worker" in trial.note


def test_an_offender_is_quarantined_and_never_runs_again(worker, program):
    worker.sweep(program, [binary("fault")])
    lost = worker.replaced
    seen = []
    trials = worker.sweep(program, [binary("fault"), binary("good:a")], progress=lambda i, t: seen.append((i, t.status)))
    assert [t.status for t in trials] == ["fault", "ok"]
    assert sorted(seen) == [(0, "fault"), (1, "ok")]
    assert worker.replaced <= lost + 1
    assert worker.quarantined == (launch_key(binary("fault")),)


def test_verdicts_reached_before_a_loss_are_not_computed_again(worker, program):
    trials = worker.sweep(program, [binary("good:a"), binary("good:bb"), binary("fault")])
    assert [t.status for t in trials] == ["ok", "ok", "fault"]
    assert trials[0].note == "verified by this worker: 0"


def test_a_fault_while_timing_together_is_found_by_timing_alone(worker, program):
    trials = worker.sweep(program, [binary("good:a"), binary("late"), binary("good:bb")])
    assert [t.status for t in trials] == ["ok", "fault", "ok"]


def test_equal_binaries_run_once_and_share_their_trial(worker, program):
    trials = worker.sweep(program, [binary("good:a"), binary("good:a"), binary("good:a", grid=2)])
    assert trials[0] is trials[1]
    assert trials[2] is not trials[0]
    assert trials[2].note == "verified by this worker: 2"


def test_a_sweep_after_the_deadline_tries_nothing(worker, program):
    assert worker.sweep(program, [binary("good:a")], deadline_s=time.monotonic() - 1) == [None]


def test_an_interrupt_in_a_sweep_leaves_a_device_that_works(worker, program):
    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        worker.sweep(program, [binary("wrong"), binary("good:a")], progress=interrupt)
    assert worker.sweep(program, [binary("good:a")])[0].status == "ok"


def test_losses_that_no_kernel_can_be_blamed_for_end_the_sweep(program):
    worker = WatchedWorker("tests.search.faulty_backend:Missing")
    with pytest.raises(KernelFaultError, match="Missing"):
        worker.sweep(program, [binary("good:a")])
    worker.close()


def test_a_machine_without_a_gpu_is_told_what_was_looked_for():
    if driver.device_count():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EnvironmentMissingError, match=r"expected an NVIDIA driver.*target='cpu'"):
        CudaDevice()


def _info(capability):
    return driver.DeviceInfo(0, "GPU", capability, 1, 1000.0, 1 << 20, 1 << 30, "13.0")


@pytest.mark.parametrize(("capability", "target"), [((9, 0), "sm_90"), ((8, 7), "sm_86"), ((10, 3), "sm_100"), ((8, 0), "sm_80")])
def test_a_gpu_gets_the_nearest_target_whose_code_runs_on_it(capability, target):
    assert target_of(_info(capability)).name == target


def test_a_gpu_that_no_target_fits_is_refused_by_name():
    with pytest.raises(EnvironmentMissingError, match="sm_70"):
        target_of(_info((7, 0)))
