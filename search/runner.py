"""Run an executable on CUDA with the caller's arrays, on the caller's stream, a few µs of host time over the launch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

from eqsat.codegen.cuda import driver
from eqsat.codegen.cuda.driver import DriverFaultError, Graph, Stream
from eqsat.codegen.plan import Executable
from eqsat.errors import UsageError
from eqsat.ir import Input
from eqsat.search import arrays as interop
from eqsat.search.constants import Constants
from eqsat.search.cuda_steps import LoadedSteps, Preparation, Scratch, bytes_of

ALIGNMENT = 16  # kernels load 16 bytes at once from the start of a buffer

Replay = Callable[[int], None]


class CudaRunner:
    """An executable on one GPU: call it with arrays in the order of the program's inputs.

    Takes PyTorch and CuPy arrays and anything with DLPack or `__cuda_array_interface__`; returns the output (a tuple if the
    program has several) in the library of the first argument, on its current stream, without waiting.

    Parameters
    ----------
    executable : Executable
    device_index : int
    graph : bool
        Launch plans of several kernels as one CUDA graph; else one launch after the other.
    remembered : int
        How many sets of pointers keep their packed arguments (or graph).

    Notes
    -----
    Packed arguments are kept by pointer tuple. Caching allocators return the same few addresses, so a repeated call costs the
    checks, one dictionary look-up and the launch. Intermediates belong to a stream: calls on two streams do not share them.
    What depends on inputs declared constant alone is computed at the first call with their arrays, and kept: see `Constants`.
    """

    def __init__(self, executable: Executable, device_index: int = 0, *, graph: bool = True, remembered: int = 64) -> None:
        self.executable = executable
        self.device_index = device_index
        self._device = f"cuda:{device_index}"
        program = executable.plan.program
        self._inputs: tuple[Input, ...] = program.inputs
        self._given_names = tuple(i.name for i in program.inputs) + tuple(o.name for o in program.outputs)
        self._names = (*self._given_names, *executable.preparation.writes)
        self._outputs = program.outputs
        self._context = driver.open_device(device_index)
        steps = [s for s in executable.call.steps if not s.kernel.is_empty]
        self._intermediates = bytes_of(executable.call.intermediates)
        with driver.current_context(self._context):
            self._steps = LoadedSteps([s.binary for s in steps], overlapped=executable.overlapped)
            self._capture = Stream()
            self._constants = self._prepared() if executable.plan.prepared else None
        self._graph = graph and len(steps) > 1
        self._remembered = remembered
        self._replays: OrderedDict[tuple[int, ...], Replay] = OrderedDict()
        self._scratch: dict[int, Scratch] = {}
        self._lock = Lock()
        self._doors: dict[type, _Door] = {}
        self._stream = 0  # of the call that holds the lock
        self._captured_constants: dict[int, dict[str, driver.Memory]] = {}

    def __call__(self, *arrays: Any, stream: Any = None, out: Any = None) -> Any:
        """Launch with `arrays`; `stream` overrides the caller's current stream, `out` gives the output array(s)."""
        if len(arrays) != len(self._inputs):
            names = ", ".join(f"{i.name}: {i.dtype}{list(i.shape)}" for i in self._inputs)
            raise UsageError(f"expected {len(self._inputs)} arguments ({names}); got {len(arrays)}.")
        like = arrays[0] if arrays else out
        door = self._doors.get(type(like)) or self._open(like, arrays)
        handle = door.stream() if stream is None else stream_handle(stream)
        read = door.read
        pointers = [read(a, i) for i, a in enumerate(arrays)]
        if out is not None:
            made = self._given(out, pointers)
        else:
            scope: AbstractContextManager[Any] = nullcontext() if stream is None else door.on_stream(handle)
            with scope:
                made = self._made(door, pointers)
        with self._lock:  # a graph must not get another call's pointers between its look-up and its launch
            if self._constants is not None:
                self._stream = handle
                made_once = self._constants.of(arrays, pointers)
                pointers += [m.pointer for m in made_once.values()]
                if driver.is_capturing(handle):
                    self._captured_constants[id(made_once)] = made_once  # the caller's graph reads them as long as it lives
            self._launch((handle, *pointers))
        return made

    def _prepared(self) -> Constants[dict[str, driver.Memory]]:
        """Return what remembers the buffers that are made of constant inputs once, on the stream of the call that needs them."""
        prepare = Preparation(self.executable)
        places = {name: self._given_names.index(name) for name in prepare.reads}

        def make(pointers: Sequence[int]) -> dict[str, driver.Memory]:
            if driver.is_capturing(self._stream):
                raise UsageError(
                    f"expected a call with the constants {', '.join(places)} before the stream is captured, as what depends on "
                    "them is computed in the first one; call once with the same arrays, then capture."
                )
            with driver.current_context(self._context):
                return prepare({name: pointers[at] for name, at in places.items()}, self._stream)

        return Constants(tuple(places), tuple(places.values()), make)

    def _launch(self, key: tuple[int, ...]) -> None:
        """Launch on the stream key[0] with the pointers key[1:], packed now or on an earlier call."""
        # A graph cannot be launched into a capture, and an address may be one that was seen before it was freed.
        captured = self._graph and driver.is_capturing(key[0])
        replay = None if captured else self._replays.get(key)
        if replay is None:
            replay = self._bind(key)
        else:
            self._replays.move_to_end(key)
        try:
            replay(key[0])
        except DriverFaultError as fault:
            # a thread that made no CUDA call yet has no current context, or another GPU's
            if fault.code not in ("CUDA_ERROR_INVALID_CONTEXT", "CUDA_ERROR_INVALID_HANDLE"):
                raise
            with driver.current_context(self._context):
                replay(key[0])

    def _made(self, door: _Door, pointers: list[int]) -> Any:
        made = [allocate() for allocate in door.allocate]
        pointers.extend(pointer for _, pointer in made)
        return made[0][0] if len(made) == 1 else tuple(array for array, _ in made)

    def _given(self, out: Any, pointers: list[int]) -> Any:
        given = out if isinstance(out, tuple | list) else (out,)
        if len(given) != len(self._outputs):
            raise UsageError(f"expected {len(self._outputs)} output arrays in out=; got {len(given)}.")
        for o, array in zip(self._outputs, given, strict=True):
            info = interop.require(array, o.name, o.shape, o.dtype, self._device, alignment=ALIGNMENT)
            if not info.writeable:
                raise UsageError(f"output {o.name!r}: expected a writeable array; got {info}. Pass a fresh one.")
            pointers.append(info.pointer)
        return out

    def _bind(self, key: tuple[int, ...]) -> Replay:
        """Pack the arguments for these pointers, and capture them if the plan runs as a graph."""
        stream, *pointers = key
        with driver.current_context(self._context):
            scratch = self._scratch.get(stream)
            if scratch is None:
                scratch = self._scratch[stream] = self._steps.scratch(self._intermediates, stream)
            launches = self._steps.bind(dict(zip(self._names, pointers, strict=True)), scratch)
            if len(launches) == 1:
                replay: Replay = launches[0]
            elif not self._graph:
                replay = _Sequence(launches)
            elif driver.is_capturing(stream):
                return _Sequence(launches)  # the caller captures a graph of his own: it takes the launches one by one
            else:
                replay = self._captured(launches)
        while len(self._replays) >= self._remembered:
            self._replays.popitem(last=False)
        self._replays[key] = replay
        return replay

    def _captured(self, launches: Sequence[driver.Launch]) -> Graph:
        """Return a graph of the launches: the least recently used one with new arguments if the memory of pointers is full."""
        if len(self._replays) >= self._remembered:
            _, oldest = self._replays.popitem(last=False)
            if isinstance(oldest, Graph) and oldest.update(launches, self._capture):
                return oldest
        return Graph(launches, self._capture)

    def _open(self, like: Any, arrays: Sequence[Any]) -> _Door:
        if arrays:
            self.check(arrays[0], 0)  # what is wrong with the array comes before what its library lacks
        door = self._doors[type(like)] = _Door(self, like)
        return door

    def check(self, array: Any, index: int) -> int:
        """Return the address of argument `index`; raises where its shape, dtype, device, layout or alignment is not right."""
        spec = self._inputs[index]
        info = interop.require(array, spec.name, spec.shape, spec.dtype, self._device, alignment=ALIGNMENT)
        owner = driver.pointer_device(info.pointer) if info.device == "cuda" and info.pointer else self.device_index
        if owner != self.device_index:
            place = "the host" if owner is None else f"GPU {owner}"
            raise UsageError(
                f"argument {spec.name!r}: expected memory of GPU {self.device_index}; its pointer belongs to {place}. Move the array there first."
            )
        return info.pointer


class _Sequence:
    """Launches one after the other on the same stream."""

    __slots__ = ("_launches",)

    def __init__(self, launches: Sequence[driver.Launch]) -> None:
        self._launches = tuple(launches)

    def __call__(self, stream: int) -> None:
        for launch in self._launches:
            launch(stream)


class _Door:
    """How to read, allocate and order arrays of one library: chosen once for each type of first argument."""

    __slots__ = ("allocate", "on_stream", "read", "stream")

    def __init__(self, runner: CudaRunner, like: Any) -> None:
        library = interop.library_of(like)
        index = runner.device_index
        program = runner.executable.plan.program
        self.stream = interop.stream_of(library, index)
        self.on_stream = interop.stream_scope(library)
        self.allocate = tuple(interop.allocator(like, o.shape, o.dtype, index) for o in program.outputs)
        specs = program.inputs
        quick = interop.quick_pointer(like, [(i.shape, i.dtype) for i in specs], index)

        def read(array: Any, i: int) -> int:
            pointer = quick(array, i)
            # anything unusual goes through the full check, which either explains what is wrong or accepts it
            return runner.check(array, i) if pointer is None or pointer % ALIGNMENT else pointer

        self.read = read


def stream_handle(stream: Any) -> int:
    """Return the handle of a stream given as an int, or as a PyTorch, CuPy or `__cuda_stream__` object."""
    if isinstance(stream, int):
        return stream
    for attribute in ("cuda_stream", "ptr"):
        value = getattr(stream, attribute, None)
        if value is not None:
            return int(value)
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int(protocol()[1])
    raise UsageError(
        f"expected a stream (an integer handle, or a PyTorch, CuPy or __cuda_stream__ object); got {type(stream).__name__}. "
        "Pass torch.cuda.current_stream() or cupy.cuda.get_current_stream()."
    )
