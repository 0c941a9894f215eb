"""Shared by the CUDA families: C types and literals, the statement printer with scopes, and the assembly of a source file."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eqsat.codegen.kernel import Arg, BufferArg, KernelSource, Schedule, WorkspaceArg
from eqsat.codegen.printer import print_call
from eqsat.errors import IllegalScheduleError
from eqsat.ir import Expr, Input, Program
from eqsat.types import DType

ENTRY = "eqsat_kernel"
STORED = {
    DType.F64: "double", DType.F32: "float", DType.F16: "f16", DType.BF16: "bf16", DType.I64: "i64", DType.I32: "int",
    DType.BOOL: "bool",
}  # fmt: skip


def stored_type(dtype: DType) -> str:
    """Return the C++ type of a buffer's elements."""
    return STORED[dtype]


def register_type(dtype: DType) -> str:
    """Return the C++ type of a value in registers: float for the 16-bit floats."""
    return STORED[dtype.accumulator]


def literal(e: Expr) -> str:
    """Print a constant so that it reads back to the same number of its register type."""
    value = e.attrs[0]
    if e.dtype is DType.BOOL:
        return "true" if value else "false"
    if not e.dtype.is_float:
        return f"{int(value)}ll" if e.dtype is DType.I64 else f"({int(value)})"
    double = e.dtype is DType.F64
    if math.isnan(value):
        return "(double)EQ_NAN" if double else "EQ_NAN"
    if math.isinf(value):
        text = "EQ_INF" if value > 0 else "-EQ_INF"
        return f"((double){text})" if double else f"({text})"
    text = repr(float(value)) if double else str(np.float32(value))
    text = text if any(c in text for c in ".en") else text + ".0"
    return f"({text if double else text + 'f'})"


@functools.cache
def part(name: str) -> str:
    """Return the text of a file beside this one (`prelude.cuh`, `math.cuh`, a template)."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@dataclass
class Scope:
    """A run of C statements that computes expressions, each once; an inner scope sees the values of the outer ones.

    Parameters
    ----------
    leaf : callable
        Returns the C expression of a node that is at hand (a loaded element, an accumulator), else None. It is asked before
        a node's operands are visited; constants need no leaf.
    prefix : str
        Names of new variables: `<prefix>0`, `<prefix>1`, …
    outer : Scope, optional
    takes : callable, optional
        Whether a node is to be computed in the outer scope (what does not vary here).
    call : callable, optional
        Another way to print one op; None for the usual one.
    """

    leaf: Callable[[Expr], str | None]
    prefix: str
    outer: Scope | None = None
    takes: Callable[[Expr], bool] = lambda _: False
    call: Callable[[Expr, Sequence[str]], str | None] = lambda _e, _o: None
    lines: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def value(self, e: Expr) -> str:
        """Return the C expression that holds `e`, after adding the statements that it still needs."""
        if (known := self.known(e)) is not None:
            return known
        if e.op == "const":
            return literal(e)
        if self.outer is not None and self.takes(e):
            return self.outer.value(e)
        at_hand = self.leaf(e)
        if at_hand is None:
            operands = [self.value(a) for a in e.args]
            at_hand = self.define(register_type(e.dtype), self.call(e, operands) or print_call(e, operands))
        self.names[e.digest] = at_hand
        return at_hand

    def known(self, e: Expr) -> str | None:
        """Return the C expression of a value computed before, here or outside."""
        if e.digest in self.names:
            return self.names[e.digest]
        return self.outer.known(e) if self.outer is not None else None

    def define(self, ctype: str, text: str) -> str:
        """Add a statement that names the value of the C expression `text`; return the name."""
        name = f"{self.prefix}{self.count}"
        self.count += 1
        self.lines.append(f"const {ctype} {name} = {text};")
        return name

    def take(self) -> list[str]:
        """Return the statements added since the last call, and forget them (their values stay known)."""
        lines, self.lines = self.lines, []
        return lines


def used_inputs(program: Program) -> tuple[Input, ...]:
    """Return the inputs that the program's outputs read, in the program's order: the kernel's parameters."""
    names = {e.attrs[0] for e in program.walk() if e.op == "read"}
    return tuple(i for i in program.inputs if i.name in names)


def parameter_names(program: Program) -> dict[str, str]:
    """Return the C parameter of each buffer: `in0`, `in1`, … (buffer names need not be C identifiers)."""
    return {i.name: f"in{n}" for n, i in enumerate(used_inputs(program))}


def output_names(program: Program) -> tuple[str, ...]:
    """Return the C parameter of each output, in order: `out`, or `out0`, `out1`, … if there are several."""
    return ("out",) if len(program.outputs) == 1 else tuple(f"out{n}" for n in range(len(program.outputs)))


def parameters(program: Program, workspace: str = "") -> str:
    """Print the kernel's parameter list: every input that is read, the outputs, and a workspace of C type `workspace`."""
    names = parameter_names(program)
    items = [f"const {stored_type(i.dtype)}* __restrict__ {names[i.name]}" for i in used_inputs(program)]
    pairs = zip(program.outputs, output_names(program), strict=True)
    items += [f"{stored_type(o.dtype)}* __restrict__ {name}" for o, name in pairs]
    items += [f"{workspace}* __restrict__ workspace"] if workspace else []
    return ", ".join(items)


def arguments(program: Program, workspace: bool = False) -> tuple[Arg, ...]:
    """Return the launch arguments that go with `parameters`; a workspace is zeroed once, and each launch leaves its counters at 0."""
    buffers: list[Arg] = [BufferArg(i.name) for i in used_inputs(program)]
    buffers += [BufferArg(o.name) for o in program.outputs]
    return (*buffers, WorkspaceArg(zeroed=True)) if workspace else tuple(buffers)


def describe(e: Expr) -> str:
    """Print an expression as an s-expression for the head of a source file."""
    match e.op:
        case "read":
            return f"{e.attrs[0]}[{' '.join(a or '.' for a in e.attrs[1])}]"
        case "const":
            return str(e.attrs[0])
        case "access":
            return f"(access {e.attrs[0]} {describe(e.args[0])})"
    words = [f"{e.op}:{e.dtype}" if e.op == "cast" else e.op, *map(str, e.attrs), *map(describe, e.args)]
    return f"({' '.join(words)})"


def head(program: Program, schedule: Schedule, family: str) -> str:
    """Print the comment that opens a source file: what it computes, over which buffers, with which schedule."""
    names = parameter_names(program)
    lines = [f"eqsat: {family} kernel, {schedule}"]
    lines += [f"  {names[i.name]} = {i.name}: {i.dtype}{list(i.shape)}" for i in used_inputs(program)]
    for out, name in zip(program.outputs, output_names(program), strict=True):
        lines.append(f"  {name} = {out.name}: {out.dtype}{list(out.shape)} over [{' '.join(a or '.' for a in out.axes)}]")
        text = describe(out.expr)
        lines.append(f"  {out.name} = {text if len(text) < 2000 else text[:2000] + ' …'}")
    return "".join(f"// {' '.join(line.split(chr(10)))}\n" for line in lines)


def refuse_illegal(why: str | None, schedule: Schedule) -> None:
    """Raise IllegalScheduleError if `why` names a reason."""
    if why is not None:
        raise IllegalScheduleError(f"expected a legal schedule; got {schedule}: {why}. Choose another point of the space.")


def _begin(body: str) -> str:
    """Put the wait for the kernels before it first in the kernel, unless the text says itself where it belongs."""
    if "begin_dependent()" in body:
        return body
    found, count = re.subn(rf"\b({ENTRY}\([^()]*\)\s*\{{)", r"\1\n  begin_dependent();", body, count=1)
    assert count == 1, f"no {ENTRY} in the text of a kernel"
    return found


def assemble(
    program: Program,
    schedule: Schedule,
    family: str,
    body: str,
    *,
    parts: Sequence[str] = ("prelude.cuh", "math.cuh"),
    constants: Sequence[str] = (),
    args: tuple[Arg, ...] | None = None,
    grid: tuple[int, int, int],
    block: int,
    cluster: int = 1,
    shared_bytes: int = 0,
    workspace_bytes: int = 0,
    requires: str = "",
    cooperative: bool = False,
) -> KernelSource:
    """Put a source together: head, constants, the named parts, the kernel's own text.

    Parameters
    ----------
    body : str
        The kernel and what belongs to it alone; its entry is `eqsat_kernel`. Before it reads memory that another kernel may
        have written, it waits (`begin_dependent`): where the text does not, that comes first.
    parts : sequence of str
        Files beside this module that come before the body, in order.
    constants : sequence of str
        Lines that come before everything but the head (macros that the parts read).
    args : tuple of Arg, optional
        By default the inputs that are read, then the outputs.
    """
    pieces = [head(program, schedule, family), *(f"{c}\n" for c in constants), *(part(p) for p in parts), _begin(body)]
    return KernelSource(
        "cuda",
        "\n".join(pieces),
        ENTRY,
        arguments(program, workspace_bytes > 0) if args is None else args,
        grid,
        block,
        cluster,
        shared_bytes,
        workspace_bytes,
        (),
        requires,
        cooperative,
    )
