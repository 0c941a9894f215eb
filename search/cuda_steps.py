"""Kernels of a plan loaded on one GPU with their scratch memory; binding them to pointers gives launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eqsat.codegen.cuda.driver import POISON, Launch, LoadedKernel, Memory, fill, to_host, wait_for
from eqsat.codegen.cuda.limits import launch_geometry_error
from eqsat.codegen.kernel import BufferArg, KernelBinary, TensorMapArg, WorkspaceArg
from eqsat.codegen.plan import Buffers, Executable
from eqsat.errors import IllegalScheduleError, UsageError
from eqsat.types import DType, TensorType

GUARD_BYTES = 256
_GUARD = 0xA5


def buffer_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes of a dense buffer."""
    kind = DType.parse(dtype)
    return TensorType(tuple((f"{i:03d}", n) for i, n in enumerate(shape)), kind).elements * kind.bytes


def bytes_of(buffers: Buffers) -> dict[str, int]:
    """Return the bytes of each buffer by name."""
    return {name: buffer_bytes(shape, dtype) for name, (shape, dtype) in buffers.items()}


class LoadedSteps:
    """The kernels of one plan (or one kernel alone), loaded into the current context once.

    Parameters
    ----------
    binaries : sequence of KernelBinary
    overlapped : bool
        Whether each kernel but the first may begin before the one in front of it has ended.
    """

    def __init__(self, binaries: Sequence[KernelBinary], *, overlapped: bool = False) -> None:
        self._overlapped = overlapped
        for binary in binaries:
            if refusal := launch_geometry_error(binary.source):
                raise IllegalScheduleError(f"kernel {binary.source.entry!r} cannot be launched: {refusal}")
        self.kernels = tuple(LoadedKernel(b) for b in binaries)

    def scratch(self, intermediates: Mapping[str, int], stream: int) -> Scratch:
        """Allocate intermediates and workspaces; two calls that may overlap in time need a scratch each."""
        return Scratch(self, intermediates, stream)

    def bind(self, pointers: Mapping[str, int], scratch: Scratch) -> tuple[Launch, ...]:
        """Pack every kernel's arguments; `pointers` holds the plan's inputs and outputs by name."""
        known = {**scratch.pointers, **pointers}
        for kernel in self.kernels:
            names = {a.name for a in kernel.source.args if isinstance(a, BufferArg | TensorMapArg) and a.name}
            if missing := sorted(names - known.keys()):
                raise UsageError(
                    f"kernel {kernel.source.entry!r} takes buffers {missing}; known are {sorted(known)}. "
                    "Emit it for this plan: a kernel's buffer names are the plan's."
                )
        pairs = zip(self.kernels, scratch.workspaces, strict=True)
        return tuple(
            Launch(kernel, known, workspace.pointer, overlapping=self._overlapped and n > 0)
            for n, (kernel, workspace) in enumerate(pairs)
        )


class Preparation:
    """The kernels of a plan that run once for given constants, loaded; `names` are the buffers that they leave."""

    def __init__(self, executable: Executable) -> None:
        part = executable.preparation
        self.reads = part.reads
        self._kept = bytes_of(part.writes)
        self.names = tuple(self._kept)
        self._own = bytes_of(part.intermediates)
        self._steps = LoadedSteps([s.binary for s in part.steps if not s.kernel.is_empty])

    def __call__(self, pointers: Mapping[str, int], stream: int) -> dict[str, Memory]:
        """Run on constants at `pointers`, on a stream, and wait for it; return the buffers in new memory."""
        kept = {name: Memory(nbytes) for name, nbytes in self._kept.items()}
        scratch = self._steps.scratch(self._own, stream)
        for launch in self._steps.bind({**pointers, **{name: m.pointer for name, m in kept.items()}}, scratch):
            launch(stream)
        wait_for(stream)  # the scratch memory ends here, and later calls may come on other streams
        return kept


class Scratch:
    """Device memory of a plan's intermediates and of each kernel's workspace, each followed by a guard band."""

    def __init__(self, steps: LoadedSteps, intermediates: Mapping[str, int], stream: int) -> None:
        self.memory = {name: Memory(nbytes + GUARD_BYTES) for name, nbytes in intermediates.items()}
        self.workspaces = tuple(
            Memory(k.source.workspace_bytes + GUARD_BYTES if k.source.workspace_bytes else 0) for k in steps.kernels
        )
        zeroed = [any(isinstance(a, WorkspaceArg) and a.zeroed for a in k.source.args) for k in steps.kernels]
        self._dirty = [*self.memory.values(), *(w for w, z in zip(self.workspaces, zeroed, strict=True) if not z)]
        for block in (*self.memory.values(), *self.workspaces):
            fill(block.pointer, 0, block.nbytes, stream)
            if block.nbytes:
                fill(block.pointer + block.nbytes - GUARD_BYTES, _GUARD, GUARD_BYTES, stream)

    @property
    def pointers(self) -> dict[str, int]:
        """Address of each intermediate by name."""
        return {name: block.pointer for name, block in self.memory.items()}

    def poison(self, stream: int) -> None:
        """Fill with NaN all that a run may not read before it wrote it (workspaces that a kernel leaves zeroed stay)."""
        for block in self._dirty:
            fill(block.pointer, POISON, max(0, block.nbytes - GUARD_BYTES), stream)

    def damaged(self) -> str | None:
        """Return which block was written beyond its end, None if none was."""
        named = [*self.memory.items(), *((f"the workspace of launch {i}", w) for i, w in enumerate(self.workspaces))]
        for name, block in named:
            if block.nbytes and set(to_host(block.pointer + block.nbytes - GUARD_BYTES, GUARD_BYTES)) != {_GUARD}:
                return name
        return None
