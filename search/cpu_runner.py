"""Run an executable on the CPU with the caller's arrays: NumPy in, NumPy out (PyTorch in, PyTorch out), a few µs a call."""

from __future__ import annotations

import ctypes
import sys
from threading import Lock
from typing import Any

import numpy as np

from eqsat.codegen.kernel import BufferArg
from eqsat.codegen.plan import Executable
from eqsat.errors import UsageError
from eqsat.search import arrays as interop
from eqsat.search.constants import Constants
from eqsat.search.cpu_steps import ALIGNMENT, LoadedSteps, Memory, Preparation, bytes_of


class CpuRunner:
    """An executable in this process: call it with arrays in the order of the program's inputs.

    Takes NumPy arrays, PyTorch tensors on the CPU, and anything with DLPack there; dense and row-major. Returns the output
    (a tuple if there are several) as NumPy arrays, or as tensors if the first argument is one. `out=` gives the arrays to
    write to.

    Notes
    -----
    Kernels are loaded and arguments packed once; a call checks its arrays, writes their addresses and jumps. Calls from
    several threads run one after the other, since they share the intermediates. What depends on inputs declared constant alone
    is computed at the first call with their arrays, and kept: see `Constants`.
    """

    def __init__(self, executable: Executable) -> None:
        self.executable = executable
        program = executable.plan.program
        self._inputs, self._outputs = program.inputs, program.outputs
        self._specs = [(i.shape, i.dtype.numpy) for i in program.inputs]
        self._made = [(o.shape, o.dtype.numpy, o.bytes) for o in program.outputs]
        names = [i.name for i in program.inputs] + [o.name for o in program.outputs]
        self._constants = self._prepared(names) if executable.plan.prepared else None
        names += executable.preparation.writes
        call = executable.call
        self._steps = LoadedSteps([s.binary for s in call.steps if not s.kernel.is_empty], bytes_of(call.intermediates))
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
        pointers = [self._read(a, i) for i, a in enumerate(arrays)]
        if out is not None:
            self._given(out, pointers)
            made = out
        elif arrays and type(arrays[0]) is not np.ndarray and interop.library_of(arrays[0]) == "torch":
            made = self._tensors(pointers)
        else:
            made = self._arrays(pointers)
        with self._lock:
            if self._constants is not None:
                pointers += [m.pointer for m in self._constants.of(arrays, pointers).values()]
            for args, at, which in self._slots:
                args[at] = pointers[which]
            for function, args in self._calls:
                function(args)
        return made

    def _prepared(self, names: list[str]) -> Constants[dict[str, Memory]]:
        """Return what remembers the buffers that are made of constant inputs once."""
        prepare = Preparation(self.executable)
        reads = list(prepare.reads)
        return Constants(reads, [names.index(n) for n in reads], lambda p: prepare({n: p[names.index(n)] for n in reads}))

    def _read(self, array: Any, i: int) -> int:
        """Return the address of argument i if it is plainly right; else the full check explains or accepts it."""
        shape, dtype = self._specs[i]
        if type(array) is np.ndarray and array.dtype == dtype and array.shape == shape:
            flags = array.flags
            if flags.c_contiguous and flags.aligned:
                return _address(array)
        spec = self._inputs[i]
        return interop.require(array, spec.name, shape, spec.dtype, interop.CPU).pointer

    def _arrays(self, pointers: list[int]) -> Any:
        made = []
        for shape, dtype, size in self._made:
            raw = np.empty(size + ALIGNMENT, dtype=np.uint8)
            address = _address(raw)
            start = -address % ALIGNMENT
            pointers.append(address + start)
            made.append(np.ndarray(shape, dtype, buffer=raw, offset=start))
        return made[0] if len(made) == 1 else tuple(made)

    def _given(self, out: Any, pointers: list[int]) -> None:
        given = out if isinstance(out, tuple | list) else (out,)
        if len(given) != len(self._outputs):
            raise UsageError(f"expected {len(self._outputs)} output arrays in out=; got {len(given)}.")
        for o, (shape, dtype, _), array in zip(self._outputs, self._made, given, strict=True):
            if type(array) is np.ndarray and array.dtype == dtype and array.shape == shape and array.flags.carray:
                pointers.append(_address(array))
                continue
            info = interop.require(array, o.name, o.shape, o.dtype, interop.CPU)
            if not info.writeable:
                raise UsageError(f"output {o.name!r}: expected a writeable array; got {info}. Pass a fresh one.")
            pointers.append(info.pointer)

    def _tensors(self, pointers: list[int]) -> Any:
        torch = sys.modules["torch"]  # optional dependency: there, since an argument is its tensor
        made = [torch.empty(o.shape, dtype=getattr(torch, o.dtype.numpy.name)) for o in self._outputs]
        pointers.extend(t.data_ptr() for t in made)
        return made[0] if len(made) == 1 else tuple(made)


def _fast_address(array: np.ndarray[Any, Any]) -> int:
    """Read the field `data` of the array object, which NumPy's C interface puts first (0.1 µs; `.ctypes.data` takes 0.8)."""
    return ctypes.c_void_p.from_address(id(array) + object.__basicsize__).value or 0


def _slow_address(array: np.ndarray[Any, Any]) -> int:
    return int(array.ctypes.data)


_PROBE = np.zeros(3, dtype=np.uint8)
_address = _fast_address if _fast_address(_PROBE[1:]) == _PROBE[1:].ctypes.data else _slow_address
