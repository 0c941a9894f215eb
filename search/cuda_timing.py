"""Time plans on one GPU: graph replays over rotating cold buffers, all contestants interleaved in random order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eqsat.codegen.cuda.driver import Event, Graph, Launch, Memory, Stream, copy, fill, memory_info
from eqsat.search.cuda_steps import LoadedSteps, Scratch
from eqsat.search.supervised import Begin

if TYPE_CHECKING:
    from eqsat.search.cuda_probe import Probe

ALIGNMENT = 256
COLD_FACTOR = 3  # a set is touched again only after this many times the L2 has gone by
MOST_SETS = 96
LEAST_SETS = 2
MEMORY_SHARE = 0.4  # of the free device memory, for all sets together
SAMPLE_NS = 600_000.0  # of work in one replay: the event clock ticks in 500 ns
MOST_NODES = 256
ROUND_LIMIT_S = 60.0


class BufferSets:
    """Copies of a program's inputs and outputs at different addresses, so that each launch finds its data cold.

    Parameters
    ----------
    contents : mapping
        Address and bytes of each input by name: what every copy holds.
    outputs : mapping
        Bytes of each output by name.
    l2_bytes : int
    stream : int
    share : int
        How many such groups of sets are to share the memory.
    """

    def __init__(
        self, contents: Mapping[str, tuple[int, int]], outputs: Mapping[str, int], l2_bytes: int, stream: int, share: int = 1
    ) -> None:
        sizes = {**{name: nbytes for name, (_, nbytes) in contents.items()}, **outputs}
        offsets: dict[str, int] = {}
        at = 0
        for name, nbytes in sizes.items():
            offsets[name] = at
            at += -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        self.bytes = at
        affordable = int(MEMORY_SHARE * memory_info()[0] / share // max(at, 1))
        cold = COLD_FACTOR * l2_bytes
        self.large = at >= cold  # one run alone pushes everything out of the L2
        wanted = LEAST_SETS if self.large else max(2 * LEAST_SETS, min(MOST_SETS, math.ceil(cold / max(at, 1))))
        self.count = max(1, min(wanted, affordable))
        # too few bytes (or sets) to push each other out of the L2: it is flushed before every replay, which uses each set once
        self.needs_flush = self.count * at < cold
        self._memory = Memory(self.count * at)
        self._offsets = offsets
        for i in range(self.count):
            for name, (origin, nbytes) in contents.items():
                copy(self.pointers(i)[name], origin, nbytes, stream)
            for name, nbytes in outputs.items():
                fill(self.pointers(i)[name], 0, nbytes, stream)

    def pointers(self, index: int) -> dict[str, int]:
        """Return the addresses of copy `index` by buffer name."""
        base = self._memory.pointer + index * self.bytes
        return {name: base + offset for name, offset in self._offsets.items()}


class Contestant:
    """A plan bound to every buffer set and captured as one graph of `repeats` runs; collects its own samples."""

    def __init__(
        self, index: int, steps: LoadedSteps, intermediates: Mapping[str, int], sets: BufferSets, stream: Stream
    ) -> None:
        self.index = index
        self.samples: list[float] = []
        self._start, self._end = Event(), Event()
        self._scratch: Scratch = steps.scratch(intermediates, stream.handle)
        runs = [steps.bind(sets.pointers(i), self._scratch) for i in range(sets.count)]
        self.estimate_ns = self._estimate(runs, stream)
        wanted = max(1, min(math.ceil(SAMPLE_NS / self.estimate_ns), MOST_NODES // max(1, len(runs[0]))))
        if sets.needs_flush:  # each set once after a flush
            wanted = sets.count
        elif not sets.large:  # whole rotations, so that a replay finds the sets as cold as it leaves them
            wanted = -(-wanted // sets.count) * sets.count
        self.repeats = wanted
        self._graph = Graph([launch for i in range(wanted) for launch in runs[i % sets.count]], stream)
        self._flushed = sets.needs_flush

    def _estimate(self, runs: Sequence[Sequence[Launch]], stream: Stream) -> float:
        """Run over all sets twice, the first time to load the code; return the time of one run of the second, ns."""
        for _ in range(2):
            self._start.record(stream.handle)
            for run in runs:
                for launch in run:
                    launch(stream.handle)
            self._end.record(stream.handle)
            self._end.synchronize()
        return max(self._start.elapsed_ns(self._end) / len(runs), 100.0)

    def enqueue(self, probe: Probe, stream: Stream) -> None:
        """Queue one timed replay."""
        if self._flushed:
            probe.flush(stream.handle)
        self._start.record(stream.handle)
        self._graph(stream.handle)
        self._end.record(stream.handle)

    def collect(self) -> float:
        """Keep the replay's time for one run, ns; the stream's work must be done."""
        self.samples.append(self._start.elapsed_ns(self._end) / self.repeats)
        return self.samples[-1]

    @property
    def median_ns(self) -> float:
        """Median of the samples so far."""
        return float(np.median(self.samples)) if self.samples else math.inf


class Race:
    """Interleaved rounds of contestants on one stream, with the clock read after each round."""

    def __init__(self, probe: Probe, stream: Stream, seed: int) -> None:
        self._probe, self._stream = probe, stream
        self._order = np.random.default_rng(seed)
        self.clocks: list[float] = []

    def draw(self, count: int) -> int:
        """Return a random number below `count`."""
        return int(self._order.integers(count))

    def first_samples(self, contestant: Contestant, count: int) -> None:
        """Take samples of one contestant alone, after one replay that warms it up."""
        for i in range(count + 1):
            contestant.enqueue(self._probe, self._stream)
            self._stream.synchronize()
            if i:
                contestant.collect()

    def rounds(self, contestants: Sequence[Contestant], count: int, *, isolate: bool = False) -> Iterator[Begin]:
        """Run `count` rounds, each contestant once a round in random order.

        Yields what is about to run. With `isolate`, one contestant at a time: then a fault can be laid at its door.
        """
        for _ in range(count):
            if not isolate:
                yield Begin(None, ROUND_LIMIT_S, "timing the kernels interleaved")
            for i in self._order.permutation(len(contestants)):
                contestant = contestants[int(i)]
                if isolate:
                    yield Begin(contestant.index, ROUND_LIMIT_S, "timing a kernel")
                contestant.enqueue(self._probe, self._stream)
                if isolate:
                    self._stream.synchronize()
            self._probe.record_clock(len(self.clocks))
            self._stream.synchronize()
            self.clocks.append(self._probe.clock_mhz(len(self.clocks)))
            for contestant in contestants:
                contestant.collect()

    @property
    def clock_mhz(self) -> float:
        """Median clock over the rounds; 0 before the first."""
        return float(np.median(self.clocks)) if self.clocks else 0.0
