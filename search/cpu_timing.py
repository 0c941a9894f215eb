"""Time C kernels on one machine: rotating buffers, interleaved rounds, samples hit by a context switch thrown away.

What is measured: the time of one run when the private caches (L1, L2) do not hold its data but the last-level cache may,
as for data that another operation has just made. A run takes the next of several copies of all inputs and outputs; the
copies together exceed the private caches several times, and half of the last-level cache bounds them, so that a program
larger than that comes from memory, as in use; so do the kernels of such a program, whose copies together are as large. One copy
is enough for a program that alone exceeds the private caches.
"""

from __future__ import annotations

import ctypes
import math
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eqsat.codegen.cpu.compiler import compile_source
from eqsat.codegen.kernel import KernelSource
from eqsat.ir import Program
from eqsat.ops import Array
from eqsat.search.cpu_steps import LoadedSteps, Memory, SharedObject
from eqsat.search.statistics import interleaved
from eqsat.types import DType

SAMPLE_NS = 200_000.0  # of work in one sample: reading the clock from Python costs about 0.5 µs
COLD_FACTOR = 8  # the copies exceed the private caches so many times: with 4 a tenth of the loads still found their data
MOST_SETS = 512
MOST_REPEATS = 1 << 16
ATTEMPTS = 3  # to take a sample without a context switch, before the fastest one is taken as it is
UNDISTURBED_NS = 10e6  # a longer sample meets a context switch on any machine that does something else as well
LONGEST_PASS_NS = 4e6  # of runs over the copies, one after the other
LEAST_ROUNDS = 5  # of a race, whatever they take
MOST_RACE_NS = 1e9  # of samples in a race, all contestants together
RETIRED = 1.03  # times the fastest: after a few rounds such a contestant cannot win by noise alone
STAGGER = 192  # bytes between the starts of buffers modulo a page: equal offsets would alias in the L1

_HARNESS = """
typedef void (*kernel)(void **);
void repeat(kernel *functions, void ***arguments, long count, long times) {
  for (long t = 0; t < times; t++)
    for (long i = 0; i < count; i++) functions[i](arguments[i]);
}
void nothing(void **arguments) { (void)arguments; }
"""


class Harness:
    """The compiled loop that runs kernels without Python in between."""

    def __init__(self) -> None:
        binary = compile_source(KernelSource("c", _HARNESS, "repeat", ()))
        self._object = SharedObject(binary.image)
        self.repeat = self._object.library.repeat
        self.repeat.restype = None
        self.repeat.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_long)
        self.nothing = ctypes.cast(self._object.library.nothing, ctypes.c_void_p).value or 0


def cache_bytes() -> tuple[int, int]:
    """Return (private, last-level) bytes of data cache of one core; 1 and 32 MiB where the system does not say."""
    private, last = 0, 0
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        if kind == "Instruction":
            continue
        count = int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)
        if int(level) <= 2:
            private = max(private, count)
        last = max(last, count)
    return private or 1 << 20, last or 32 << 20


Shapes = Mapping[str, tuple[tuple[int, ...], DType]]


def buffers_of(program: Program) -> dict[str, tuple[tuple[int, ...], DType]]:
    """Return shape and dtype of the inputs and outputs of a program, by name."""
    return {**{i.name: (i.shape, i.dtype) for i in program.inputs}, **{o.name: (o.shape, o.dtype) for o in program.outputs}}


class BufferSets:
    """Copies of a program's inputs and outputs at different addresses.

    Parameters
    ----------
    shapes : mapping of str to (shape, dtype)
        The buffers, inputs first: see `buffers_of`.
    contents : mapping of str to array
        Of those that a run reads.
    private, last : int
        Bytes of the caches.
    apart : int
        Bytes that lie between two runs on the same copy, at the least: more than half of the last-level cache if the program
        is part of a larger one.
    """

    def __init__(self, shapes: Shapes, contents: Mapping[str, Array], private: int, last: int, apart: int = 0) -> None:
        sizes = {name: math.prod(shape) * dtype.bytes for name, (shape, dtype) in shapes.items()}
        total = max(1, sum(sizes.values()))
        wanted = math.ceil(max(COLD_FACTOR * private, apart) / total)
        self.count = max(1, min(wanted, MOST_SETS, math.ceil(max(last // 2, apart) / total)))
        self._shapes = shapes
        self._memory = [
            {name: Memory(size, STAGGER * (i + 1)) for i, (name, size) in enumerate(sizes.items())} for _ in range(self.count)
        ]
        for memory in self._memory:
            for name, m in memory.items():
                m.array[...] = contents[name].reshape(-1).view(np.uint8) if name in contents else 0

    def pointers(self, index: int) -> dict[str, int]:
        """Return the addresses of copy `index` by buffer name."""
        return {name: m.pointer for name, m in self._memory[index].items()}

    def poison(self, index: int, name: str) -> None:
        """Fill a buffer with NaN."""
        self._memory[index][name].array[...] = 0xFF

    def array(self, index: int, name: str) -> Array:
        """Return buffer `name` of copy `index` as an array."""
        shape, dtype = self._shapes[name]
        return self._memory[index][name].array.view(dtype.numpy).reshape(shape)


class Contestant:
    """A plan bound to every buffer set; collects its own samples.

    Its time is that of the thread, if one is all it uses: another process on the core then costs the cache contents only.
    `known_ns` is the time of one run where that was seen; a long one is not measured again to see how often to repeat it.
    """

    def __init__(self, index: int, steps: LoadedSteps, sets: BufferSets, harness: Harness, known_ns: float = 0.0) -> None:
        self.index, self.steps = index, steps
        self._clock = steps.clock
        self.samples: list[float] = []
        self.rejected = 0
        self._harness = harness
        self._bound = [args for i in range(sets.count) for args in steps.bind(sets.pointers(i))]
        addresses = [k.address for _ in range(sets.count) for k in steps.kernels]
        self._functions = (ctypes.c_void_p * len(addresses))(*addresses)
        self._arguments = (ctypes.c_void_p * len(addresses))(*(ctypes.addressof(a) for a in self._bound))
        self._steps_count, self._count = len(steps.kernels), sets.count
        self._runs, self._times = 1, 1
        self.estimate_ns = known_ns
        if known_ns < UNDISTURBED_NS:
            self._find_repeats()

    def _find_repeats(self) -> None:
        first = min(self._elapsed(), self._elapsed())  # the first run loads code and pages
        # a run that takes long for its bytes does not wait for them: it needs no other copies to be timed fairly
        self._runs = max(1, min(self._count, int(LONGEST_PASS_NS / max(first, 1.0))))
        elapsed = self._elapsed()
        while elapsed < SAMPLE_NS / 4 and self._times < MOST_REPEATS:
            grown = math.ceil(self._times * min(16.0, SAMPLE_NS / max(elapsed, 1.0)))
            self._times = min(MOST_REPEATS, max(grown, self._times + 1))
            elapsed = self._elapsed()
        self.estimate_ns = elapsed / (self._times * self._runs)
        self._times = max(1, min(MOST_REPEATS, round(SAMPLE_NS / max(self.estimate_ns * self._runs, 1e-3))))

    def _elapsed(self) -> float:
        start = self._clock()
        self._harness.repeat(self._functions, self._arguments, self._steps_count * self._runs, self._times)
        return float(self._clock() - start)

    def sample(self) -> float:
        """Take one sample: ns for one run, free of context switches if one of a few attempts is."""
        found = math.inf
        for attempt in range(ATTEMPTS if self.sample_ns < UNDISTURBED_NS else 1):
            self.rejected += attempt > 0
            before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            elapsed = self._elapsed() / (self._times * self._runs)
            if resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == before:
                found = elapsed
                break
            found = min(found, elapsed)
        self.samples.append(found)
        return found

    @property
    def sample_ns(self) -> float:
        """About how long it takes to take one sample."""
        return self.estimate_ns * self._runs * self._times

    @property
    def fastest_ns(self) -> float:
        """The least of the samples so far: what a few samples tell best, as noise only adds."""
        return min(self.samples, default=self.estimate_ns)


def race(contestants: Sequence[Contestant], rounds: int, seed: int) -> None:
    """Take up to `rounds` samples of each contestant, interleaved in random order; earlier samples are forgotten.

    Every few rounds those that are clearly not the fastest retire with the samples they have. Long kernels get fewer rounds:
    the race ends when its samples add up to `MOST_RACE_NS`.
    """
    for c in contestants:
        c.samples.clear()
    left, spent_ns = list(contestants), 0.0
    for start in range(0, rounds, LEAST_ROUNDS):
        if start and spent_ns > MOST_RACE_NS:
            break
        for i in interleaved(len(left), min(LEAST_ROUNDS, rounds - start), seed + start):
            left[i].sample()
        spent_ns += LEAST_ROUNDS * sum(c.sample_ns for c in left)
        best = min(c.fastest_ns for c in left)
        left = [c for c in left if c.fastest_ns <= RETIRED * best]
