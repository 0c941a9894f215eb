"""What a launch and a tensor map may be, checked before the driver, which would only say "invalid value"."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eqsat.codegen.kernel import KernelSource, TensorMapArg
from eqsat.errors import UsageError
from eqsat.types import DType

# F32 tiles feed the TF32 tensor cores; the copy rounds to nearest, where the cores would truncate (twice the error).
_MAP_TYPES = {
    DType.BF16: "BFLOAT16", DType.F16: "FLOAT16", DType.F32: "TFLOAT32", DType.F64: "FLOAT64",
    DType.I32: "INT32", DType.I64: "INT64", DType.BOOL: "UINT8",
}  # fmt: skip
_SWIZZLES = {0: "NONE", 32: "32B", 64: "64B", 128: "128B"}


@dataclass(frozen=True, slots=True)
class TensorMapFields:
    """The arguments of cuTensorMapEncodeTiled, innermost dimension first, checked against its documented limits."""

    data_type: str
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: str


def tensor_map_fields(arg: TensorMapArg, pointer: int = 0) -> TensorMapFields:
    """Return the driver's view of a tensor map; raises UsageError where the hardware could not hold it.

    Notes
    -----
    Limits: CUDA driver API, cuTensorMapEncodeTiled. The driver itself only says CUDA_ERROR_INVALID_VALUE.
    """
    rank, size = len(arg.extents), arg.dtype.bytes
    wrong = [
        ("1 to 5 dimensions", not 1 <= rank <= 5, rank),
        ("a stride for each dimension but the innermost", len(arg.strides) != rank - 1, arg.strides),
        ("a box extent for each dimension", len(arg.box) != rank, arg.box),
        ("extents from 1 to 2^32", not all(1 <= n <= 2**32 for n in arg.extents), arg.extents),
        ("strides that are multiples of 16 bytes below 2^40", any(s % 16 or not 0 < s < 2**40 for s in arg.strides), arg.strides),
        ("box extents from 1 to 256", not all(1 <= n <= 256 for n in arg.box), arg.box),
        ("a swizzle of 0, 32, 64 or 128 bytes", arg.swizzle not in _SWIZZLES, arg.swizzle),
        ("an inner box of a multiple of 16 bytes", bool(arg.box) and arg.box[0] * size % 16 != 0, arg.box),
        ("an inner box no wider than the swizzle", bool(arg.swizzle and arg.box) and arg.box[0] * size > arg.swizzle, arg.box),
        ("a buffer aligned to 16 bytes", pointer % 16 != 0, hex(pointer)),
    ]
    for expected, failed, came in wrong:
        if failed:
            raise UsageError(
                f"tensor map of {arg.name!r}: expected {expected}; got {came}. Choose another schedule or copy the array."
            )
    return TensorMapFields(_MAP_TYPES[arg.dtype], arg.extents, arg.strides, arg.box, _SWIZZLES[arg.swizzle])


def launch_geometry_error(source: KernelSource) -> str | None:
    """Return why the driver would refuse the launch geometry of `source`, None if it would not."""
    x, y, z = source.grid
    if not (1 <= x < 2**31 and 1 <= y < 2**16 and 1 <= z < 2**16):
        return f"grid {source.grid} is outside (1..2^31-1, 1..65535, 1..65535)"
    if not 1 <= source.block <= 1024:
        return f"block {source.block} is outside 1..1024"
    if not 1 <= source.cluster <= 16 or math.prod(source.grid) % source.cluster:
        return f"cluster {source.cluster} does not divide the grid {source.grid}, or is outside 1..16"
    return None
