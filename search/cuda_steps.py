"""Kernels of a plan loaded on one GPU with their scratch memory; binding them to pointers gives launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eqsat.codegen.cuda.driver import Launch, LoadedKernel, Memory, fill, launch_geometry_error
from eqsat.codegen.kernel import BufferArg, KernelBinary, TensorMapArg, WorkspaceArg
from eqsat.codegen.plan import Executable
from eqsat.errors import IllegalScheduleError, UsageError
from eqsat.types import DType, TensorType


def buffer_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes of a dense buffer."""
    kind = DType.parse(dtype)
    return TensorType(tuple((f"{i:03d}", n) for i, n in enumerate(shape)), kind).elements * kind.bytes


def scratch_bytes(executable: Executable) -> dict[str, int]:
    """Return the bytes of each intermediate of a plan by name."""
    return {name: buffer_bytes(shape, dtype) for name, (shape, dtype) in executable.intermediates.items()}


class LoadedSteps:
    """The kernels of one plan (or one kernel alone), loaded into the current context once."""

    def __init__(self, binaries: Sequence[KernelBinary]) -> None:
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
            names = {a.name for a in kernel.source.args if isinstance(a, BufferArg | TensorMapArg)}
            if missing := sorted(names - known.keys()):
                raise UsageError(
                    f"kernel {kernel.source.entry!r} takes buffers {missing}; known are {sorted(known)}. "
                    "Emit it for this plan: a kernel's buffer names are the plan's."
                )
        pairs = zip(self.kernels, scratch.workspaces, strict=True)
        return tuple(Launch(kernel, known, workspace.pointer) for kernel, workspace in pairs)


class Scratch:
    """Device memory of a plan's intermediates and of each kernel's workspace."""

    def __init__(self, steps: LoadedSteps, intermediates: Mapping[str, int], stream: int) -> None:
        self.memory = {name: Memory(nbytes) for name, nbytes in intermediates.items()}
        self.workspaces = tuple(Memory(k.source.workspace_bytes) for k in steps.kernels)
        for kernel, workspace in zip(steps.kernels, self.workspaces, strict=True):
            if any(isinstance(a, WorkspaceArg) and a.zeroed for a in kernel.source.args):
                fill(workspace.pointer, 0, workspace.nbytes, stream)

    @property
    def pointers(self) -> dict[str, int]:
        """Address of each intermediate by name."""
        return {name: block.pointer for name, block in self.memory.items()}
