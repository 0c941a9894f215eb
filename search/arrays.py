"""What a caller's array is: library, shape, dtype, device, pointer; and new arrays in the caller's library.

Reads PyTorch, CuPy, NumPy, DLPack and the CUDA array interface, and imports PyTorch and CuPy only where an array came from them.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from eqsat.errors import DTypeError, EnvironmentMissingError, ShapeError, UsageError
from eqsat.types import DType

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """A caller's array; `device` is "cpu" or "cuda:<index>", "cuda" where the array does not say which.

    `dtype` is None for `raw_dtype` names that eqsat has no type for. CuPy has no bfloat16 of its own: there it travels as
    uint16, and `require` takes uint16 where bf16 is expected.
    """

    library: str
    shape: tuple[int, ...]
    dtype: DType | None
    raw_dtype: str
    device: str
    pointer: int
    contiguous: bool
    writeable: bool = True

    def __str__(self) -> str:
        layout = "" if self.contiguous else ", not contiguous"
        return f"{self.raw_dtype}{list(self.shape)} on {self.device} ({self.library}{layout})"


def describe(array: Any) -> ArrayInfo:
    """Describe an array of any supported library; raises UsageError for anything else."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _describe_torch(array)
    if isinstance(array, np.ndarray):
        return _describe_numpy(array)
    if hasattr(array, "__cuda_array_interface__"):
        return _describe_interface(array)
    if hasattr(array, "__dlpack__"):
        return _describe_dlpack(array)
    raise UsageError(
        f"expected an array (NumPy, CuPy, PyTorch, or one with DLPack or __cuda_array_interface__); got {type(array).__name__}. "
        "Convert it first, for example with numpy.asarray."
    )


def library_of(array: Any) -> str:
    """Return the name of the top-level package that an array's type comes from."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return "torch"
    return type(array).__module__.partition(".")[0]


def _parse(name: str) -> DType | None:
    try:
        return DType.parse(name)
    except DTypeError:
        return None


def _describe_torch(array: Any) -> ArrayInfo:
    device = CPU if array.device.type == "cpu" else f"{array.device.type}:{array.device.index or 0}"
    raw = str(array.dtype).removeprefix("torch.")
    strided = str(array.layout) == "torch.strided"
    pointer = int(array.data_ptr()) if strided else 0
    return ArrayInfo("torch", tuple(array.shape), _parse(raw), raw, device, pointer, strided and bool(array.is_contiguous()))


def _describe_numpy(array: np.ndarray[Any, Any]) -> ArrayInfo:
    raw = array.dtype.name
    native = array.dtype.isnative and array.flags.aligned
    return ArrayInfo(
        "numpy", array.shape, _parse(raw) if native else None, raw if native else f"{array.dtype.str} (not native)", CPU,
        array.ctypes.data, bool(array.flags.c_contiguous), bool(array.flags.writeable),
    )  # fmt: skip


def _describe_interface(array: Any) -> ArrayInfo:
    interface = array.__cuda_array_interface__
    typestr, shape = str(interface["typestr"]), tuple(int(n) for n in interface["shape"])
    # ml_dtypes' bfloat16 has no letter in the protocol and shows as an opaque two-byte type
    raw = "bfloat16" if typestr[1:] == "V2" else np.dtype(typestr).name
    strides = interface.get("strides")
    item = int(typestr[2:])
    dense = strides is None or _is_dense(shape, tuple(int(s) for s in strides), item)
    index = getattr(getattr(array, "device", None), "id", None)
    device = "cuda" if index is None else f"cuda:{index}"
    pointer, readonly = interface["data"]
    return ArrayInfo(library_of(array), shape, _parse(raw), raw, device, int(pointer or 0), dense, not readonly)


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...], step: int) -> bool:
    """Whether `strides` are those of a row-major array whose elements are `step` apart."""
    if 0 in shape:
        return True
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return True


class _DLTensor(ctypes.Structure):
    """Layout of dlpack.h, version 0.8 (unversioned capsules)."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_DL_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
_DL_DEVICES = {1: "cpu", 2: "cuda", 3: "cpu", 13: "cuda"}  # 3 = pinned host memory, 13 = managed memory


def _describe_dlpack(array: Any) -> ArrayInfo:
    kind, index = array.__dlpack_device__()
    # -1: the producer must not wait on a stream for us; the launch is ordered on the caller's stream anyway
    capsule = array.__dlpack__(stream=-1) if kind == 2 else array.__dlpack__()
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(get(capsule, b"dltensor"))
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    dense = not tensor.strides or _is_dense(shape, tuple(tensor.strides[i] for i in range(tensor.ndim)), 1)
    code = _DL_CODES.get(tensor.code, f"type{tensor.code}_")
    raw = "bool" if code == "bool" else f"{code}{tensor.bits}" + (f"x{tensor.lanes}" if tensor.lanes > 1 else "")
    place = _DL_DEVICES.get(int(kind), f"device{int(kind)}")
    device = place if place == CPU else f"{place}:{index}"
    return ArrayInfo(library_of(array), shape, _parse(raw), raw, device, int(tensor.data or 0) + int(tensor.byte_offset), dense)


def require(array: Any, name: str, shape: Sequence[int], dtype: DType, device: str, *, alignment: int = 1) -> ArrayInfo:
    """Describe `array`, and refuse it unless it is just what a compiled kernel reads or writes.

    Parameters
    ----------
    array : object
    name : str
        The argument's name, for the message.
    shape, dtype, device
        What the kernel was compiled for; `device` is "cpu" or "cuda:<index>".
    alignment : int
        The least alignment of the first element, in bytes.

    Raises
    ------
    ShapeError, DTypeError, UsageError
        Saying what was expected and what came.
    """
    try:
        info = describe(array)
    except UsageError as reason:
        raise UsageError(f"argument {name!r}: {reason}") from None
    expected = f"{dtype}{list(shape)} on {device}"
    if info.shape != tuple(shape):
        raise ShapeError(
            f"argument {name!r}: expected {expected}; got shape {list(info.shape)}: {info}. Optimize again for this shape, or reshape it."
        )
    if not _dtype_fits(info, dtype):
        raise DTypeError(f"argument {name!r}: expected {expected}; got dtype {info.raw_dtype}: {info}. Cast it to {dtype} first.")
    if info.device != device and not (info.device == "cuda" and device.startswith("cuda")):
        raise UsageError(f"argument {name!r}: expected {expected}; got {info}. {_move_hint(device)}")
    if not info.contiguous:
        raise UsageError(f"argument {name!r}: expected {expected}, dense and row-major; got {info}. Make it contiguous first.")
    if info.pointer % alignment:
        raise UsageError(
            f"argument {name!r}: expected {expected}, aligned to {alignment} bytes; its first element is at {info.pointer:#x}. Copy it first."
        )
    return info


def _dtype_fits(info: ArrayInfo, dtype: DType) -> bool:
    if info.dtype is dtype:
        return True
    return dtype is DType.BF16 and info.raw_dtype == "uint16" and info.device != CPU


def _move_hint(device: str) -> str:
    if device == CPU:
        return "Copy it to the host first (x.cpu() or cupy.asnumpy(x))."
    return f"Move it to {device} first (x.to('{device}') or cupy.asarray(x))."


Allocate = Callable[[], tuple[Any, int]]


def allocator(like: Any, shape: tuple[int, ...], dtype: DType, device_index: int) -> Allocate:
    """Return a function that makes a new uninitialised output on GPU `device_index` and returns (array, pointer).

    `like` is the argument whose library decides; bf16 of CuPy comes in the dtype that the caller used for bf16 (uint16, or
    ml_dtypes' type where his CuPy knows it).
    """
    if library_of(like) == "torch":
        torch = sys.modules["torch"]
        kind = getattr(torch, dtype.numpy.name)
        place = torch.device("cuda", device_index)

        def make_torch() -> tuple[Any, int]:
            made = torch.empty(shape, dtype=kind, device=place)
            return made, made.data_ptr()

        return make_torch
    cupy = require_cupy("to hold the outputs of a kernel called with arrays that are not PyTorch's")
    raw = cupy_dtype(dtype, like)

    def make_cupy() -> tuple[Any, int]:
        with cupy.cuda.Device(device_index):
            made = cupy.empty(shape, raw)
        return made, made.data.ptr

    return make_cupy


def cupy_dtype(dtype: DType, like: Any = None) -> np.dtype[Any]:
    """Return the NumPy dtype under which CuPy holds `dtype`: uint16 for bf16, unless `like` has a bfloat16 dtype."""
    if dtype is not DType.BF16:
        return dtype.numpy
    own = getattr(like, "dtype", None)
    return dtype.numpy if str(own) == "bfloat16" else np.dtype(np.uint16)


def require_cupy(purpose: str) -> Any:
    """Import CuPy; raises EnvironmentMissingError saying what it is needed for."""
    try:
        return importlib.import_module("cupy")  # optional dependency: extra "cuda"
    except ImportError as reason:
        raise EnvironmentMissingError(
            f"expected the package cupy {purpose}; looked for it in {sys.prefix} and importing it failed: {reason}. "
            "Install it with: pip install 'eqsat[cuda]'."
        ) from reason


def stream_of(library: str, device_index: int) -> Callable[[], int]:
    """Return a function that gives the handle of the caller's current stream in `library` (the legacy default otherwise)."""
    if library == "torch":
        current = sys.modules["torch"].cuda.current_stream
        return lambda: int(current(device_index).cuda_stream)
    if library == "cupy":
        cupy_current = sys.modules["cupy"].cuda.get_current_stream
        return lambda: int(cupy_current().ptr)
    return lambda: 0


def stream_scope(library: str) -> Callable[[int], AbstractContextManager[Any]]:
    """Return a function that makes the stream with a given handle current in `library`, so that allocations belong to it."""
    if library == "torch":
        cuda = sys.modules["torch"].cuda
        return lambda handle: cast("AbstractContextManager[Any]", cuda.stream(cuda.ExternalStream(handle)))
    if library == "cupy":
        cupy = sys.modules["cupy"]
        return lambda handle: cast("AbstractContextManager[Any]", cupy_stream(cupy, handle))
    return lambda _: nullcontext()


@dataclass(frozen=True, slots=True)
class _Handle:
    """A stream of another library, as the CUDA stream protocol describes it (version 0)."""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def cupy_stream(cupy: Any, handle: int) -> Any:
    """Return CuPy's view of a stream; it holds no reference to it. CuPy before 14 knows handles, later ones the stream protocol."""
    adopt = getattr(cupy.cuda.Stream, "from_external", None)
    return cupy.cuda.ExternalStream(handle) if adopt is None else adopt(_Handle(handle))


def quick_pointer(
    like: Any, specs: Sequence[tuple[tuple[int, ...], DType]], device_index: int
) -> Callable[[Any, int], int | None]:
    """Return `f(array, i)`: the address of argument i if it is plainly right, None if `require` must look at it.

    It knows only arrays of the library of `like`, and costs well under 1 µs.
    """
    library = library_of(like)
    shapes = [shape for shape, _ in specs]
    if library == "torch":
        torch = sys.modules["torch"]
        dtypes = [getattr(torch, dtype.numpy.name) for _, dtype in specs]
        tensor, strided = torch.Tensor, torch.strided

        def torch_pointer(array: Any, i: int) -> int | None:
            if not isinstance(array, tensor) or array.dtype is not dtypes[i] or array.shape != shapes[i]:
                return None
            if array.layout is not strided or array.get_device() != device_index or not array.is_contiguous():
                return None
            return int(array.data_ptr())

        return torch_pointer
    if library == "cupy":
        raw = [cupy_dtype(dtype, like) for _, dtype in specs]
        kind = type(like)

        def cupy_pointer(array: Any, i: int) -> int | None:
            if type(array) is not kind or array.dtype != raw[i] or array.shape != shapes[i]:
                return None
            data = array.data
            return int(data.ptr) if array.flags.c_contiguous and data.device_id == device_index else None

        return cupy_pointer
    return lambda _array, _i: None
