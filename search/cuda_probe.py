"""Measure a GPU's ceilings: streaming, arithmetic, launch floor and clock. They are the basis of every bound and share."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable
from importlib import resources

import numpy as np

from eqsat.codegen.cuda import driver, nvrtc
from eqsat.codegen.cuda.driver import DeviceInfo, Event, Graph, Launch, LoadedKernel, Memory, Stream
from eqsat.codegen.kernel import BufferArg, KernelBinary, KernelSource, Rates
from eqsat.codegen.targets import Target
from eqsat.search.arrays import cupy_stream

STREAM_BYTES = 1 << 30  # far beyond any L2
GEMM_EXTENT = 8192
_THREADS = 512
_SUSTAINED_NS, _SUSTAINED_MOST = 3e8, 300
_ARGS = (BufferArg("in"), BufferArg("out"))

# cuBLAS numbers of library_types.h and cublas_api.h: (element type, element bytes, compute type)
_GEMMS = {"bf16": (14, 2, 68), "f16": (2, 2, 68), "tf32": (0, 4, 77)}


class Probe:
    """The probe kernels, compiled for one device and loaded into the current context."""

    def __init__(self, target: Target, info: DeviceInfo, stream: Stream) -> None:
        self._target, self._info, self._stream = target, info, stream
        text = resources.files("eqsat.search").joinpath("cuda_probe.cu").read_text(encoding="utf-8")
        first = KernelSource("cuda", text, "nothing", (BufferArg("out"),), block=32)
        self._image = nvrtc.compile_source(first, target)
        self._nothing = LoadedKernel(self._image)
        self._flush_source = Memory(2 * info.l2_bytes // 8192 * 8192 + 8192)
        self._scratch = Memory(1 << 16)
        pointers = {"in": self._flush_source.pointer, "out": self._scratch.pointer}
        self._fill(self._flush_source)
        self.flush: Callable[[int], None] = Launch(
            self._load("read_8", self._flush_source.nbytes // (16 * _THREADS * 8)), pointers
        )
        self._clock = Launch(self._load("clock_rate", 1, block=1, args=(BufferArg("out"),)), pointers)

    def _load(self, entry: str, grid: int, block: int = _THREADS, args: tuple[BufferArg, ...] = _ARGS) -> LoadedKernel:
        source = KernelSource("cuda", self._image.source.text, entry, args, (grid, 1, 1), block)
        return LoadedKernel(KernelBinary(source, self._image.image, self._image.compiler))

    def _fill(self, memory: Memory) -> None:
        kernel = self._load("scramble", memory.nbytes // (16 * _THREADS), args=(BufferArg("out"),))
        Launch(kernel, {"out": memory.pointer})(self._stream.handle)
        self._stream.synchronize()

    def record_clock(self, slot: int) -> None:
        """Queue a reading of the clock (50 µs) behind the stream's work, into one of 4000 slots."""
        pointers = {"out": self._scratch.pointer + 16 * (slot % 4000)}
        Launch(self._clock.kernel, pointers)(self._stream.handle)

    def clock_mhz(self, slot: int) -> float:
        """Return a recorded reading; the stream's work must be done."""
        cycles, nanoseconds = struct.unpack("<QQ", driver.to_host(self._scratch.pointer + 16 * (slot % 4000), 16))
        return 1e3 * cycles / nanoseconds if nanoseconds else 0.0

    def best_ns(self, launches: list[Launch], rounds: int = 7) -> float:
        """Return the least time of one launch over graph replays of all of them."""
        graph = Graph(launches, self._stream)
        start, end = Event(), Event()
        best = float("inf")
        for _ in range(rounds + 1):
            start.record(self._stream.handle)
            graph(self._stream.handle)
            end.record(self._stream.handle)
            end.synchronize()
            best = min(best, start.elapsed_ns(end))
        return best / len(launches)

    def rates(self) -> Rates:
        """Measure the ceilings: 2 to 3 s, and 3 GiB of device memory for a moment."""
        source, sink = Memory(STREAM_BYTES), Memory(STREAM_BYTES)
        self._fill(source)
        pointers = {"in": source.pointer, "out": sink.pointer}

        def streamed(entry: str, unroll: int, moved: int) -> float:
            kernel = self._load(entry, STREAM_BYTES // (16 * _THREADS * unroll))
            return moved * STREAM_BYTES / self.best_ns([Launch(kernel, pointers)] * 3)

        read = max(streamed(f"read_{u}", u, 1) for u in (2, 4, 8))
        copied = max(streamed(f"copy_{u}", u, 2) for u in (1, 2, 4))
        flops = [("f32", self._multiply_adds("fma_f32", 4096, pointers)), ("f64", self._multiply_adds("fma_f64", 2048, pointers))]
        flops += [(path, self._matrix_rate(path, source.pointer, sink.pointer)) for path in _GEMMS]
        floor = self.best_ns([Launch(self._nothing, {"out": self._scratch.pointer})] * 256)
        issue = self._info.processors * 128 * self._info.clock_mhz / 1000
        return Rates(read, copied, tuple(flops), issue, floor, empirical=True)

    def _multiply_adds(self, entry: str, rounds: int, pointers: dict[str, int]) -> float:
        grid = self._info.processors * 8
        kernel = self._load(entry, grid, block=256)
        return 2 * 8 * rounds * 256 * grid / self.best_ns([Launch(kernel, pointers)])

    def _matrix_rate(self, path: str, source: int, sink: int) -> float:
        """Return the rate of cuBLAS on random bits of this type, GFLOP/s; the data sheet's where it cannot be measured."""
        try:
            cupy = importlib.import_module("cupy")  # optional dependency: extra "cuda"
            cublas = importlib.import_module("cupy_backends.cuda.libs.cublas")
        except ImportError:
            return self._target.rates.rate(path)
        kind, size, compute = _GEMMS[path]
        n = GEMM_EXTENT
        one, zero = np.array(1, np.float32), np.array(0, np.float32)
        right = source + n * n * size
        handle = cupy.cuda.device.get_cublas_handle()
        operands = (one.ctypes.data, source, kind, n, right, kind, n, zero.ctypes.data, sink, kind, n, compute, -1)
        with cupy_stream(cupy, self._stream.handle):
            return 2 * n**3 / self._sustained_ns(lambda: cublas.gemmEx(handle, 1, 0, n, n, n, *operands))

    def _sustained_ns(self, run: Callable[[], object]) -> float:
        """Return the least time of one run in the second half of a long series: the power limit has lowered the clock by then."""
        handle = self._stream.handle
        marks = [Event() for _ in range(3)]
        for mark in marks:
            mark.record(handle)
            run()
        self._stream.synchronize()
        count = max(4, min(_SUSTAINED_MOST, int(_SUSTAINED_NS / marks[1].elapsed_ns(marks[2]))))
        marks = [Event() for _ in range(count + 1)]
        for mark in marks:
            mark.record(handle)
            run()
        self._stream.synchronize()
        return min(a.elapsed_ns(b) for a, b in zip(marks[count // 2 :], marks[count // 2 + 1 :], strict=False))
