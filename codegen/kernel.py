"""What passes between a family, the compilers and the devices: schedules, sources, binaries."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from eqsat.codegen.problem import Problem
from eqsat.types import DType

if TYPE_CHECKING:
    from eqsat.codegen.targets import Target


@dataclass(frozen=True, slots=True)
class Schedule:
    """Base of the schedule points: frozen integers, one class for each kernel template.

    The class name is the constructor's name in `rules/schedule-*.egg`; the fields are its arguments after the space's key,
    in the same order.
    """

    def __str__(self) -> str:
        knobs = " ".join(f"{f.name}={getattr(self, f.name)}" for f in dataclasses.fields(self))
        return f"{type(self).__name__} {knobs}"


@dataclass(frozen=True, slots=True)
class BufferArg:
    """A pointer to the buffer called `name` (an input, or the output)."""

    name: str


@dataclass(frozen=True, slots=True)
class TensorMapArg:
    """A Hopper tensor map over a buffer seen as dense 2-D or 3-D (innermost extent first).

    `extents` in elements; `strides` in bytes for all dimensions but the innermost; `box` in elements;
    `swizzle` in bytes: 0, 32, 64 or 128. With no name it is over the kernel's own workspace, from the byte `offset` on.
    """

    name: str
    dtype: DType
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class WorkspaceArg:
    """A pointer to scratch memory of `KernelSource.workspace_bytes` bytes (zeroed once if `zeroed`)."""

    zeroed: bool = False


Arg = BufferArg | TensorMapArg | WorkspaceArg


@dataclass(frozen=True, slots=True)
class KernelSource:
    """Self-contained source text of one kernel and all that a launch needs besides the arrays.

    CUDA: `grid`, `block`, `cluster`, `shared_bytes`. C: one function `void entry(void **args)`; the geometry is unused.
    `requires` names the least architecture ("sm_90a" for wgmma), "" if any serves; `cooperative` asks for all blocks to be
    resident at once, since they wait for each other.
    """

    language: Literal["cuda", "c"]
    text: str
    entry: str
    args: tuple[Arg, ...]
    grid: tuple[int, int, int] = (1, 1, 1)
    block: int = 1
    cluster: int = 1
    shared_bytes: int = 0
    workspace_bytes: int = 0
    options: tuple[str, ...] = ()
    requires: str = ""
    cooperative: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the text and the launch description."""
        rest = (self.entry, self.args, self.grid, self.block, self.cluster, self.shared_bytes, self.workspace_bytes, self.options)
        together = " cooperative" if self.cooperative else ""
        return hashlib.sha256(f"{self.text}\n{rest}{together}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Resources:
    """What the compiler reports of a kernel."""

    registers: int = 0
    stack_bytes: int = 0
    spill_bytes: int = 0
    shared_bytes: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelBinary:
    """A compiled kernel: cubin (and PTX) for CUDA, a shared object for the CPU."""

    source: KernelSource
    image: bytes = field(repr=False)
    compiler: str
    resources: Resources = Resources()
    ptx: str = field(default="", repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the binary image."""
        return hashlib.sha256(self.image).hexdigest()


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured (or data-sheet) ceilings of a device: the basis of every lower bound.

    `read` and `copy` in bytes per ns (= GB/s); `flops` in operations per ns (= GFLOP/s) for a multiply-add path by name
    ("f32", "bf16", "tf32", …); `issue` in bytes per ns that loads can bring to registers from the nearest cache;
    `launch_ns` the least time of a kernel that does nothing useful; `empirical` says whether they were measured here;
    `cores` that share a kernel whose schedule asks for all of them (the other figures are then of one core);
    `cache_bytes` the bytes that may still be in the last-level cache from the call before (0: unknown, so bounds assume
    everything is); `cached` the bytes per ns that come from there when the nearer caches hold something else (0: unknown, so
    bounds assume `issue`).
    """

    read: float
    copy: float
    flops: tuple[tuple[str, float], ...]
    issue: float
    launch_ns: float
    empirical: bool = False
    cache_bytes: int = 0
    cores: int = 1
    cached: float = 0.0

    def rate(self, path: str) -> float:
        """Return the arithmetic rate of `path` (GFLOP/s); the f32 rate if the path is unknown."""
        table = dict(self.flops)
        return table.get(path, table["f32"])


class Family(Protocol):
    """A kernel template on one kind of target: legality, text, and an admissible lower bound.

    `schedules` are the schedule classes it emits.
    """

    name: str
    schedules: tuple[type[Schedule], ...]

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None if it can."""
        ...

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source; raises IllegalScheduleError if `legal` objects."""
        ...

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return a time that no kernel of this family can beat on a device with these rates."""
        ...

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return the time a model expects of a schedule: the order in which schedules are tried, and the choice without a device."""
        ...

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target (wgmma needs sm_90)."""
        ...
