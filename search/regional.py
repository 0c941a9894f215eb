"""A plan for a whole program out of plans for its regions: buffers called as outside, equal kernels compiled once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from eqsat.codegen.kernel import Arg, KernelBinary, KernelSource, WorkspaceArg
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.ir import Expr, Input, Output, Program, read, rebuild
from eqsat.regions import Partition, Region
from eqsat.search.bundle import find_problem
from eqsat.search.schedules import family_of

Compile = Callable[[KernelSource], KernelBinary]


def assemble(partition: Partition, made: Mapping[str, Executable], compile_source: Compile) -> Executable:
    """Return the executable of a whole program.

    Parameters
    ----------
    partition : Partition
    made : mapping of str to Executable
        By digest of the region's program.
    compile_source : callable
        Compiles a kernel whose text differs in more than names from the region's own.
    """
    taken = {i.name for i in partition.program.inputs} | {name for r in partition.regions for name in r.outputs}
    steps: list[Step] = []
    for n, region in enumerate(partition.regions):
        part = made[region.program.digest]
        names = _outer_names(region, part, f"r{n}_", taken)
        steps += [renamed_step(s, names, compile_source) for s in part.steps]
    return Executable(Plan(partition.program, tuple(s.kernel for s in steps)), tuple(steps))


def _outer_names(region: Region, part: Executable, stem: str, taken: set[str]) -> dict[str, str]:
    """Return the name outside of every buffer of a region's plan, and note the new ones."""
    names = dict(zip((i.name for i in region.program.inputs), region.inputs, strict=True))
    names |= dict(zip((o.name for o in region.program.outputs), region.outputs, strict=True))
    for inner in part.intermediates:
        name = stem + inner
        while name in taken:
            name = f"{name}_"
        taken.add(name)
        names[inner] = name
    return names


def renamed_step(step: Step, names: Mapping[str, str], compile_source: Compile) -> Step:
    """Return a kernel over buffers of other names; it is compiled again only if that changes more than names in its source."""
    problem = find_problem(renamed(step.kernel.program, names), step.kernel.problem.family)
    source = family_of(step.schedule).emit(problem, step.schedule)
    old = step.binary.source
    args = tuple(_renamed_arg(a, names) for a in old.args)
    same = dataclasses.replace(source, text="") == dataclasses.replace(old, text="", args=args)
    if same and _skeleton(source.text, tuple(names.values())) == _skeleton(old.text, tuple(names)):
        binary = dataclasses.replace(step.binary, source=source)
    else:
        binary = compile_source(source)
    return Step(Kernel(problem), step.schedule, binary)


def renamed(program: Program, names: Mapping[str, str]) -> Program:
    """Return a kernel's program over buffers of other names."""
    memo: dict[str, Expr] = {}
    for e in program.walk():
        if e.op == "read":
            extents = e.type.extents
            shape = tuple(extents[a] if a else 1 for a in e.attrs[1])
            memo[e.digest] = read(names[e.attrs[0]], e.attrs[1], shape, e.dtype)
        else:
            memo[e.digest] = rebuild(e, tuple(memo[a.digest] for a in e.args))
    inputs = tuple(Input(names[i.name], i.shape, i.dtype, i.constant) for i in program.inputs)
    outputs = tuple(Output(names[o.name], memo[o.expr.digest], o.axes, o.dtype) for o in program.outputs)
    return Program(inputs, outputs)


def _renamed_arg(arg: Arg, names: Mapping[str, str]) -> Arg:
    return arg if isinstance(arg, WorkspaceArg) else dataclasses.replace(arg, name=names[arg.name])


def _skeleton(text: str, names: Sequence[str]) -> str:
    """Return source text without comments, the buffers in its identifiers by number."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    number = {name: str(n) for n, name in enumerate(names)}
    if not number:
        return code
    known = "|".join(sorted(map(re.escape, number), key=len, reverse=True))
    return re.sub(rf"(?<=_)({known})\b", lambda found: f"#{number[found[1]]}", code)
