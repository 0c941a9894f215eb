"""Measure the ceilings of one core of this machine: memory, last-level and nearest cache, multiply-add, the call of a kernel."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from eqsat.codegen.cpu.compiler import compile_source, usable_threads
from eqsat.codegen.kernel import KernelSource, Rates
from eqsat.search.cpu_steps import Memory, SharedObject
from eqsat.search.cpu_timing import COLD_FACTOR, Harness, cache_bytes

_SOURCE = Path(__file__).with_name("cpu_probe.c")
_NEAR_BYTES = 8 << 10  # three such buffers stay in any level-1 cache
_MEMORY_FACTOR = 4  # what is read from memory exceeds the last-level cache so many times …
_MOST_BYTES = 256 << 20  # … up to here
_CACHED_WORK = 16 << 20  # bytes of one timed stretch in the last-level cache
_PASSES = 5
_CALL_SHARE = 0.8  # a kernel of one element was measured at 0.94 of the call alone
_CHAINS = 12  # as in the C text

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long


def measure_rates(harness: Harness) -> Rates:
    """Measure in about a second; the best of a few passes each, since a ceiling must not be too low."""
    library = SharedObject(compile_source(KernelSource("c", _SOURCE.read_text(encoding="utf-8"), "read_bytes", ())).image).library
    private, last = cache_bytes()
    far = min(_MOST_BYTES, _MEMORY_FACTOR * last)
    x, y = Memory(far), Memory(far, offset=192)
    x.array[...], y.array[...] = 0, 0
    count = far // 4
    _declare(library)
    read = far / _fastest(lambda: library.read_bytes(x.pointer, count, 1))
    copies = (library.copy_bytes, library.library_copy)
    copy = max(2 * far / _fastest(lambda c=c: c(x.pointer, y.pointer, count, 1)) for c in copies)  # type: ignore[misc]
    return Rates(
        read,
        copy,
        tuple(_arithmetic(library)),
        _near(library),
        _call(harness),
        empirical=True,
        cache_bytes=last,
        cores=usable_threads(),
        cached=max(_cached(library, min(k * COLD_FACTOR * private, last // 2)) for k in (1, 2)),
    )


def _declare(library: ctypes.CDLL) -> None:
    for name, result, arguments in (
        ("read_bytes", ctypes.c_float, (_POINTER, _LONG, _LONG)),
        ("copy_bytes", None, (_POINTER, _POINTER, _LONG, _LONG)),
        ("library_copy", None, (_POINTER, _POINTER, _LONG, _LONG)),
        ("fill_bytes", None, (_POINTER, _LONG, _LONG)),
        ("add_two", None, (_POINTER, _POINTER, _POINTER, _LONG, _LONG)),
        ("fma_f32", ctypes.c_float, (ctypes.c_float, ctypes.c_float, _LONG)),
        ("fma_f64", ctypes.c_double, (ctypes.c_double, ctypes.c_double, _LONG)),
        ("vector_bytes", _LONG, ()),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def _fastest(work: Callable[[], object]) -> float:
    """Return the least of a few times, ns."""
    best = float("inf")
    for _ in range(_PASSES):
        start = time.thread_time_ns()
        work()
        best = min(best, time.thread_time_ns() - start)
    return best


def _near(library: ctypes.CDLL) -> float:
    """Return the bytes per ns between registers and the nearest cache: loads alone, or two loads beside a store."""
    times = 20_000
    x, y, z = (Memory(_NEAR_BYTES, offset=_NEAR_BYTES * i) for i in range(3))
    for m in (x, y, z):
        m.array[...] = 0
    count = _NEAR_BYTES // 4
    loads = _NEAR_BYTES * times / _fastest(lambda: library.read_bytes(x.pointer, count, times))
    sums = 3 * _NEAR_BYTES * times / _fastest(lambda: library.add_two(x.pointer, y.pointer, z.pointer, count, times))
    return max(loads, sums)


def _cached(library: ctypes.CDLL, size: int) -> float:
    """Return the bytes per ns from and to the cache that just holds `size` bytes.

    The best of loads alone, loads and stores, two loads to a store, and stores alone.
    """
    times = max(1, _CACHED_WORK // size)
    whole, (x, y, z) = Memory(size), (Memory(size // 3, offset=192 * i) for i in range(3))
    for m in (whole, x, y, z):
        m.array[...] = 0
    start, middle = whole.pointer, whole.pointer + size // 2
    passes: tuple[Callable[[], object], ...] = (
        lambda: library.read_bytes(start, size // 4, times),
        lambda: library.copy_bytes(start, middle, size // 8, times),
        lambda: library.library_copy(start, middle, size // 8, times),
        lambda: library.add_two(x.pointer, y.pointer, z.pointer, size // 12, times),
        lambda: library.fill_bytes(start, size // 4, times),
    )
    return max(size * times / _fastest(work) for work in passes)


def _arithmetic(library: ctypes.CDLL) -> Iterator[tuple[str, float]]:
    times = 2_000_000
    width = library.vector_bytes()
    for path, function, size in (("f32", library.fma_f32, 4), ("f64", library.fma_f64, 8)):
        operations = 2 * _CHAINS * (width // size) * times
        # 0.5 and 0.25 keep the values in range: no denormals, which some cores multiply slowly
        yield path, operations / _fastest(lambda f=function: f(0.5, 0.25, times))  # type: ignore[misc]


def _call(harness: Harness) -> float:
    """Return the ns of a kernel that does nothing, less a share: of so short a time the noise is a large part."""
    times = 1 << 16
    functions = (ctypes.c_void_p * 1)(harness.nothing)
    arguments = (ctypes.c_void_p * 1)(0)
    return _fastest(lambda: harness.repeat(functions, arguments, 1, times)) / times * _CALL_SHARE
