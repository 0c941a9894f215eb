"""Expressions as e-graph terms in text, and terms read back as expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from eqsat.access import AccessMap, Index
from eqsat.errors import DTypeError, TextError
from eqsat.indexterms import canonical, extent_in, read_index
from eqsat.ir import Expr, Program, access, apply, const, iota, read, reduce
from eqsat.ops import BY_CONSTRUCTOR, Kind, Op, Result
from eqsat.sexpr import Node, read_forms
from eqsat.signature import node_term
from eqsat.types import DType, promote

Value = Expr | Callable[[DType], Expr]
"""A read-back value: an expression, or a constant one that waits for the dtype of what it meets."""


def to_term(expr: Expr) -> str:
    """Write `expr` as one term, shared subexpressions written out at every use.

    Parameters
    ----------
    expr : Expr

    Returns
    -------
    str
        A term of sort `T`. Constants have no dtype there; where `expr`'s own dtype would not follow (float32 0.5 times a
        bfloat16 tensor is float32) the other operand is cast.

    Notes
    -----
    A text without sharing can be exponentially longer than the expression: loading a program into the e-graph goes
    through `signature.load_text`, which binds shared nodes to names.
    """
    written: dict[str, tuple[str, str]] = {}
    for node in expr.walk():
        written[node.digest] = node_term(node, [written[a.digest] for a in node.args])
    return written[expr.digest][0]


def from_term(
    term: str | Node,
    program: Program,
    *,
    extents: Mapping[str, int] | None = None,
    dtype: DType = DType.F32,
    names: Mapping[str, Expr] | None = None,
) -> Expr:
    """Read a term back as an expression over `program`'s inputs.

    Parameters
    ----------
    term : str or Node
    program : Program
        Gives shape and dtype of the inputs and the extents of the axes.
    extents : mapping of str to int, optional
        Extents of axes that `program` does not mention; they win over the program's.
    dtype : DType
        Taken where the term is a constant and nothing says which dtype it has.
    names : mapping of str to Expr, optional
        What symbols in the term stand for.

    Returns
    -------
    Expr
        A constant takes the dtype of the operand that it meets. A reduction over an axis that its operand lacks is
        written without the reduction (a sum becomes a product with the extent).

    Raises
    ------
    TextError
        If the term is malformed or names an unknown constructor, input or axis.
    """
    source = term if isinstance(term, str) else str(term)
    if isinstance(term, str):
        forms = read_forms(term, "<term>")
        if len(forms) != 1:
            raise TextError(f"expected one term; got {len(forms)} forms", file="<term>", source=source)
        term = forms[0]
    return _as(_Reader(program, {**program.extents, **(extents or {})}, source, names or {}).value(term), dtype)


def accessed(arg: Expr, axis: str, index: Index, extents: Mapping[str, int]) -> Expr:
    """Return `arg` with `axis` replaced by `index`, zero where it leaves the axis: one access where that is exact.

    Parameters
    ----------
    arg : Expr
        Where it is an access itself, both become one access, unless the outer one can leave the range of an axis that only
        the inner one's expressions mention: zeros must stay zeros.
    axis : str
    index : Index
    extents : mapping of str to int
        Of every axis of `index` whose name does not tell.

    Returns
    -------
    Expr
        An operand that does not vary along `axis` is masked where `index` can leave it.

    Raises
    ------
    TextError
        If the extent of an axis is unknown.
    """
    used = {a: _known_extent(a, extents) for a in sorted(index.axes)}
    if index == Index.axis(axis) and axis in arg.axes:
        return arg
    if axis not in arg.axes:
        return _masked(arg, axis, index, {**used, axis: _known_extent(axis, extents)})
    if arg.op == "access" and (composed := _composed(arg, axis, index, used)) is not None:
        return composed
    return access(arg, AccessMap(((axis, canonical(index, used)),), tuple(used.items())))


def _composed(arg: Expr, axis: str, index: Index, used: Mapping[str, int]) -> Expr | None:
    """Join a replacement to an access, or return None where zeros would be lost."""
    inner: AccessMap = arg.attrs[0]
    (base,) = arg.args
    entries = dict(inner.entries)
    mentioned = any(axis in e.axes for e in entries.values())
    kept = axis in base.axes and axis not in entries
    low, high = index.bounds(used)
    if mentioned and not kept and (low < 0 or high >= arg.type.extents[axis]):
        return None
    extents = {**dict(inner.extents), **used}
    entries = {a: canonical(e.substitute({axis: index}), extents) for a, e in entries.items()}
    if kept:
        entries[axis] = canonical(index, extents)
    wanted = (arg.axes - {axis}) | index.axes
    needed = frozenset().union(*(e.axes for e in entries.values()))
    if (base.axes - entries.keys()) | needed != wanted:
        return None  # an axis cancels: the type would change
    entries = {a: e for a, e in entries.items() if e != Index.axis(a)}
    if not entries:
        return base
    needed = frozenset().union(*(e.axes for e in entries.values()))
    return access(base, AccessMap(tuple(entries.items()), tuple((a, extents[a]) for a in sorted(needed))))


def _masked(arg: Expr, axis: str, index: Index, extents: Mapping[str, int]) -> Expr:
    low, high = index.bounds(extents)
    if low >= 0 and high < extents[axis] and index.axes <= arg.axes:
        return arg
    position = iota(axis, extents[axis])
    new = AccessMap(((axis, index),), tuple((a, extents[a]) for a in sorted(index.axes)))
    return apply("where", access(apply("eq", position, position), new), arg, const(0, arg.dtype))


def _known_extent(axis: str, extents: Mapping[str, int]) -> int:
    extent = extent_in(axis, extents)
    if extent is None:
        raise TextError(f"the extent of axis {axis!r} is unknown; known are {sorted(extents)}", file="<term>", source=axis)
    return extent


class _Reader:
    """Builds values from the leaves up, without recursion: extracted terms can be deep."""

    def __init__(self, program: Program, extents: Mapping[str, int], source: str, names: Mapping[str, Expr]) -> None:
        self._inputs = {i.name: i for i in program.inputs}
        self._extents = extents
        self._source = source
        self._names = names

    def value(self, root: Node) -> Value:
        done: list[Value] = []
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if node.kind == "symbol" and node.text in self._names:
                done.append(self._names[node.text])
                continue
            row, operands, attrs = self._parts(node)
            if not ready:
                stack.append((node, True))
                stack.extend((o, False) for o in reversed(operands))
                continue
            split = len(done) - len(operands)
            args, done = done[split:], done[:split]
            done.append(self._build(node, row, attrs, args))
        return done[0]

    def _parts(self, node: Node) -> tuple[Op, tuple[Node, ...], tuple[Node, ...]]:
        """Row, operands and attributes of a call."""
        row = BY_CONSTRUCTOR.get(node.head)
        if row is None:
            raise self._fail(f"expected a call of a constructor of tensors; got {node.head or node}", node)
        operands: tuple[Node, ...]
        attrs: tuple[Node, ...]
        if row.kind is Kind.LEAF:
            want, operands, attrs = (2 if row.name == "read" else 1), (), node.args
        elif row.kind is Kind.ACCESS:
            want, operands, attrs = 3, node.args[2:], node.args[:2]
        elif row.name == "cast":
            want, operands, attrs = 2, node.args[:1], node.args[1:]
        elif row.kind is Kind.REDUCE:
            want, operands, attrs = 2, node.args[1:], node.args[:1]
        else:
            want, operands, attrs = row.arity, node.args, ()
        if len(node.args) != want:
            raise self._fail(f"{node.head} takes {want} arguments; got {len(node.args)}", node)
        for a in attrs:
            if a.kind != "string" and row.name != "const" and not (row.kind is Kind.ACCESS and a is attrs[1]):
                raise self._fail(f"expected a string as an argument of {node.head}; got {a}", a)
        return row, operands, attrs

    def _build(self, node: Node, row: Op, attrs: tuple[Node, ...], args: list[Value]) -> Value:
        match row.name:
            case "read":
                return self._read(node, attrs[0].text, attrs[1].text)
            case "const":
                return self._constant(attrs[0])
            case "iota":
                return iota(attrs[0].text, self._extent(attrs[0], attrs[0].text))
            case "access":
                axis, index = attrs[0].text, read_index(attrs[1])
                known = {a: self._extent(attrs[1], a) for a in index.axes} | {axis: self._extent(attrs[0], axis)}
                return _lazily(lambda a: accessed(a, axis, index, known), args)
            case "cast":
                to = DType.parse(attrs[0].text)
                return apply("cast", _cast_operand(args[0], to), dtype=to)
        if row.kind is Kind.REDUCE:
            return self._reduce(row, attrs[0], args[0])
        return _pointwise(row, args)

    def _read(self, node: Node, name: str, axes: str) -> Expr:
        if name not in self._inputs:
            raise self._fail(f"the term reads {name!r}; the inputs are {sorted(self._inputs)}", node)
        names = tuple("" if a == "." else a for a in axes.split())
        return read(name, names, self._inputs[name].shape, self._inputs[name].dtype)

    def _constant(self, node: Node) -> Value:
        if node.kind not in ("int", "float"):
            raise self._fail(f"expected a number; got {node}", node)
        number = node.number

        def typed(d: DType) -> Expr:
            if not d.is_float and not (math.isfinite(number) and number == int(number)):
                raise DTypeError(f"the constant {number} meets {d} operands, which hold whole numbers only; cast them first")
            return const(number, d)

        return typed

    def _extent(self, at: Node, axis: str) -> int:
        extent = extent_in(axis, self._extents)
        if extent is None:
            raise self._fail(f"the extent of axis {axis!r} is unknown; known are {sorted(self._extents)}", at)
        return extent

    def _reduce(self, row: Op, axis: Node, arg: Value) -> Value:
        if not isinstance(arg, Expr) or axis.text not in arg.axes:
            extent = self._extent(axis, axis.text)
            return _lazily(lambda a: _reduce_constant(row, extent, a), [arg])
        return reduce(row.name, axis.text, arg)

    def _fail(self, reason: str, node: Node) -> TextError:
        return TextError(reason, file="<term>", line=node.line, column=node.column, source=self._source)


def _as(value: Value, dtype: DType) -> Expr:
    return value if isinstance(value, Expr) else value(dtype)


def _cast_operand(value: Value, to: DType) -> Expr:
    """Return what a cast takes: a constant in the cast's own type, or in float64 where that cannot hold it."""
    try:
        return _as(value, to)
    except DTypeError:
        return _as(value, DType.F64)


def _lazily(build: Callable[[Expr], Expr], args: Sequence[Value]) -> Value:
    arg = args[0]
    return build(arg) if isinstance(arg, Expr) else lambda d: build(arg(d))


def _pointwise(row: Op, args: list[Value]) -> Value:
    """Apply `row`; constants take the type in which the other operands meet."""
    free = args[1:] if row.result is Result.BRANCHES else args
    strong = [a.dtype for a in free if isinstance(a, Expr)]
    if not strong and row.result is not Result.BOOL:
        return lambda d: apply(row.name, *_typed(row, args, d))
    d = strong[0] if strong else DType.F32
    for other in strong[1:]:
        d = promote(d, other)
    return apply(row.name, *_typed(row, args, d))


def _typed(row: Op, args: list[Value], dtype: DType) -> list[Expr]:
    if row.name in ("and", "or", "not"):
        dtype = DType.BOOL
    if row.result is Result.FLOAT and not dtype.is_float:
        dtype = DType.F32
    first = DType.BOOL if row.result is Result.BRANCHES else dtype
    return [_as(a, first if i == 0 else dtype) for i, a in enumerate(args)]


def _reduce_constant(row: Op, extent: int, arg: Expr) -> Expr:
    """Reduce along an axis that `arg` does not vary over: n equal elements."""
    if row.result is Result.INDEX:
        return const(0, DType.I64)
    if row.name == "sum":
        counted = apply("cast", arg, dtype=DType.I64) if arg.dtype is DType.BOOL else arg
        return apply("mul", counted, const(extent, counted.dtype))
    if row.name == "prod":
        power, square, left = const(1, arg.dtype), arg, extent
        while left:
            power = apply("mul", power, square) if left % 2 else power
            square, left = apply("mul", square, square), left // 2
        return power
    return arg
