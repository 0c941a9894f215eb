"""The timing process of the bench: load saved results, run them beside the baselines, interleaved, and write JSON.

Run as a module with one JSON argument by `eqsat.search.bench`; the working folder holds one bundle a row, and names of rows come in on
standard input.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from eqsat.search import machine
from eqsat.search.bench import ANSWER, interval
from eqsat.search.beside import misled, time_calls
from eqsat.search.result import load
from eqsat.search.statistics import summarize
from eqsat.search.store import Store
from eqsat.search.workloads import Workload, workloads_of
from eqsat.search.workloads.workload import Spec
from eqsat.types import DType

Contestants = dict[str, Callable[[], Any]]
_ROUNDS = 40
_FLUSH_BYTES = 256 << 20  # several times any last-level cache


def main(request: dict[str, Any]) -> None:
    """Time the rows whose names come in, a line each; the first answer is the environment and the ceilings."""
    rows = {w.name: w for w in workloads_of(request["source"], request["kind"])}
    timing = time_on_cuda if request["kind"] == "cuda" else time_on_cpu
    _answer({"environment": environment(), "rates": rates(request["kind"])})
    for line in sys.stdin:
        name = line.strip()
        print(f"time {name}", file=sys.stderr, flush=True)  # noqa: T201 - progress of a long run
        _answer(timing(rows[name], Path(name), request["modes"]))
        _make_room()


def _make_room() -> None:
    """Give the device's memory back: the next row is searched by another process meanwhile."""
    gc.collect()
    torch = sys.modules.get("torch")  # optional dependency: there, if a baseline ran
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _answer(found: dict[str, Any]) -> None:
    print(f"\n{ANSWER}{json.dumps(found)}", flush=True)  # noqa: T201 - the parent reads it


def environment() -> dict[str, Any]:
    """Return the versions of everything that is timed, and the variables that slow some of it (there should be none)."""
    found: dict[str, Any] = {"misled": misled()}
    for name in ("numpy", "torch", "triton", "cuda-bindings", "nvidia-cuda-nvrtc", "cupy-cuda13x"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def rates(kind: str) -> dict[str, Any]:
    """Measure the device's ceilings in this run."""
    place = machine.resolve("cpu" if kind == "cpu" else "native")
    assert place.open_device is not None
    device = place.open_device(Store(":memory:"))
    try:
        found = device.rates()
    finally:
        device.close()
    return {"read": found.read, "copy": found.copy, "flops": dict(found.flops), "launch_ns": found.launch_ns}


def draw(w: Workload, seed: int) -> list[np.ndarray[Any, Any]]:
    """Return random normal inputs in each input's dtype; integers evenly from those that the row allows."""
    rng = np.random.default_rng(seed)

    def one(name: str, shape: tuple[int, ...], dtype: DType) -> np.ndarray[Any, Any]:
        if name in w.below:
            return rng.integers(0, w.below[name], shape).astype(dtype.numpy)
        return rng.standard_normal(shape, dtype=np.float32).astype(dtype.numpy)

    return [one(name, shape, DType.parse(dtype)) for name, shape, dtype in w.inputs]


def time_on_cpu(w: Workload, bundle: Path, modes: list[str]) -> dict[str, Any]:
    """Time a row on the CPU: the result, NumPy, PyTorch eager where it is installed; A/A in `again`."""
    best = load(bundle)
    arrays = draw(w, 0)
    contestants: Contestants = {"eqsat": lambda: best(*arrays), "again": lambda: best(*arrays)}
    if (baseline := w.baseline) is not None:
        if w.built is None:  # a user's baseline may use what the stand-in for torch does not have
            contestants["numpy"] = lambda: numpy_baseline(w, arrays)
        try:
            import torch  # optional dependency: the baseline of the CPU rows too
        except ImportError:
            pass
        else:
            torch.set_num_threads(1)
            tensors = [torch.from_numpy(a) for a in arrays]
            contestants["torch eager"] = lambda: baseline(torch, *tensors)
    measured = time_calls(list(contestants.values()), rounds=_ROUNDS)
    return {"times": {name: interval(m) for name, m in zip(contestants, measured, strict=True)}}


def numpy_baseline(w: Workload, arrays: list[np.ndarray[Any, Any]]) -> Any:
    """Run the row's PyTorch code on NumPy arrays through a stand-in for the torch module."""
    assert w.baseline is not None
    return w.baseline(_NumpyAsTorch, *arrays)


class _NumpyAsTorch:
    """The few torch functions that CPU rows use, in NumPy as a user would write them."""

    @staticmethod
    def mean(x: Any, axis: int, keepdim: bool) -> Any:
        return x.mean(axis, keepdims=keepdim)

    @staticmethod
    def rsqrt(x: Any) -> Any:
        return 1 / np.sqrt(x)

    @staticmethod
    def softmax(x: Any, axis: int) -> Any:
        e = np.exp(x - x.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)

    class nn:  # noqa: N801 - torch's name
        class functional:  # noqa: N801 - torch's name
            @staticmethod
            def gelu(x: Any, approximate: str) -> Any:
                return 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


def _in_modes(torch: Any, baseline: Callable[..., Any], modes: list[str]) -> dict[str, Callable[..., Any]]:
    """Return a baseline as PyTorch runs it in each mode."""
    wanted = {"compile": None, "max-autotune": "max-autotune-no-cudagraphs"}
    found: dict[str, Callable[..., Any]] = {}
    if "eager" in modes:
        found["torch eager"] = lambda *xs: baseline(torch, *xs)
    for mode in [m for m in modes if m in wanted]:
        torch._dynamo.reset()
        found[f"torch {mode}"] = torch.compile(lambda *xs: baseline(torch, *xs), mode=wanted[mode], dynamic=False)
    return found


def _drawn(torch: Any, w: Workload, spec: Spec, generator: Any) -> Any:
    """Return `draw`'s counterpart on the device for one input."""
    name, shape, dtype = spec
    kind = getattr(torch, {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i32": "int32", "i64": "int64"}[dtype])
    if name in w.below:
        return torch.randint(0, w.below[name], shape, generator=generator, device="cuda", dtype=kind)
    return torch.randn(shape, generator=generator, device="cuda").to(kind)


def time_on_cuda(w: Workload, bundle: Path, modes: list[str]) -> dict[str, Any]:
    """Time a row on the GPU: the result and PyTorch's modes, each captured in a CUDA graph.

    `times`: one call a graph, the L2 flushed by reading before each replay (what a caller meets whose data lie in memory).
    `dirty`: the same, flushed by writing: the call also pays for writing back what it evicts, as after a large operation.
    `stream`: calls back to back over rotating inputs larger than the L2, where launches hide behind the work before.
    """
    import torch  # optional dependency: the baseline on CUDA

    best = load(bundle)
    generator = torch.Generator(device="cuda").manual_seed(0)
    size = sum(int(np.prod(shape)) * DType.parse(d).bytes for _, shape, d in w.inputs)
    count = max(2, min(16, _FLUSH_BYTES // max(size, 1) + 1))
    sets = [[_drawn(torch, w, spec, generator) for spec in w.inputs] for _ in range(count)]
    functions: dict[str, Callable[..., Any]] = {"eqsat": best, "again": best}
    torch.backends.cuda.matmul.allow_tf32 = False
    if (baseline := w.baseline) is not None:
        functions |= _in_modes(torch, baseline, modes)
    functions |= {name: (lambda *xs, f=f: f(torch, *xs)) for name, f in w.others.items()}
    cold: dict[str, tuple[Any, int]] = {}
    streams: dict[str, tuple[Any, int]] = {}
    notes: dict[str, str] = {}
    for name, f in functions.items():
        try:
            cold[name] = _captured(torch, f, sets[:1], once=True)
            streams[name] = _captured(torch, f, sets, once=False)
        except RuntimeError as e:  # a baseline that PyTorch cannot run or capture is reported, not fatal
            notes[name] = str(e).splitlines()[0][:200]
    flush = torch.ones(_FLUSH_BYTES // 4, dtype=torch.float32, device="cuda")
    times = _replayed(torch, cold, lambda: flush.sum())
    dirty = _replayed(torch, cold, lambda: flush.zero_())
    stream = _replayed(torch, streams, None)
    precision = "f32 products in IEEE arithmetic, convolutions as PyTorch ships them (TF32)"
    return {"times": times, "dirty": dirty, "stream": stream, "notes": notes, "clocks": _clocks(), "precision": precision}


def _clocks() -> dict[str, Any]:
    """Return the device's clocks (MHz), power (W), temperature (°C) and reasons of throttling at this moment, where NVML tells."""
    try:
        import pynvml  # optional dependency: NVIDIA's management library
    except ImportError:
        return {}
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(int(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or 0))
    return {
        "sm_mhz": pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM),
        "memory_mhz": pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_MEM),
        "power_w": pynvml.nvmlDeviceGetPowerUsage(device) / 1e3,
        "temperature_c": pynvml.nvmlDeviceGetTemperature(device, pynvml.NVML_TEMPERATURE_GPU),
        "throttled": pynvml.nvmlDeviceGetCurrentClocksEventReasons(device),
    }


def _captured(torch: Any, f: Callable[..., Any], sets: list[list[Any]], *, once: bool) -> tuple[Any, int]:
    """Return (graph, calls in it): one call, or on each input set at least one and about a millisecond in all."""
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            f(*sets[0])
        stream.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        f(*sets[-1])
        f(*sets[0])
        end.record()
        end.synchronize()
        estimate_us = max(2.0, start.elapsed_time(end) * 500)
        calls = 1 if once else len(sets) * max(1, min(40, int(1500 / estimate_us / len(sets))))
        graph = torch.cuda.CUDAGraph()
        # "relaxed": memory that is freed by the garbage collector meanwhile must not break the capture
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"):
            for i in range(calls):
                f(*sets[i % len(sets)])
    return graph, calls


def _replayed(torch: Any, graphs: dict[str, tuple[Any, int]], flush: Callable[[], Any] | None) -> dict[str, Any]:
    """Time replays round-robin in random order; with `flush`, it comes before each."""
    order = list(graphs)
    shuffle = random.Random(0).shuffle
    samples: dict[str, list[float]] = {n: [] for n in order}
    for n in order:
        graphs[n][0].replay()
    torch.cuda.synchronize()
    deadline = time.monotonic() + 3.0
    for done in range(_ROUNDS if flush is None else 4 * _ROUNDS):
        if done >= 8 and time.monotonic() > deadline:
            break
        shuffle(order)
        for n in order:
            graph, calls = graphs[n]
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            if flush is not None:
                flush()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples[n].append(start.elapsed_time(end) * 1e6 / calls)
    return {n: interval(summarize(s)) for n, s in samples.items()}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
