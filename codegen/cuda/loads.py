"""How a kernel's loads meet its loops: strides over loop axes, joining of axes, vector access or not, and the C of offsets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from eqsat.access import Index
from eqsat.codegen.cuda.emit import parameter_names, register_type, stored_type
from eqsat.codegen.printer import is_load, print_guard, print_offset, read_indices, strides
from eqsat.ir import Expr, Input, Program
from eqsat.types import DType

INT_LIMIT = 2**31


@dataclass(frozen=True, slots=True)
class LoopAxis:
    """One loop over one or more axes that every access steps through as if they were one; `var` is its C variable."""

    var: str
    axes: tuple[str, ...]
    extent: int


@dataclass(frozen=True, slots=True)
class Load:
    """A read of a buffer inside a kernel.

    `steps` are element strides by axis, or None where the index is not affine; `guard_axes` are the axes that decide
    whether the read is inside its buffer (outside it is 0).
    """

    expr: Expr
    buffer: Input
    parameter: str
    steps: tuple[tuple[str, int], ...] | None
    offset: int
    guard_axes: frozenset[str]

    @property
    def dtype(self) -> DType:
        """Stored element type."""
        return self.buffer.dtype

    @property
    def axes(self) -> frozenset[str]:
        """Axes on which address or guard depend."""
        return self.expr.axes

    @property
    def pinned(self) -> frozenset[str]:
        """Axes that must stay loops of their own: those of the guard, and all where the index is not affine."""
        return self.guard_axes if self.steps is not None else self.expr.axes

    def step(self, axis: str) -> int:
        """Return the element stride along `axis` of an affine load (0 if it does not vary)."""
        return dict(self.steps or ()).get(axis, 0)


def find_loads(program: Program) -> dict[str, Load]:
    """Return every load of the program's outputs by the digest of its node (the outermost: an access hides its read)."""
    names = parameter_names(program)
    buffers = {i.name: i for i in program.inputs}
    found: dict[str, Load] = {}
    stack = [o.expr for o in program.outputs]
    seen: set[str] = set()
    while stack:
        e = stack.pop()
        if e.digest in seen:
            continue
        seen.add(e.digest)
        if not is_load(e):
            stack.extend(e.args)
            continue
        name, indices = read_indices(e)
        extents = dict(e.type.axes) | (dict(e.attrs[0].extents) if e.op == "access" else {})
        found[e.digest] = _load(e, buffers[name], names[name], tuple(i.simplify(extents) for i in indices), extents)
    return dict(sorted(found.items(), key=lambda item: (item[1].parameter, item[0])))


def _load(e: Expr, buffer: Input, parameter: str, indices: tuple[Index, ...], extents: Mapping[str, int]) -> Load:
    steps: dict[str, int] | None = {}
    offset = 0
    guard: set[str] = set()
    for index, extent, stride in zip(indices, buffer.shape, strides(buffer.shape), strict=True):
        low, high = index.bounds(extents)
        if e.op == "access" and (low < 0 or high >= extent):
            guard |= index.axes
        part = affine(index)
        if part is None or steps is None:
            steps = None
            continue
        offset += part[1] * stride
        for axis, factor in part[0].items():
            steps[axis] = steps.get(axis, 0) + factor * stride
    found = None if steps is None else tuple(sorted((a, s) for a, s in steps.items() if s and extents[a] > 1))
    return Load(e, buffer, parameter, found, offset, frozenset(guard))


def affine(index: Index) -> tuple[dict[str, int], int] | None:
    """Return (coefficient of each axis, constant) of an index expression, or None if it divides."""
    match index.op:
        case "axis":
            return {index.name: 1}, 0
        case "const":
            return {}, index.value
        case "add" | "mul":
            parts = [affine(a) for a in index.args]
            factor = index.value if index.op == "mul" else 1
            total: dict[str, int] = {}
            constant = 0
            for p in parts:
                if p is None:
                    return None
                constant += p[1] * factor
                for a, c in p[0].items():
                    total[a] = total.get(a, 0) + c * factor
            return total, constant
        case _:
            return None


def row_major(axes: Sequence[str], extents: Mapping[str, int]) -> dict[str, int]:
    """Return element strides of a dense buffer over `axes`, outermost first."""
    named = [a for a in axes if a]
    return dict(zip(named, strides([extents[a] for a in named]), strict=True))


def join_axes(
    order: Sequence[str], extents: Mapping[str, int], accesses: Sequence[Mapping[str, int]], pinned: frozenset[str], prefix: str
) -> tuple[LoopAxis, ...]:
    """Join neighbouring axes of `order` (outermost first) wherever every access steps evenly through both.

    Parameters
    ----------
    order : sequence of str
    extents : mapping
    accesses : sequence of mapping
        Element stride by axis for each affine access, the output's included.
    pinned : frozenset of str
        Axes that stay alone.
    prefix : str
        Names of the loop variables.

    Returns
    -------
    tuple of LoopAxis
        Outermost first; axes of extent 1 are left out unless pinned; at least one.
    """
    groups: list[list[str]] = []
    for axis in order:
        if extents[axis] == 1 and axis not in pinned:
            continue
        if groups and axis not in pinned and groups[-1][-1] not in pinned:
            outer = groups[-1][-1]
            if all(a.get(outer, 0) == a.get(axis, 0) * extents[axis] for a in accesses):
                groups[-1].append(axis)
                continue
        groups.append([axis])
    if not groups:
        return (LoopAxis(f"{prefix}0", (), 1),)
    return tuple(LoopAxis(f"{prefix}{n}", tuple(g), math.prod(extents[a] for a in g)) for n, g in enumerate(groups))


def index_type(extent: int) -> str:
    """Return the C type that counts to `extent`: int while it fits, else i64."""
    return "int" if extent < INT_LIMIT else "i64"


def split_index(linear: str, loops: Sequence[LoopAxis], total: int) -> list[str]:
    """Print the statements that take a linear index apart into the loop variables (`linear` is an unsigned-safe C name)."""
    kind = "u32" if total < INT_LIMIT else "u64"
    lines: list[str] = []
    rest = f"({kind}){linear}"
    for n, loop in enumerate(reversed(loops)):
        ctype, extent = index_type(loop.extent), max(loop.extent, 1)
        if n == len(loops) - 1:
            lines.append(f"const {ctype} {loop.var} = ({ctype})({rest});")
        else:
            lines.append(f"const {ctype} {loop.var} = ({ctype})({rest} % {extent}u);")
            name = f"rest_{loop.var}"
            lines.append(f"const {kind} {name} = {rest} / {extent}u;")
            rest = name
    return lines


def axis_names(loops: Iterable[LoopAxis]) -> dict[str, str]:
    """Return the C variable of each axis that is a loop of its own; axes without a loop have extent 1 and position 0."""
    return {loop.axes[0]: loop.var for loop in loops if len(loop.axes) == 1}


class AxisNames(dict[str, str]):
    """C variables by axis; an axis without a loop has extent 1, so its position prints as 0."""

    def __missing__(self, axis: str) -> str:
        return "0"


def print_steps(steps: Mapping[str, int], offset: int, loops: Sequence[LoopAxis], elements: int) -> str:
    """Print the element offset Σ variable·stride + offset, in 64 bits if the buffer needs them."""
    cast = "" if elements < INT_LIMIT else "(i64)"
    terms = [
        f"{cast}{loop.var} * {step}" if step != 1 else f"{cast}{loop.var}"
        for loop in loops
        if loop.axes and (step := steps.get(loop.axes[-1], 0))
    ]
    return " + ".join(terms + ([str(offset)] if offset or not terms else []))


def load_offset(load: Load, loops: Sequence[LoopAxis], names: Mapping[str, str]) -> str:
    """Print the element offset of a load at the loops' current position; `names` serves loads that are not affine."""
    if load.steps is None:
        return print_offset(load.expr, load.buffer, names)
    return print_steps(dict(load.steps), load.offset, loops, load.buffer.elements)


def load_guard(load: Load, names: Mapping[str, str]) -> str:
    """Print the condition under which the load is inside its buffer, "" if it always is."""
    return print_guard(load.expr, load.buffer, names) if load.guard_axes else ""


def access_mode(load: Load, inner: LoopAxis, lanes: int) -> str:
    """Return how `lanes` neighbours along the loop `inner` are read.

    Returns
    -------
    {"vector", "uniform", "gather"}
        One wide aligned access; one element that serves all; one access for each.
    """
    axes = frozenset(inner.axes)
    if not axes & (load.axes if load.steps is None else {a for a, _ in load.steps} | load.guard_axes):
        return "uniform"
    if lanes == 1 or load.steps is None or load.guard_axes & axes or load.step(inner.axes[-1]) != 1:
        return "gather"
    chunk = min(lanes, 16 // load.dtype.bytes)
    others = [s for a, s in load.steps if a not in axes]
    return "vector" if load.offset % chunk == 0 and all(s % chunk == 0 for s in others) else "gather"


def lanes_of(width: int, dtypes: Iterable[DType]) -> int:
    """Return the elements of a vector whose widest element type takes `width` bytes in all; at least 1."""
    return max(width // max(d.bytes for d in dtypes), 1)


def print_fetch(load: Load, mode: str, field: str, inner: LoopAxis, lanes: int, hint: str, offset: str, guard: str) -> list[str]:
    """Print the statements that read a load into `field` (raw memory, one value, or `lanes` values, by its mode).

    `offset` and `guard` are printed at the vector's first element; a gather steps along `inner` by itself, so for it both
    are given with the variable of `inner` still to be moved: the caller prints them in terms of that variable.
    """
    size = load.dtype.bytes
    if mode == "vector":
        get = f"load_raw<{lanes * size}, {hint}>({load.parameter} + {offset})"
        return [f"{field} = {f'{guard} ? {get} : zero_raw<{lanes * size}>()' if guard else get};"]
    get = f"load_one({load.parameter} + {offset})"
    value = f"{guard} ? {get} : 0" if guard else get
    if mode == "uniform":
        return [f"{field} = {value};"]
    start = inner.var
    kind = index_type(inner.extent)
    return [
        f"UNROLL for (int j = 0; j < {lanes}; ++j) {{",
        f"  const {kind} {start}_first = {start};",
        f"  {{ const {kind} {start} = {start}_first + j; {field}[j] = {value}; }}",
        "}",
    ]


def field_type(load: Load, mode: str, lanes: int) -> tuple[str, str]:
    """Return the C type of a fetched load, and what follows its name."""
    if mode == "vector":
        return f"Raw<{lanes * load.dtype.bytes}>", ""
    return register_type(load.dtype), "" if mode == "uniform" else f"[{lanes}]"


def field_value(load: Load, mode: str, field: str) -> str:
    """Print element `j` of a fetched load."""
    if mode == "vector":
        return f"Element<{stored_type(load.dtype)}>::get({field}, j)"
    return field if mode == "uniform" else f"{field}[j]"


def iota_text(e: Expr, position: str) -> str:
    """Print an axis position as a value of the iota's type."""
    return f"({register_type(e.dtype)})({position})"
