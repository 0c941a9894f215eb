"""A plan: a DAG of kernels over buffers; and its executable form, with one compiled kernel for each node."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from eqsat.codegen.kernel import KernelBinary, Schedule
from eqsat.codegen.problem import Problem
from eqsat.errors import UsageError
from eqsat.ir import Program


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch: a kernel-sized program and the problem a family solves. Its input and output names are buffer names."""

    problem: Problem

    @property
    def program(self) -> Program:
        """The program that it computes."""
        return self.problem.program

    @property
    def writes(self) -> tuple[str, ...]:
        """Names of the buffers it writes: one for each output of its program."""
        return tuple(o.name for o in self.program.outputs)

    @property
    def name(self) -> str:
        """The names of the buffers it writes, in words."""
        return ", ".join(self.writes)

    @property
    def is_empty(self) -> bool:
        """Whether no buffer that it writes has any element: then there is nothing to launch."""
        return not any(o.bytes for o in self.program.outputs)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the buffers it reads."""
        return tuple(i.name for i in self.program.inputs)


@dataclass(frozen=True, slots=True)
class Plan:
    """Kernels in an order in which each buffer is written before it is read.

    `program` is the whole computation; buffers that are neither its inputs nor its outputs are intermediates. A buffer may be
    written by two kernels (one of several outputs that is at hand already), always with the same value.
    """

    program: Program
    kernels: tuple[Kernel, ...]

    def __post_init__(self) -> None:
        ready = {i.name for i in self.program.inputs}
        for k in self.kernels:
            if missing := set(k.reads) - ready:
                raise UsageError(f"kernel {k.name!r} reads {sorted(missing)}, which no earlier kernel writes")
            if overwritten := set(k.writes) & {*k.reads, *(i.name for i in self.program.inputs)}:
                raise UsageError(f"kernel {k.name!r} writes {sorted(overwritten)}, which it reads or the caller owns")
            ready.update(k.writes)
        if missing := {o.name for o in self.program.outputs} - ready:
            raise UsageError(f"no kernel writes {sorted(missing)}")

    @property
    def prepared(self) -> tuple[Kernel, ...]:
        """The kernels that read nothing but inputs declared constant, and what such kernels make: they run once, not in each call.

        A kernel that writes an output of the program is none of them, as each call gives a new array; nor is one whose buffer
        is written in each call as well.
        """
        shared = {o.name for o in self.program.outputs}
        while True:
            fixed = {i.name for i in self.program.inputs if i.constant}
            once, again = [], []
            for k in self.kernels:
                if set(k.reads) <= fixed and not set(k.writes) & shared:
                    once.append(k)
                    fixed.update(k.writes)
                else:
                    again.append(k)
            rewritten = {b for k in again for b in k.writes} - shared
            if not rewritten & fixed:
                return tuple(once)
            shared |= rewritten

    @property
    def digest(self) -> str:
        """SHA-256 over its kernels."""
        return hashlib.sha256("\n".join(k.program.digest + k.problem.family for k in self.kernels).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Step:
    """A kernel, the schedule chosen for it, and its binary."""

    kernel: Kernel
    schedule: Schedule
    binary: KernelBinary


Buffers = dict[str, tuple[tuple[int, ...], str]]  # shape and dtype name of each


@dataclass(frozen=True, slots=True)
class Part:
    """Some steps of an executable that run together.

    `reads` names the buffers that they find, `writes` those that they leave to others; `intermediates` are their own.
    """

    steps: tuple[Step, ...]
    reads: tuple[str, ...]
    writes: Buffers
    intermediates: Buffers


@dataclass(frozen=True, slots=True)
class Executable:
    """A plan with every kernel compiled: what is timed whole, run, saved and loaded.

    With `overlapped`, a kernel's blocks come to a GPU's idle multiprocessors before the kernel in front of it has ended (CUDA's
    programmatic dependent launch); they wait there for its results.
    """

    plan: Plan
    steps: tuple[Step, ...]
    overlapped: bool = False

    @property
    def intermediates(self) -> Buffers:
        """The buffers that are written and read inside the plan."""
        outer = {o.name for o in self.plan.program.outputs}
        return {name: what for name, what in _written(self.steps).items() if name not in outer}

    @property
    def preparation(self) -> Part:
        """The steps that run once for the constants of a caller; `writes` is what the calls read of them."""
        once = {k.writes for k in self.plan.prepared}
        later = {name for s in self.steps if s.kernel.writes not in once for name in s.kernel.reads}
        return _part(tuple(s for s in self.steps if s.kernel.writes in once), later)

    @property
    def call(self) -> Part:
        """The steps that run in each call."""
        once = {k.writes for k in self.plan.prepared}
        outer = {o.name for o in self.plan.program.outputs}
        return _part(tuple(s for s in self.steps if s.kernel.writes not in once), outer)


def _part(steps: tuple[Step, ...], wanted: set[str]) -> Part:
    made = _written(steps)
    reads = dict.fromkeys(name for s in steps for name in s.kernel.reads if name not in made)
    writes = {name: what for name, what in made.items() if name in wanted}
    return Part(steps, tuple(reads), writes, {name: what for name, what in made.items() if name not in wanted})


def _written(steps: tuple[Step, ...]) -> Buffers:
    return {o.name: (o.shape, o.dtype.value) for s in steps for o in s.kernel.program.outputs}
