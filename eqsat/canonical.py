"""The canonical form of a kernel-sized program: axes and buffers renamed in order of first visit, operands sorted.

Two kernels that differ only in names have one key, so their measurements are shared between plans, programs and runs.
"""

from __future__ import annotations

import hashlib

from eqsat.access import AccessMap, Index
from eqsat.ir import Expr, Program


def canonical_key(program: Program) -> str:
    """Return a SHA-256 that is equal for programs equal up to names of axes and inputs (and operand order of commutative ops)."""
    shapes: dict[str, str] = {}
    for out in program.outputs:
        for e in out.expr.walk():
            shapes[e.digest] = _shape(e, program, shapes)
    axes: dict[str, str] = {}
    inputs: dict[str, str] = {}
    lines: list[str] = []
    visited: dict[str, int] = {}

    def axis(name: str) -> str:
        return axes.setdefault(name, f"a{len(axes)}") if name else "."

    def visit(e: Expr) -> int:
        if e.digest in visited:
            return visited[e.digest]
        args = e.args
        if e.row.commutative:
            args = tuple(sorted(args, key=lambda a: shapes[a.digest]))
        if e.op == "read":
            name, read_axes = e.attrs
            attrs = f"{inputs.setdefault(name, f'b{len(inputs)}')} {' '.join(map(axis, read_axes))}"
        elif e.op == "access":
            mapping: AccessMap = e.attrs[0]
            by = {a: Index.axis(axis(a)) for a, _ in mapping.extents}
            entries = tuple((axis(a), x.substitute(by)) for a, x in mapping.entries)
            attrs = str(AccessMap(entries, tuple((axis(a), n) for a, n in mapping.extents)))
        else:
            attrs = " ".join(axis(a) if e.row.kind.value == "reduce" or e.op == "iota" else str(a) for a in e.attrs)
        children = " ".join(str(visit(a)) for a in args)
        extents = " ".join(sorted(f"{axis(a)}={n}" for a, n in e.type.axes))
        lines.append(f"{e.op} {attrs} ({children}) {e.dtype} {extents}")
        visited[e.digest] = len(lines) - 1
        return visited[e.digest]

    for out in program.outputs:
        layout = " ".join(map(axis, out.axes))
        root = visit(out.expr)
        lines.append(f"output {root} [{layout}] {out.dtype}")
    shapes_of = {i.name: f"{i.shape} {i.dtype}" for i in program.inputs}
    lines += [f"input {b} {shapes_of[name]}" for name, b in inputs.items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _shape(e: Expr, program: Program, known: dict[str, str]) -> str:
    """Digest a node without any names: the sort key of commutative operands."""
    extents = sorted(n for _, n in e.type.axes)
    if e.op == "read":
        order = {a: i for i, a in enumerate(a for a in program.outputs[0].axes if a)}
        detail = str([order.get(a, -1) for a in e.attrs[1]])
    else:
        detail = str(e.attrs[0]) if e.op == "const" else ""
    children = [known[a.digest] for a in e.args]
    if e.row.commutative:
        children.sort()
    return hashlib.sha256(f"{e.op}{extents}{e.dtype}{detail}{children}".encode()).hexdigest()
