"""Load compiled C kernels into this process and bind their arguments to memory."""

from __future__ import annotations

import _ctypes
import ctypes
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from eqsat.codegen.cpu.compiler import OPENMP
from eqsat.codegen.kernel import BufferArg, KernelBinary, WorkspaceArg
from eqsat.codegen.plan import Buffers, Executable
from eqsat.errors import EnvironmentMissingError, IllegalScheduleError
from eqsat.types import DType

ALIGNMENT = 64  # a cache line, and the widest vector

Clock = Callable[[], int]
Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Memory:
    """Aligned bytes; `pointer` is the address of the first."""

    __slots__ = ("_raw", "array", "pointer")

    def __init__(self, size: int, offset: int = 0) -> None:
        self._raw = np.empty(size + offset + ALIGNMENT, dtype=np.uint8)
        start = -self._raw.ctypes.data % ALIGNMENT + offset
        self.array = self._raw[start : start + size]
        self.pointer = int(self.array.ctypes.data)


class SharedObject:
    """A shared object loaded from its bytes; `close` unloads it."""

    def __init__(self, image: bytes) -> None:
        try:
            descriptor, path = tempfile.mkstemp(prefix="eqsat-", suffix=".so")
            with os.fdopen(descriptor, "wb") as file:
                file.write(image)
        except OSError as error:
            raise EnvironmentMissingError(
                f"expected to write a shared object to {tempfile.gettempdir()}; got {error}. Free some space there or set TMPDIR."
            ) from error
        try:
            self.library = ctypes.CDLL(path)
        except OSError as error:
            raise EnvironmentMissingError(
                f"expected to load a kernel from {path}; got {error}. If that folder forbids execution, set TMPDIR to another one."
            ) from error
        finally:
            os.unlink(path)  # noqa: PTH108 - the mapping keeps the contents

    def close(self) -> None:
        """Unload it; its functions must not be called any more."""
        _ctypes.dlclose(self.library._handle)


class LoadedKernel:
    """A kernel's entry, and what it takes."""

    def __init__(self, binary: KernelBinary) -> None:
        for arg in binary.source.args:
            if not isinstance(arg, BufferArg | WorkspaceArg):
                raise IllegalScheduleError(f"a C kernel takes buffers and a workspace; {binary.source.entry!r} takes {arg}.")
        self._object = SharedObject(binary.image)
        self.args, self.threaded = binary.source.args, OPENMP in binary.source.options
        self.workspace_bytes = binary.source.workspace_bytes
        try:
            self.function = getattr(self._object.library, binary.source.entry)
        except AttributeError:
            raise IllegalScheduleError(
                f"the shared object has no function {binary.source.entry!r}, the entry its source names."
            ) from None
        self.function.restype, self.function.argtypes = None, (ctypes.c_void_p,)
        self.address = ctypes.cast(self.function, ctypes.c_void_p).value or 0

    def bind(self, pointers: Mapping[str, int], workspace: int) -> ctypes.Array[ctypes.c_void_p]:
        """Return the argument array for buffers at `pointers`."""
        values = [pointers[a.name] if isinstance(a, BufferArg) else workspace for a in self.args]
        return (ctypes.c_void_p * max(1, len(values)))(*values)

    def close(self) -> None:
        """Unload the kernel; one with OpenMP stays, as its runtime's threads outlive each call and would lose their code."""
        if not self.threaded:
            self._object.close()


class LoadedSteps:
    """The kernels of a plan in order, with memory of their own for workspaces and intermediates.

    Parameters
    ----------
    binaries : sequence of KernelBinary
    intermediates : mapping of str to int
        Bytes of each buffer that is written and read inside the plan.
    """

    def __init__(self, binaries: Sequence[KernelBinary], intermediates: Mapping[str, int] | None = None) -> None:
        self.kernels = [LoadedKernel(b) for b in binaries]
        self._workspace = Memory(max((k.workspace_bytes for k in self.kernels), default=0))
        zeroed = [k for k in self.kernels if any(isinstance(a, WorkspaceArg) and a.zeroed for a in k.args)]
        self._zeroed = {id(k): Memory(k.workspace_bytes) for k in zeroed}  # it keeps its contents between calls: not shared
        for memory in self._zeroed.values():
            memory.array[...] = 0
        self.intermediates = {name: Memory(size) for name, size in (intermediates or {}).items()}

    @property
    def clock(self) -> Clock:
        """The clock to time them by: of this thread, which stands while another process has the core, unless they use more."""
        return time.perf_counter_ns if any(k.threaded for k in self.kernels) else time.thread_time_ns

    def workspace(self, kernel: LoadedKernel) -> int:
        """Return the address of a kernel's workspace."""
        return self._zeroed[id(kernel)].pointer if id(kernel) in self._zeroed else self._workspace.pointer

    def bind(self, pointers: Mapping[str, int]) -> list[ctypes.Array[ctypes.c_void_p]]:
        """Return the argument array of each kernel; `pointers` gives the program's inputs and outputs."""
        every = {**pointers, **{name: m.pointer for name, m in self.intermediates.items()}}
        return [k.bind(every, self.workspace(k)) for k in self.kernels]

    def run(self, pointers: Mapping[str, int]) -> None:
        """Run all kernels once."""
        for kernel, args in zip(self.kernels, self.bind(pointers), strict=True):
            kernel.function(args)

    def poison(self) -> None:
        """Fill intermediates and workspaces (but zeroed ones) with NaN, so that what was not written is seen."""
        for memory in (self._workspace, *self.intermediates.values()):
            memory.array[...] = 0xFF

    def close(self) -> None:
        """Unload all kernels."""
        for kernel in self.kernels:
            kernel.close()


def bytes_of(buffers: Buffers) -> dict[str, int]:
    """Return the bytes of each buffer."""
    return {name: math.prod(shape) * DType(dtype).bytes for name, (shape, dtype) in buffers.items()}


class Preparation:
    """The kernels of a plan that run once for given constants, loaded; `names` are the buffers that they leave."""

    def __init__(self, executable: Executable) -> None:
        part = executable.preparation
        self.reads = part.reads
        self._kept = bytes_of(part.writes)
        self.names = tuple(self._kept)
        self._steps = LoadedSteps([s.binary for s in part.steps if not s.kernel.is_empty], bytes_of(part.intermediates))

    def __call__(self, pointers: Mapping[str, int]) -> dict[str, Memory]:
        """Run on constants at `pointers`; return the buffers in new memory."""
        kept = {name: Memory(size) for name, size in self._kept.items()}
        self._steps.run({**pointers, **{name: m.pointer for name, m in kept.items()}})
        return kept
