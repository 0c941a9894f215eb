"""The CUDA driver: contexts, binaries, tensor maps, packed launches, graphs, events, memory. Nothing else calls it.

`cuda.bindings` imports without a driver and fails at the first call, so the calls are guarded, not the import.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuda.bindings import driver as cu

from eqsat.codegen.cuda.limits import tensor_map_fields
from eqsat.codegen.kernel import Arg, BufferArg, KernelBinary, KernelSource, TensorMapArg
from eqsat.errors import EnvironmentMissingError, KernelFaultError, UsageError

# A kernel must opt in to more than 48 KiB of static and dynamic shared memory together; opting in to less costs nothing.
OPT_IN_BYTES = 16 * 1024
_VERSION_FILE = Path("/proc/driver/nvidia/version")
POISON = 0xFF  # as bytes: a NaN in every floating-point format, -1 in every integer

# After these the context is lost: every later call fails too, and only a new process is clean.
_STICKY = {
    "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_TIMEOUT", "CUDA_ERROR_ASSERT", "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_MISALIGNED_ADDRESS", "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_ECC_UNCORRECTABLE", "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK", "CUDA_ERROR_CONTAINED", "CUDA_ERROR_UNKNOWN", "CUDA_ERROR_MMU_FAULT",
}  # fmt: skip
_MISSING = {
    "CUDA_ERROR_NO_DEVICE": "make a GPU visible to this process (CUDA_VISIBLE_DEVICES may hide it), or use target='cpu'",
    "CUDA_ERROR_INVALID_DEVICE": "choose a device index that exists on this machine",
    "CUDA_ERROR_NOT_INITIALIZED": "check that the NVIDIA driver is loaded (nvidia-smi must list the GPU)",
    "CUDA_ERROR_STUB_LIBRARY": "a stub libcuda was found; put the real driver library first on the library path",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "reinstall the driver: its kernel module and its library differ in version",
    "CUDA_ERROR_SYSTEM_NOT_READY": "wait until the system's GPU services have started",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "install a driver that supports this GPU without the compatibility package",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "the GPU is held exclusively by another process; wait for it or choose another device",
    "CUDA_ERROR_OUT_OF_MEMORY": "free device memory (other processes use it too), or make the problem smaller",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "the driver is older than the compiler; load the cubin instead of the PTX",
}


class DriverFaultError(KernelFaultError):
    """A driver call failed; `code` is CUDA's name of the error, `sticky` whether the context is lost."""

    def __init__(self, code: str, doing: str) -> None:
        self.code, self.sticky = code, code in _STICKY
        after = "the context is lost: start a new process" if self.sticky else "the context is still usable"
        super().__init__(f"expected {doing} to succeed; the CUDA driver answered {code}; {after}.")


def _ok(result: tuple[Any, ...], doing: str) -> Any:
    """Return what a binding call returned besides its status; raise if the status is an error."""
    if int(result[0]) != 0:
        code = str(getattr(result[0], "name", result[0]))
        if code in _MISSING:
            raise EnvironmentMissingError(f"expected {doing} to succeed; the CUDA driver answered {code}; {_MISSING[code]}.")
        raise DriverFaultError(code, doing)
    return result[1] if len(result) == 2 else result[1:]


def _initialise() -> None:
    try:
        result = cu.cuInit(0)
    except (RuntimeError, OSError) as reason:  # cuda.bindings: no libcuda on this machine
        raise EnvironmentMissingError(
            "expected an NVIDIA driver (libcuda); looked for it through the system's library search and found none. "
            "Install the driver, or use target='cpu', or compile with measure=False."
        ) from reason
    _ok(result, "the start of the CUDA driver")


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What the driver says of a GPU; `clock_mhz` is the highest clock, `driver` the driver's release and CUDA version."""

    index: int
    name: str
    capability: tuple[int, int]
    processors: int
    clock_mhz: float
    l2_bytes: int
    memory_bytes: int
    driver: str

    @property
    def target(self) -> str:
        """The target name, such as "sm_90"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


def device_count() -> int:
    """Return the number of visible GPUs; 0 where there is no driver or no GPU."""
    try:
        _initialise()
        return int(_ok(cu.cuDeviceGetCount(), "counting the GPUs"))
    except EnvironmentMissingError:
        return 0


def device_info(index: int = 0) -> DeviceInfo:
    """Describe GPU `index`; raises EnvironmentMissingError where there is none."""
    _initialise()
    count = int(_ok(cu.cuDeviceGetCount(), "counting the GPUs"))
    if not 0 <= index < count:
        raise EnvironmentMissingError(
            f"expected a GPU with index {index}; this process sees {count}. Choose another index, or use target='cpu'."
        )
    device = _ok(cu.cuDeviceGet(index), f"opening GPU {index}")
    attribute = cu.CUdevice_attribute

    def ask(name: str) -> int:
        return int(_ok(cu.cuDeviceGetAttribute(getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), device), f"reading {name}"))

    version = int(_ok(cu.cuDriverGetVersion(), "reading the driver version"))
    raw = bytes(_ok(cu.cuDeviceGetName(128, device), "reading the GPU's name"))
    return DeviceInfo(
        index=index,
        name=raw.split(b"\0")[0].decode().strip(),
        capability=(ask("COMPUTE_CAPABILITY_MAJOR"), ask("COMPUTE_CAPABILITY_MINOR")),
        processors=ask("MULTIPROCESSOR_COUNT"),
        clock_mhz=ask("CLOCK_RATE") / 1000,
        l2_bytes=ask("L2_CACHE_SIZE"),
        memory_bytes=int(_ok(cu.cuDeviceTotalMem(device), "reading the GPU's memory size")),
        driver=f"{_release()}CUDA {version // 1000}.{version % 1000 // 10}",
    )


def _release() -> str:
    """Return the driver's release with a comma behind it, "" where the kernel does not tell."""
    try:
        found = re.search(r"\b\d{3,}(\.\d+)+\b", _VERSION_FILE.read_text(encoding="utf-8"))
    except OSError:
        return ""
    return f"{found[0]}, " if found else ""


def open_device(index: int) -> int:
    """Return the handle of GPU `index`'s primary context, the one that PyTorch and CuPy use; it is not made current.

    The context is retained for the life of the process: releasing it would pull it from under the caller's arrays.
    """
    device_info(index)
    device = _ok(cu.cuDeviceGet(index), f"opening GPU {index}")
    return int(_ok(cu.cuDevicePrimaryCtxRetain(device), f"retaining the context of GPU {index}"))


@contextmanager
def current_context(context: int) -> Iterator[None]:
    """Make a context that `open_device` returned current in this thread, and put the former one back afterwards."""
    former = _ok(cu.cuCtxGetCurrent(), "reading the current context")
    _ok(cu.cuCtxSetCurrent(context), "making the context current")
    try:
        yield
    finally:
        _ok(cu.cuCtxSetCurrent(former), "putting the former context back")


def memory_info() -> tuple[int, int]:
    """Return (free, total) bytes of the current device."""
    free, total = _ok(cu.cuMemGetInfo(), "reading the free device memory")
    return int(free), int(total)


def synchronize() -> None:
    """Wait for all work of the current context; raises DriverFaultError if any of it faulted."""
    _ok(cu.cuCtxSynchronize(), "the work on the GPU")


def wait_for(stream: int) -> None:
    """Wait for the work on a stream given by its handle; raises DriverFaultError if any of it faulted."""
    _ok(cu.cuStreamSynchronize(stream), "the work on the stream")


def pointer_device(pointer: int) -> int | None:
    """Return the index of the GPU that `pointer` belongs to, None if it is no device memory."""
    status, *value = cu.cuPointerGetAttribute(cu.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer)
    return int(value[0]) if int(status) == 0 else None


class Memory:
    """A block of device memory, freed with the object; `pointer` is 256-byte aligned (0 for an empty block)."""

    __slots__ = ("nbytes", "pointer")

    def __init__(self, nbytes: int) -> None:
        self.pointer, self.nbytes = 0, nbytes
        if nbytes:
            self.pointer = int(_ok(cu.cuMemAlloc(nbytes), f"the allocation of {nbytes:,} bytes of device memory"))

    def __del__(self) -> None:
        if getattr(self, "pointer", 0):  # at interpreter exit the driver is gone, and so is the memory
            cu.cuMemFree(self.pointer)


def fill(pointer: int, byte: int, nbytes: int, stream: int = 0) -> None:
    """Set `nbytes` bytes from `pointer` to `byte` on the stream (0 clears, POISON makes NaN)."""
    if nbytes:
        _ok(cu.cuMemsetD8Async(pointer, byte, nbytes, stream), "a fill of device memory")


def copy(to: int, origin: int, nbytes: int, stream: int = 0) -> None:
    """Copy `nbytes` bytes of device memory on the stream."""
    if nbytes:
        _ok(cu.cuMemcpyDtoDAsync(to, origin, nbytes, stream), "a copy within device memory")


def to_host(pointer: int, nbytes: int) -> bytes:
    """Return a copy of device memory; waits for the default stream only."""
    out = ctypes.create_string_buffer(nbytes)
    if nbytes:
        _ok(cu.cuMemcpyDtoH(ctypes.addressof(out), pointer, nbytes), "a copy from the GPU")
    return out.raw


class Stream:
    """A stream that does not wait for the legacy default stream; `handle` is what launches take."""

    __slots__ = ("_stream", "handle")

    def __init__(self) -> None:
        self._stream = _ok(cu.cuStreamCreate(int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)), "making a stream")
        self.handle = int(self._stream)

    def synchronize(self) -> None:
        """Wait for the stream; raises DriverFaultError if its work faulted."""
        wait_for(self.handle)

    def __del__(self) -> None:
        if getattr(self, "_stream", None) is not None:
            cu.cuStreamDestroy(self._stream)


def is_capturing(stream: int) -> bool:
    """Whether the stream is being captured into a graph."""
    status = _ok(cu.cuStreamIsCapturing(stream), "asking whether the stream is captured")
    return int(status) != 0


class Event:
    """A point on a stream with a time stamp (resolution 0.5 µs)."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = _ok(cu.cuEventCreate(int(cu.CUevent_flags.CU_EVENT_DEFAULT)), "making an event")

    def record(self, stream: int) -> None:
        """Put the event behind the stream's work so far."""
        _ok(cu.cuEventRecord(self._event, stream), "recording an event")

    def synchronize(self) -> None:
        """Wait until it was reached; raises DriverFaultError if work before it faulted."""
        _ok(cu.cuEventSynchronize(self._event), "the work before an event")

    def elapsed_ns(self, end: Event) -> float:
        """Return the time from this event to `end`, both reached."""
        return float(_ok(cu.cuEventElapsedTime(self._event, end._event), "reading a time span")) * 1e6

    def __del__(self) -> None:
        if getattr(self, "_event", None) is not None:
            cu.cuEventDestroy(self._event)


def encode_tensor_map(arg: TensorMapArg, pointer: int) -> bytes:
    """Return the 128 bytes of the tensor map over the buffer at `pointer`; elements outside the extents read as 0."""
    fields = tensor_map_fields(arg, pointer)
    wide, narrow = cu.cuuint64_t, cu.cuuint32_t
    made = _ok(
        cu.cuTensorMapEncodeTiled(
            getattr(cu.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{fields.data_type}"),
            len(fields.extents),
            pointer,
            [wide(n) for n in fields.extents],
            [wide(n) for n in fields.strides],
            [narrow(n) for n in fields.box],
            [narrow(1) for _ in fields.box],
            cu.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(cu.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{fields.swizzle}"),
            cu.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            cu.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ),
        f"the tensor map of {arg.name!r} {fields}",
    )
    return ctypes.string_at(made.getPtr(), 128)


class LoadedKernel:
    """A binary loaded into the current context, ready to be packed with pointers."""

    __slots__ = ("_image", "_module", "function", "source")

    def __init__(self, binary: KernelBinary) -> None:
        source = binary.source
        if source.language != "cuda":
            raise UsageError(
                f"expected a CUDA binary; got {source.language!r} for {source.entry!r}. Compile it for a GPU target."
            )
        self.source = source
        self._image = ctypes.create_string_buffer(binary.image, len(binary.image) + 1)
        self._module = _ok(cu.cuModuleLoadData(ctypes.addressof(self._image)), f"the load of {source.entry!r}")
        self.function = _ok(
            cu.cuModuleGetFunction(self._module, source.entry.encode()), f"finding {source.entry!r} in its binary"
        )
        attribute = cu.CUfunction_attribute
        if source.shared_bytes > OPT_IN_BYTES:
            self._set(attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, source.shared_bytes)
        if source.cluster > 8:  # beyond 8 CTAs a cluster is not portable and needs an opt-in
            self._set(attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)

    def _set(self, attribute: Any, value: int) -> None:
        _ok(
            cu.cuFuncSetAttribute(self.function, attribute, value),
            f"setting {attribute.name} = {value} for {self.source.entry!r}",
        )

    def __del__(self) -> None:
        if getattr(self, "_module", None) is not None:
            cu.cuModuleUnload(self._module)


def _cell(arg: Arg, pointers: Mapping[str, int], workspace: int) -> Any:
    if isinstance(arg, BufferArg):
        return ctypes.c_void_p(pointers[arg.name])
    if isinstance(arg, TensorMapArg):
        encoded = encode_tensor_map(arg, pointers[arg.name] if arg.name else workspace + arg.offset)
        return ctypes.create_string_buffer(encoded, len(encoded))
    return ctypes.c_void_p(workspace)


class Launch:
    """A kernel with its arguments packed once: a call is one driver call (about 4 µs) and allocates nothing.

    With `overlapping`, its blocks may come before the kernel in front of it on the stream has ended: programmatic stream
    serialization, for kernels that wait themselves (`begin_dependent`).
    """

    __slots__ = ("_cells", "_config", "_fixed", "_table", "kernel")

    def __init__(
        self, kernel: LoadedKernel, pointers: Mapping[str, int], workspace: int = 0, *, overlapping: bool = False
    ) -> None:
        source: KernelSource = kernel.source
        self.kernel = kernel
        self._cells = [_cell(a, pointers, workspace) for a in source.args]
        self._table = (ctypes.c_void_p * max(1, len(self._cells)))(*(ctypes.addressof(c) for c in self._cells))
        self._fixed = (kernel.function, *source.grid, source.block, 1, 1, source.shared_bytes), ctypes.addressof(self._table)
        self._config = _configuration(source, overlapping) if overlapping or source.cooperative else None

    def __call__(self, stream: int) -> None:
        """Launch on the stream with this handle."""
        head, table = self._fixed
        if self._config is None:
            result = cu.cuLaunchKernel(*head, stream, table, 0)
        else:
            self._config.hStream = cu.CUstream(stream)
            result = cu.cuLaunchKernelEx(self._config, self.kernel.function, table, 0)
        if int(result[0]) != 0:
            _ok(result, f"the launch of {self.kernel.source.entry!r}")


def _configuration(source: KernelSource, overlapping: bool) -> Any:
    """Return the launch configuration of a kernel that may begin before the one in front of it has ended, or waits for itself.

    A cooperative kernel does not overlap: all its blocks come at once.
    """
    attribute = cu.CUlaunchAttribute()
    if source.cooperative:
        attribute.id = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        attribute.value.cooperative = 1
    else:
        attribute.id = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
    config = cu.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = source.grid
    config.blockDimX, config.blockDimY, config.blockDimZ = source.block, 1, 1
    config.sharedMemBytes = source.shared_bytes
    config.attrs, config.numAttrs = [attribute], 1
    return config


class Graph:
    """Launches in sequence, captured into one CUDA graph.

    `update` puts other launches of the same kernels into the executable graph, far cheaper than a new one.
    """

    __slots__ = ("_executable", "_launches")

    def __init__(self, launches: Sequence[Launch], stream: Stream) -> None:
        self._launches: tuple[Launch, ...] = tuple(launches)
        graph = _captured(self._launches, stream)
        try:
            self._executable = _ok(cu.cuGraphInstantiate(graph, 0), f"making a graph of {len(self._launches)} launches")
        finally:
            cu.cuGraphDestroy(graph)

    def __len__(self) -> int:
        return len(self._launches)

    def update(self, launches: Sequence[Launch], stream: Stream) -> bool:
        """Replace the arguments by those of `launches`; False if the driver needs a new graph instead."""
        graph = _captured(tuple(launches), stream)
        try:
            done = int(cu.cuGraphExecUpdate(self._executable, graph)[0]) == 0
        finally:
            cu.cuGraphDestroy(graph)
        if done:
            self._launches = tuple(launches)
        return done

    def __call__(self, stream: int) -> None:
        """Launch the whole graph on the stream with this handle."""
        result = cu.cuGraphLaunch(self._executable, stream)
        if int(result[0]) != 0:
            _ok(result, "the launch of a graph")

    def __del__(self) -> None:
        if getattr(self, "_executable", None) is not None:
            cu.cuGraphExecDestroy(self._executable)


def _captured(launches: Iterable[Launch], stream: Stream) -> Any:
    mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL  # other threads may allocate meanwhile
    _ok(cu.cuStreamBeginCapture(stream.handle, mode), "the start of a capture")
    try:
        for launch in launches:
            launch(stream.handle)
    finally:
        captured = cu.cuStreamEndCapture(stream.handle)
    return _ok(captured, "the end of a capture")
