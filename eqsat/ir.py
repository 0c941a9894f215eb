"""Expressions over named axes, and programs: inputs with a layout, one or more outputs with a layout.

A `Program` is the one form in which a computation is written down: what the user gave, what a plan's kernel does, what
a rule's counterexample is. Each can be executed by the oracle.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from eqsat.access import AccessMap, Index
from eqsat.errors import DTypeError, ShapeError, UsageError
from eqsat.ops import OPS, Kind, Op, Result, result_dtype
from eqsat.prefix import evaluated, prefix
from eqsat.types import DType, TensorType, join_axes


@dataclass(frozen=True, slots=True, eq=False)
class Expr:
    """A node of a tensor expression; equal expressions have equal digests.

    Attributes by op: `read` (input name, axes: one name per dimension of the input, "" where its extent is 1),
    `const` (value,), `iota` (axis,), `cast` (), reductions (axis,), `access` (AccessMap,).
    Build one with the functions below, which compute `type`.
    """

    op: str
    args: tuple[Expr, ...]
    attrs: tuple[Any, ...]
    type: TensorType
    digest: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        text = f"{self.op}|{'|'.join(map(str, self.attrs))}|{self.type}|{'|'.join(a.digest for a in self.args)}"
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def row(self) -> Op:
        """Its row in the op table."""
        return OPS[self.op]

    @property
    def axes(self) -> frozenset[str]:
        """The set of axes it varies over."""
        return self.type.names

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self.type.dtype

    def walk(self) -> Iterator[Expr]:
        """Yield each distinct subexpression once, operands before users."""
        seen: set[str] = set()
        stack: list[tuple[Expr, bool]] = [(self, False)]
        while stack:
            node, done = stack.pop()
            if done:
                yield node
            elif node.digest not in seen:
                seen.add(node.digest)
                stack.append((node, True))
                stack.extend((a, False) for a in reversed(node.args))


def read(name: str, axes: tuple[str, ...], extents: tuple[int, ...], dtype: DType) -> Expr:
    """Read input `name`; `axes` names the axis of each dimension, "" for a dimension of extent 1."""
    if len(axes) != len(extents):
        raise ShapeError(f"input {name!r} has {len(extents)} dimensions; got {len(axes)} axis names {axes}")
    named = [(a, n) for a, n in zip(axes, extents, strict=True) if a]
    if len({a for a, _ in named}) != len(named):
        raise ShapeError(f"input {name!r} is read with a repeated axis in {axes}; read a diagonal through an access instead")
    return Expr("read", (), (name, axes), TensorType(tuple(sorted(named)), dtype))


def const(value: float | bool, dtype: DType) -> Expr:
    """Return a constant: a value without axes."""
    return Expr(
        "const",
        (),
        (bool(value) if dtype is DType.BOOL else float(value) if dtype.is_float else int(value),),
        TensorType((), dtype),
    )


def iota(axis: str, extent: int, dtype: DType = DType.I64) -> Expr:
    """Return the position along `axis` as a value: 0, 1, …, extent−1."""
    return Expr("iota", (), (axis,), TensorType(((axis, extent),), dtype))


def apply(op: str, *args: Expr, dtype: DType | None = None) -> Expr:
    """Apply pointwise op `op`; operands are joined on their axes. `dtype` is given for `cast` alone."""
    row = OPS.get(op)
    if row is None or row.kind is not Kind.POINTWISE:
        known = ", ".join(o.name for o in OPS.values() if o.kind is Kind.POINTWISE)
        raise UsageError(f"expected a pointwise op out of {known}; got {op!r}")
    if len(args) != row.arity:
        raise UsageError(f"{op} takes {row.arity} operands; got {len(args)}")
    if row.result is Result.GIVEN:
        if dtype is None:
            raise DTypeError(f"{op} needs the dtype of its result")
        out = dtype
    else:
        out = result_dtype(row, tuple(a.dtype for a in args))
    return Expr(op, args, (), TensorType(join_axes(tuple(a.type for a in args)), out))


def reduce(op: str, axis: str, arg: Expr) -> Expr:
    """Reduce `arg` along `axis`. An axis that `arg` lacks is an error: its extent is unknown."""
    row = OPS.get(op)
    if row is None or row.kind is not Kind.REDUCE:
        known = ", ".join(o.name for o in OPS.values() if o.kind is Kind.REDUCE)
        raise UsageError(f"expected a reduction out of {known}; got {op!r}")
    if axis not in arg.axes:
        raise ShapeError(f"{op} over axis {axis!r}: the operand has axes {sorted(arg.axes)}")
    rest = tuple((a, n) for a, n in arg.type.axes if a != axis)
    return Expr(op, (arg,), (axis,), TensorType(rest, result_dtype(row, (arg.dtype,))))


def access(arg: Expr, mapping: AccessMap) -> Expr:
    """Read `arg` through `mapping`; positions outside its axes' ranges read 0."""
    replaced = {a for a, _ in mapping.entries}
    if missing := replaced - arg.axes:
        raise ShapeError(f"the access replaces axes {sorted(missing)} that the operand (axes {sorted(arg.axes)}) lacks")
    kept = tuple((a, n) for a, n in arg.type.axes if a not in replaced)
    used = frozenset().union(*(e.axes for _, e in mapping.entries)) if mapping.entries else frozenset()
    if unknown := used - {a for a, _ in mapping.extents}:
        raise ShapeError(f"the access uses the axes {sorted(unknown)}, whose extents it does not give")
    new = tuple((a, n) for a, n in mapping.extents if a in used)
    if clash := {a for a, _ in kept} & {a for a, _ in new}:
        same = dict(kept)
        if any(same[a] != n for a, n in new if a in clash):
            raise ShapeError(f"the access brings in axes {sorted(clash)} with other extents than the operand's own")
    out = tuple(sorted({**dict(kept), **dict(new)}.items()))
    return Expr("access", (arg,), (mapping,), TensorType(out, arg.dtype))


def rename(expr: Expr, names: Mapping[str, str]) -> Expr:
    """Rename free axes everywhere; bound axes that would capture a new name are renamed apart."""
    memo: dict[_RenameKey, Expr] = {}
    root = (expr, _relevant(expr, names))
    stack = [root]
    while stack:  # no recursion: programs may be deep
        e, by = stack[-1]
        key = (e.digest, tuple(sorted(by.items())))
        if key not in memo:
            within = _rename_below(e, by)
            keys = [(a.digest, tuple(sorted(m.items()))) for a, m in within]
            if waiting := [w for w, k in zip(within, keys, strict=True) if k not in memo]:
                stack.extend(waiting)
                continue
            memo[key] = _renamed(e, by, tuple(memo[k] for k in keys)) if by else e
        stack.pop()
    return memo[root[0].digest, tuple(sorted(root[1].items()))]


_RenameKey = tuple[str, tuple[tuple[str, str], ...]]


def _relevant(e: Expr, names: Mapping[str, str]) -> dict[str, str]:
    """Return the part of a renaming that changes `e`; one that merges two axes is an error."""
    by = {a: b for a, b in names.items() if a in e.axes and a != b}
    if len({by.get(a, a) for a in e.axes}) != len(e.axes):
        raise ShapeError(f"renaming {by} would merge two axes of an expression over {sorted(e.axes)}")
    return by


def _rename_below(e: Expr, by: dict[str, str]) -> list[tuple[Expr, dict[str, str]]]:
    """Return each operand with the renaming that it takes when `e` is renamed by `by`."""
    if not by:
        return []
    if e.row.kind is Kind.REDUCE:
        return [(e.args[0], _relevant(e.args[0], {**by, **_apart((e.attrs[0],), by, e.args[0])}))]
    if e.row.kind is Kind.ACCESS:
        replaced = {a for a, _ in e.attrs[0].entries}
        kept = {a: b for a, b in by.items() if a not in replaced}
        return [(e.args[0], _relevant(e.args[0], {**kept, **_apart(replaced, kept, e.args[0])}))]
    return [(a, _relevant(a, by)) for a in e.args]


def _apart(hidden: Iterable[str], by: Mapping[str, str], inner: Expr) -> dict[str, str]:
    """Return new names for those axes of `inner`, invisible from outside, that a new free name would meet."""
    arriving = {by.get(a, a) for a in inner.axes if a not in hidden}
    taken = set(inner.axes) | set(by) | set(by.values())
    out: dict[str, str] = {}
    for a in sorted(hidden):
        if a in arriving:
            out[a] = _fresh(a, taken)
            taken.add(out[a])
    return out


def _renamed(e: Expr, by: dict[str, str], args: tuple[Expr, ...]) -> Expr:
    """Rebuild `e` with its free axes renamed by `by`, over operands that are already renamed."""
    if e.op == "read":
        name, axes = e.attrs
        ext = e.type.extents
        return read(name, tuple(by.get(a, a) for a in axes), tuple(ext[a] if a else 1 for a in axes), e.dtype)
    if e.op == "iota":
        return iota(by[e.attrs[0]], e.type.axes[0][1], e.dtype)
    if e.row.kind is Kind.REDUCE:
        return reduce(e.op, _apart((e.attrs[0],), by, e.args[0]).get(e.attrs[0], e.attrs[0]), args[0])
    if e.row.kind is Kind.ACCESS:
        mapping: AccessMap = e.attrs[0]
        replaced = {a for a, _ in mapping.entries}
        apart = _apart(replaced, {a: b for a, b in by.items() if a not in replaced}, e.args[0])
        index = {a: Index.axis(b) for a, b in by.items()}
        entries = tuple((apart.get(a, a), x.substitute(index)) for a, x in mapping.entries)
        return access(args[0], AccessMap(entries, tuple((by.get(a, a), n) for a, n in mapping.extents)))
    return rebuild(e, args)


def _fresh(axis: str, taken: set[str]) -> str:
    stem = axis.rstrip("0123456789_") or "ax"
    return next(name for i in range(len(taken) + 2) if (name := f"{stem}_{i}") not in taken)


def rebuild(expr: Expr, args: tuple[Expr, ...]) -> Expr:
    """Return `expr` with other operands, its type computed anew."""
    if all(a is b for a, b in zip(args, expr.args, strict=True)):
        return expr
    kind = expr.row.kind
    if kind is Kind.REDUCE:
        return reduce(expr.op, expr.attrs[0], args[0])
    if kind is Kind.ACCESS:
        return access(args[0], expr.attrs[0])
    return apply(expr.op, *args, dtype=expr.dtype if expr.op == "cast" else None)


def substitute(expr: Expr, by: Mapping[Expr, Expr]) -> Expr:
    """Replace whole subexpressions (each by one with the same axes), from the leaves up."""
    memo: dict[str, Expr] = {e.digest: v for e, v in by.items()}
    for node in expr.walk():
        if node.digest not in memo:
            memo[node.digest] = rebuild(node, tuple(memo[a.digest] for a in node.args))
    return memo[expr.digest]


@dataclass(frozen=True, slots=True)
class Input:
    """A buffer that a program reads: dense, row-major in the order of `shape`.

    `constant` promises that its contents never change between calls (a weight).
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    constant: bool = False

    def __post_init__(self) -> None:
        if any(n < 0 for n in self.shape):
            raise ShapeError(f"input {self.name!r}: extents are ≥ 0; got {self.shape}")

    @property
    def elements(self) -> int:
        """Number of elements."""
        return TensorType(tuple((f"{i:03d}", n) for i, n in enumerate(self.shape)), self.dtype).elements

    @property
    def bytes(self) -> int:
        """Bytes of the buffer."""
        return self.elements * self.dtype.bytes


@dataclass(frozen=True, slots=True)
class Output:
    """A buffer that a program writes: dense, row-major; `axes` names each dimension's axis, "" where the extent is 1.

    `dtype` is the stored type; the value is rounded to it once. `joined` counts the axes of each dimension, where one dimension
    goes over several axes, outermost first; () says that each has its own.
    """

    name: str
    expr: Expr
    axes: tuple[str, ...]
    dtype: DType
    joined: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        named = [a for a in self.axes if a]
        if self.joined and (sum(self.joined) != len(self.axes) or min(self.joined) < 1):
            raise ShapeError(f"output {self.name!r}: its dimensions join {self.joined} axes; it has {len(self.axes)}")
        if sorted(named) != sorted(self.expr.axes):
            raise ShapeError(
                f"output {self.name!r}: its dimensions name axes {named}; the expression has {sorted(self.expr.axes)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of each dimension."""
        ext = self.expr.type.extents
        return tuple(math.prod(ext[a] if a else 1 for a in axes) for axes in self.dimensions)

    @property
    def dimensions(self) -> tuple[tuple[str, ...], ...]:
        """The axes of each dimension."""
        ends = list(itertools.accumulate(self.joined or (1,) * len(self.axes), initial=0))
        return tuple(self.axes[a:b] for a, b in itertools.pairwise(ends))

    @property
    def bytes(self) -> int:
        """Bytes of the buffer."""
        return self.expr.type.elements * self.dtype.bytes


@dataclass(frozen=True)
class Program:
    """Inputs and outputs. Every `read` names an input, with its rank, extents and dtype."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]

    def __post_init__(self) -> None:
        known = {i.name: i for i in self.inputs}
        if len(known) != len(self.inputs) or not self.outputs:
            raise UsageError("a program has distinctly named inputs and at least one output")
        for out in self.outputs:
            for e in out.expr.walk():
                if e.op == "read":
                    self._check_read(e, known)

    @staticmethod
    def _check_read(e: Expr, known: Mapping[str, Input]) -> None:
        name, axes = e.attrs
        if name not in known:
            raise UsageError(f"the program reads {name!r}, which is not among its inputs {sorted(known)}")
        ext = e.type.extents
        shape = tuple(ext[a] if a else 1 for a in axes)
        if shape != known[name].shape or e.dtype is not known[name].dtype:
            raise ShapeError(f"{name!r} is {known[name].dtype}{list(known[name].shape)}; it is read as {e.dtype}{list(shape)}")

    def walk(self) -> Iterator[Expr]:
        """Yield each distinct subexpression of all outputs once, operands before users."""
        return iter(self._nodes)

    @functools.cached_property
    def _nodes(self) -> tuple[Expr, ...]:
        return tuple({e.digest: e for o in self.outputs for e in o.expr.walk()}.values())

    @functools.cached_property
    def extents(self) -> dict[str, int]:
        """Extent of every axis that occurs anywhere, bound ones included."""
        out: dict[str, int] = {}
        for e in self.walk():
            for a, n in e.type.axes:
                if out.setdefault(a, n) != n:
                    raise ShapeError(f"axis {a!r} has extents {out[a]} and {n} in one program")
        return out

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over inputs, outputs and expressions."""
        parts = [f"{i.name}{i.shape}{i.dtype}{i.constant}" for i in self.inputs]
        parts += [f"{o.name}{o.axes}{o.joined or ''}{o.dtype}{o.expr.digest}" for o in self.outputs]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @functools.cached_property
    def bytes(self) -> int:
        """Least bytes moved: each input that is read, once, and each output, once."""
        read_names = {e.attrs[0] for e in self.walk() if e.op == "read"}
        return sum(i.bytes for i in self.inputs if i.name in read_names) + sum(o.bytes for o in self.outputs)

    @functools.cached_property
    def flops(self) -> int:
        """Arithmetic operations when each subexpression is evaluated once: one per element of a node's operands' join."""
        return sum(count for _, count in self._operations())

    @functools.cached_property
    def arithmetic(self) -> int:
        """The same, each operation by its weight in the op table: what a kernel without matrix instructions has to issue."""
        return sum(op.weight * count for op, count in self._operations())

    def _operations(self) -> Iterator[tuple[Op, int]]:
        for e in evaluated([o.expr for o in self.outputs]):
            if e.row.kind is Kind.POINTWISE and e.op != "cast":
                yield e.row, e.type.elements
            elif e.row.kind is Kind.REDUCE:
                found = prefix(e)  # one pass along the axis makes all of its prefixes
                yield e.row, (found.operand if found else e.args[0]).type.elements
