"""Memory for inputs and outputs under test, poisoned, with guard bands around it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from eqsat.ops import Array
from eqsat.types import DType

_GUARD_BYTES = 256  # also keeps the alignment that vector loads and tensor maps need
_POISON = 0xFF  # all ones is a NaN in every float type, -1 in integers
_WRITE_GUARD = (0xA5, 0xA5)  # a number, which arithmetic on what lies outside an input does not give
_READ_GUARD = (0xFF, 0x7F)  # 0x7FFF, repeated: NaN in every float type, so that a read outside shows in the output


def held_dtype(xp: Any, dtype: DType) -> np.dtype:
    """Return the array dtype that holds `dtype` on `xp`: uint16 for bfloat16 on CuPy."""
    return np.dtype(np.uint16) if xp is not np and dtype is DType.BF16 else dtype.numpy


class GuardedBuffer:
    """Memory for one array with a guard band on either side.

    Parameters
    ----------
    shape, dtype
        Of the array.
    xp : module
    is_input : bool
        The bands hold NaN, so that reading them shows in the output; around an output they hold a number.

    Attributes
    ----------
    array : array
        The usable part, aligned to 64 bytes (256 on CUDA), in the dtype that holds the element type.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DType, xp: Any = np, *, is_input: bool = False) -> None:
        self._guard = _READ_GUARD if is_input else _WRITE_GUARD
        held = held_dtype(xp, dtype)
        size = math.prod(shape) * held.itemsize
        raw = xp.empty(size + 2 * _GUARD_BYTES + 64, dtype=np.uint8)
        start = _GUARD_BYTES + (-raw.ctypes.data % 64 if xp is np else 0)
        self._before, self._inside = raw[start - _GUARD_BYTES : start], raw[start : start + size]
        self._after = raw[start + size : start + size + _GUARD_BYTES]
        for band in (self._before, self._after):
            band[0::2], band[1::2] = self._guard
        self.array = self._inside.view(held).reshape(shape)
        self.poison()

    def poison(self) -> None:
        """Fill the array with NaN (-1 in integers), so that an element not written is seen."""
        self._inside[...] = _POISON

    def fill(self, source: Array) -> None:
        """Copy an array of the same dtype and shape into it."""
        self.array[...] = source

    @property
    def intact(self) -> bool:
        """Whether nothing was written outside the array."""
        bands = (self._before, self._after)
        return all(bool((band[i::2] == byte).all()) for band in bands for i, byte in enumerate(self._guard))

    def equals(self, source: Array) -> bool:
        """Whether it holds the bits of `source`."""
        return bool((self._inside == source.reshape(-1).view(np.uint8)).all())
