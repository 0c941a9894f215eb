"""Element types and tensor types: a tensor is a function of a set of named axes."""

from __future__ import annotations

import enum
import functools
import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from eqsat.errors import DTypeError, ShapeError


class DType(enum.Enum):
    """Element type of a tensor; the value is the short name used in text and on the command line."""

    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    I64 = "i64"
    I32 = "i32"
    BOOL = "bool"

    @classmethod
    def parse(cls, name: object) -> DType:
        """Return the dtype called `name` (a short name, a NumPy dtype or a DType)."""
        if isinstance(name, DType):
            return name
        text = str(name).removeprefix("torch.")
        text = _ALIASES.get(text, text)
        try:
            return cls(text)
        except ValueError:
            known = ", ".join(d.value for d in cls)
            raise DTypeError(f"expected a dtype out of {known}; got {name!r}. Cast the array to one of these first.") from None

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype that holds it (bfloat16 through ml_dtypes)."""
        return _NUMPY[self]

    @property
    def bytes(self) -> int:
        """Bytes of one element."""
        return _NUMPY[self].itemsize

    @property
    def is_float(self) -> bool:
        """Whether it is a floating-point type."""
        return self in _ROUNDOFF

    @property
    def roundoff(self) -> float:
        """Unit round-off u of the format: half the spacing at 1; 0 for integers and bool."""
        return _ROUNDOFF.get(self, 0.0)

    @property
    def accumulator(self) -> DType:
        """The type in which values of this type are computed: f32 for the 16-bit floats, itself otherwise."""
        return DType.F32 if self in (DType.F16, DType.BF16) else self

    def __str__(self) -> str:
        return self.value


_ALIASES = {
    "float64": "f64", "float32": "f32", "float16": "f16", "half": "f16", "bfloat16": "bf16", "double": "f64",
    "float": "f32", "int64": "i64", "int32": "i32", "bool_": "bool", "long": "i64", "int": "i64",
}  # fmt: skip
_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.F64: np.dtype(np.float64), DType.F32: np.dtype(np.float32), DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(ml_dtypes.bfloat16), DType.I64: np.dtype(np.int64), DType.I32: np.dtype(np.int32),
    DType.BOOL: np.dtype(np.bool_),
}  # fmt: skip
_ROUNDOFF = {DType.F64: 2.0**-53, DType.F32: 2.0**-24, DType.F16: 2.0**-11, DType.BF16: 2.0**-8}
_RANK = {DType.BOOL: 0, DType.I32: 1, DType.I64: 2, DType.F16: 3, DType.BF16: 3, DType.F32: 4, DType.F64: 5}


def promote(a: DType, b: DType) -> DType:
    """Return the type of an operation on `a` and `b`: the least that holds both (f16 with bf16 gives f32)."""
    if a is b:
        return a
    if {a, b} == {DType.F16, DType.BF16}:
        return DType.F32
    return max(a, b, key=_RANK.__getitem__)


@dataclass(frozen=True)
class TensorType:
    """Named axes with their extents, in sorted order of names, and the element type.

    Axes are a set: order is layout, and layout belongs to buffers, not to values.
    """

    axes: tuple[tuple[str, int], ...]
    dtype: DType

    def __post_init__(self) -> None:
        names = [name for name, _ in self.axes]
        if names != sorted(set(names)):
            raise ShapeError(f"axes of a type are distinct and sorted; got {names}")

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The set of axis names."""
        return frozenset(name for name, _ in self.axes)

    @property
    def extents(self) -> dict[str, int]:
        """Extent of each axis by name."""
        return dict(self.axes)

    @functools.cached_property
    def elements(self) -> int:
        """Number of elements: the product of all extents (exact; never wraps)."""
        return math.prod(extent for _, extent in self.axes)

    def __str__(self) -> str:
        return f"{self.dtype}[{' '.join(f'{name}={extent}' for name, extent in self.axes)}]"


def join_axes(types: tuple[TensorType, ...]) -> tuple[tuple[str, int], ...]:
    """Return the union of the axes of `types`; the same name with two extents is an error."""
    out: dict[str, int] = {}
    for t in types:
        for name, extent in t.axes:
            if out.setdefault(name, extent) != extent:
                raise ShapeError(
                    f"axis {name!r} has extent {out[name]} in one operand and {extent} in the other; give them the same extent or different axes."
                )
    return tuple(sorted(out.items()))
