"""Put a kernel's text together: a head that says what it is, the prelude it needs, the kernel, and the entry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eqsat.codegen.cpu.loops import loop
from eqsat.codegen.cpu.prelude import prelude
from eqsat.codegen.cpu.vector import ELEMENT, STORAGE, Printer
from eqsat.codegen.kernel import BufferArg, KernelSource, Schedule, WorkspaceArg
from eqsat.ir import Expr, Program

ENTRY = "eqsat_kernel"
COMPILERS = ("", "gcc", "zig")  # by the number in a schedule's field `compiler`; "" leaves the choice to the device


def assemble(
    printer: Printer,
    schedule: Schedule,
    body: Sequence[str],
    *,
    mask_bits: int,
    threads: int,
    compiler: int,
    functions: Sequence[str] = (),
    workspace_bytes: int = 0,
) -> KernelSource:
    """Return the kernel: `body` is the inside of the kernel function, `functions` are lines that go before it."""
    program = printer.program
    parameters = signature(printer, workspace=bool(workspace_bytes))
    call = [f"args[{i}]" for i in range(len(parameters))]
    kernel = [
        *functions,
        *loop(f"static void kernel({', '.join(parameters)})", body),
        f"void {ENTRY}(void **args) {{ kernel({', '.join(call)}); }}",
    ]
    text = "\n".join(kernel)
    head = "\n".join(f"   {line}" for line in _head(program, schedule))
    options = ["-fno-math-errno"]
    options += ["-fopenmp"] if threads != 1 else []
    options += [f"compiler={COMPILERS[compiler]}"] if compiler else []
    args: list[BufferArg | WorkspaceArg] = [BufferArg(i.name) for i in program.inputs]
    args += [BufferArg(o.name) for o in program.outputs]
    args += [WorkspaceArg()] if workspace_bytes else []
    return KernelSource(
        "c",
        f"/* eqsat CPU kernel\n{head}\n*/\n{prelude(text, printer.width, mask_bits)}\n\n{text}\n",
        ENTRY,
        tuple(args),
        workspace_bytes=workspace_bytes,
        options=tuple(options),
    )


def signature(printer: Printer, *, workspace: bool = False) -> list[str]:
    """Return the parameters of the kernel function: inputs, outputs, and scratch memory where there is some."""
    program = printer.program
    out = [f"const {ELEMENT[STORAGE[i.dtype]]} *restrict {printer.pointers[i.name]}" for i in program.inputs]
    out += [f"{ELEMENT[STORAGE[o.dtype]]} *restrict {printer.outs[o.name]}" for o in program.outputs]
    return [*out, "char *restrict workspace"] if workspace else out


def _head(program: Program, schedule: Schedule) -> Iterator[str]:
    """Say what the kernel computes and how: one line for each value that is used more than once or reduced."""
    for i in program.inputs:
        yield f"{i.name}: {i.dtype}{list(i.shape)}"
    named: dict[str, str] = {}
    uses: dict[str, int] = {}
    count = 0
    for e in program.walk():
        for a in e.args:
            uses[a.digest] = uses.get(a.digest, 0) + 1
    for e in program.walk():
        text = _node(e, named)
        if (uses.get(e.digest, 0) > 1 and e.args) or len(text) > 90:
            yield f"v{count} = {text}"
            text, count = f"v{count}", count + 1
        named[e.digest] = text
    for o in program.outputs:
        yield f"{o.name}: {o.dtype}{list(o.axes)} = {named[o.expr.digest]}"
    yield f"schedule: {schedule}"


def _node(e: Expr, named: dict[str, str]) -> str:
    args = [named[a.digest] for a in e.args]
    if e.op == "read":
        text = f"{e.attrs[0]}[{' '.join(a or '.' for a in e.attrs[1])}]"
    elif e.op == "const":
        text = str(e.attrs[0])
    else:
        attrs = [str(e.dtype)] if e.op == "cast" else [str(a) for a in e.attrs]
        text = f"{e.op}({', '.join(attrs + args)})"
    return text.replace("*/", "* /").replace("/*", "/ *")
