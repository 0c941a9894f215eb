"""Run an executable on the CPU with the caller's arrays: NumPy in, NumPy out (PyTorch in, PyTorch out), a few µs a call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np

from eqsat.codegen.kernel import BufferArg
from eqsat.codegen.plan import Executable
from eqsat.errors import UsageError
from eqsat.search import arrays as interop
from eqsat.search.cpu_steps import ALIGNMENT, LoadedSteps, intermediate_bytes


class CpuRunner:
    """An executable in this process: call it with arrays in the order of the program's inputs.

    Takes NumPy arrays, PyTorch tensors on the CPU, and anything with DLPack there; dense and row-major. Returns the output
    (a tuple if there are several) as NumPy arrays, or as tensors if the first argument is one. `out=` gives the arrays to
    write to.

    Notes
    -----
    Kernels are loaded and arguments packed once; a call checks its arrays, writes their addresses and jumps. Calls from
    several threads run one after the other, since they share the intermediates.
    """

    def __init__(self, executable: Executable) -> None:
        self.executable = executable
        program = executable.plan.program
        self._inputs, self._outputs = program.inputs, program.outputs
        self._specs = [(i.shape, i.dtype.numpy) for i in program.inputs]
        self._makers = [_maker(o.shape, o.dtype.numpy) for o in program.outputs]
        steps = [s for s in executable.steps if s.kernel.program.outputs[0].bytes]
        self._steps = LoadedSteps([s.binary for s in steps], intermediate_bytes(executable))
        names = [i.name for i in program.inputs] + [o.name for o in program.outputs]
        packed = self._steps.bind(dict.fromkeys(names, 0))
        self._calls = [(k.function, args) for k, args in zip(self._steps.kernels, packed, strict=True)]
        self._slots = [
            (args, at, names.index(a.name))
            for k, args in zip(self._steps.kernels, packed, strict=True)
            for at, a in enumerate(k.args)
            if isinstance(a, BufferArg) and a.name in names
        ]
        self._lock = Lock()

    def __call__(self, *arrays: Any, out: Any = None) -> Any:
        """Run on `arrays`; return new arrays, or `out` if it is given."""
        if len(arrays) != len(self._specs):
            names = ", ".join(f"{i.name}: {i.dtype}{list(i.shape)}" for i in self._inputs)
            raise UsageError(f"expected {len(self._specs)} arguments ({names}); got {len(arrays)}.")
        pointers = []
        for i, array in enumerate(arrays):
            shape, dtype = self._specs[i]
            if type(array) is np.ndarray and array.dtype == dtype and array.shape == shape and array.flags.c_contiguous:
                pointers.append(array.ctypes.data)
            else:
                spec = self._inputs[i]
                pointers.append(interop.require(array, spec.name, shape, spec.dtype, interop.CPU).pointer)
        if out is not None:
            made = self._given(out, pointers)
        elif arrays and type(arrays[0]) is not np.ndarray and interop.library_of(arrays[0]) == "torch":
            made = self._tensors(pointers)
        else:
            made = [make() for make in self._makers]
            pointers.extend(array.ctypes.data for array in made)
        with self._lock:
            for args, at, which in self._slots:
                args[at] = pointers[which]
            for function, args in self._calls:
                function(args)
        if out is not None:
            return out
        return made[0] if len(made) == 1 else tuple(made)

    def _given(self, out: Any, pointers: list[int]) -> list[Any]:
        given = list(out) if isinstance(out, tuple | list) else [out]
        if len(given) != len(self._outputs):
            raise UsageError(f"expected {len(self._outputs)} output arrays in out=; got {len(given)}.")
        for o, array in zip(self._outputs, given, strict=True):
            info = interop.require(array, o.name, o.shape, o.dtype, interop.CPU)
            if not info.writeable:
                raise UsageError(f"output {o.name!r}: expected a writeable array; got {info}. Pass a fresh one.")
            pointers.append(info.pointer)
        return given

    def _tensors(self, pointers: list[int]) -> list[Any]:
        torch = sys.modules["torch"]  # optional dependency: there, since an argument is its tensor
        made = [torch.empty(o.shape, dtype=getattr(torch, o.dtype.numpy.name)) for o in self._outputs]
        pointers.extend(t.data_ptr() for t in made)
        return made


def _maker(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Callable[[], np.ndarray[Any, Any]]:
    """Return a function that makes a new array, aligned to a cache line."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize

    def make() -> np.ndarray[Any, Any]:
        raw = np.empty(size + ALIGNMENT, dtype=np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        return np.ndarray(shape, dtype, buffer=raw.data, offset=start)

    return make
