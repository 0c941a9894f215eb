"""A stand-in for CuPy on a machine without a GPU: NumPy arrays whose memory the stand-in for libcuda calls device memory."""

import contextlib
import ctypes
import types

import numpy

uint8, uint16, uint32, float32, float64 = numpy.uint8, numpy.uint16, numpy.uint32, numpy.float32, numpy.float64


class _Array(numpy.ndarray):
    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data, device_id=0)


def _ours(value):
    return value.view(_Array) if isinstance(value, numpy.ndarray) and not isinstance(value, _Array) else value


def __getattr__(name):
    found = getattr(numpy, name)
    if not callable(found) or isinstance(found, type):
        return found
    return lambda *args, **kwargs: _ours(found(*args, **kwargs))


def ndarray(shape, dtype, memory):
    size = int(numpy.prod(shape)) * numpy.dtype(dtype).itemsize
    raw = (ctypes.c_uint8 * max(1, size)).from_address(memory.pointer)
    return _ours(numpy.frombuffer(raw, numpy.uint8)[:size].view(dtype).reshape(shape))


class _Generator:
    def __init__(self, seed):
        self._own = numpy.random.default_rng(seed)

    def __getattr__(self, name):
        return lambda *args, **kwargs: _ours(numpy.asarray(getattr(self._own, name)(*args, **kwargs)))


random = types.SimpleNamespace(default_rng=_Generator)


class _Stream(contextlib.nullcontext):
    def __init__(self, handle):
        super().__init__()
        self.ptr = handle

    @classmethod
    def from_external(cls, stream):
        return cls(stream.__cuda_stream__()[1])

    def use(self):
        return self


class _Device:
    def __init__(self, index):
        self.index = index

    def use(self):
        return self


class _Pointer:
    def __init__(self, memory, offset):
        self.pointer = memory + offset


cuda = types.SimpleNamespace(
    Device=_Device, Stream=_Stream, MemoryPointer=_Pointer, UnownedMemory=lambda pointer, size, owner: pointer
)


def get_default_memory_pool():
    return types.SimpleNamespace(free_all_blocks=lambda: None)
