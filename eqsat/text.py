"""Programs as text: an s-expression that a person reads and that reads back exactly, and a line of mathematics.

    (program
      (input x f32 (16 64))
      (input w f32 (64 32) constant)
      (output y f32 (i n) (sum k (mul (read x i k) (read w k n)))))

Extents come from the inputs; `.` is a dimension of extent 1, and `(m n)` among an output's axes one that goes over two; `(let name value)` binds a subexpression used more than once. A bare number
takes the type of the operands that it meets, `(const 1.0 f32)` says its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from eqsat import ir
from eqsat.access import AccessMap, Index
from eqsat.errors import TextError, UsageError
from eqsat.formula import show
from eqsat.ir import Expr, Input, Output, Program
from eqsat.ops import OPS, Kind, Op, Result
from eqsat.sexpr import Node, read_forms
from eqsat.types import DType, promote

__all__ = ["dumps", "loads", "show"]

T = TypeVar("T")

_WIDTH = 110
_DEPTH = 40  # levels of parentheses after which a subexpression is bound to a name: readable, and no recursion runs deep
_LIMIT = 200  # levels that are read in one form


def dumps(program: Program) -> str:
    """Return the text of `program`; `loads` gives back an equal program."""
    lines = ["(program"]
    for i in program.inputs:
        shape = " ".join(map(str, i.shape))
        lines.append(f"  (input {i.name} {i.dtype} ({shape}){' constant' if i.constant else ''})")
    roots = [out.expr for out in program.outputs]
    names = {e.digest: f"t{i}" for i, e in enumerate(_bound(roots))}
    lines += [_layout(["let", names[e.digest], _tree(e, names)], 2) for e in _nodes(roots) if e.digest in names]
    for out in program.outputs:
        dimensions = [[a or "." for a in axes] for axes in out.dimensions]
        axes: list[_Tree] = [d[0] if len(d) == 1 else list(d) for d in dimensions]
        value: _Tree = names[out.expr.digest] if out.expr.digest in names else _tree(out.expr, names)
        lines.append(_layout(["output", out.name, str(out.dtype), axes, value], 2))
    return "\n".join(lines) + ")\n"


def loads(text: str, file: str = "<text>") -> Program:
    """Read a program from its text.

    Raises
    ------
    TextError
        With file, line, column and a caret, wherever the text is malformed or does not make sense.
    """
    forms = read_forms(text, file)
    if len(forms) != 1 or forms[0].head != "program":
        at = forms[0] if forms else Node("list")
        raise TextError(
            f"expected one form (program …); got {len(forms)} forms", file=file, line=at.line, column=at.column, source=text
        )
    return _Reader(text, file).program(forms[0])


# Writing

_Tree = str | list["_Tree"]


def _nodes(roots: Sequence[Expr]) -> list[Expr]:
    seen: dict[str, Expr] = {}
    for root in roots:
        for e in root.walk():
            seen.setdefault(e.digest, e)
    return list(seen.values())


def _bound(roots: Sequence[Expr]) -> list[Expr]:
    """Return the nodes that get names: used more than once, or at the end of a deep nest; operands before users."""
    nodes = _nodes(roots)
    uses: dict[str, int] = {}
    for e in nodes:
        for a in e.args:
            uses[a.digest] = uses.get(a.digest, 0) + 1
    for root in roots:
        uses[root.digest] = uses.get(root.digest, 0) + 1
    out: list[Expr] = []
    depth: dict[str, int] = {}
    for e in nodes:
        depth[e.digest] = 1 + max((depth[a.digest] for a in e.args), default=0)
        if e.args and (uses[e.digest] > 1 or depth[e.digest] > _DEPTH):
            out.append(e)
            depth[e.digest] = 0
    return out


def _tree(e: Expr, names: dict[str, str]) -> _Tree:
    """Return the nested lists of `e`, with the nodes below it that have names replaced by these."""
    if e.op == "read":
        return ["read", e.attrs[0], *(a or "." for a in e.attrs[1])]
    if e.op == "const":
        return ["const", _number(e), str(e.dtype)]
    if e.op == "iota":
        return ["iota", e.attrs[0], str(e.type.axes[0][1]), str(e.dtype)]
    weak = _weak_type([a.dtype for a in _branches(e.row, e.args) if a.op != "const"])
    args: list[_Tree] = []
    for a in e.args:
        if a.op == "const" and e.row.kind is Kind.POINTWISE and a.dtype is weak and a.dtype is not DType.BOOL:
            args.append(_number(a))
        else:
            args.append(names.get(a.digest) or _tree(a, names))
    if e.op == "cast":
        return ["cast", str(e.dtype), *args]
    if e.row.kind is Kind.REDUCE:
        return [e.op, e.attrs[0], *args]
    if e.row.kind is Kind.ACCESS:
        mapping: AccessMap = e.attrs[0]
        entries: _Tree = [[a, _index_tree(x)] for a, x in mapping.entries]
        return ["access", entries, [[a, str(n)] for a, n in mapping.extents], *args]
    return [e.op, *args]


def _index_tree(index: Index) -> _Tree:
    if index.op in ("axis", "const"):
        return str(index)
    head = {"add": "+", "mul": "*", "div": "//", "mod": "%"}[index.op]
    return [head, *map(_index_tree, index.args), *([] if index.op == "add" else [str(index.value)])]


def _number(e: Expr) -> str:
    value = e.attrs[0]
    if isinstance(value, bool):
        return "true" if value else "false"
    return "NaN" if value != value else repr(value)


def _branches(row: Op, args: Sequence[Expr]) -> Sequence[Expr]:
    """Return the operands whose types meet (all but the condition of `where`)."""
    return args[1:] if row.result is Result.BRANCHES else args


def _weak_type(strong: Sequence[DType]) -> DType | None:
    out: DType | None = None
    for d in strong:
        out = d if out is None else promote(out, d)
    return out


def _layout(tree: _Tree, indent: int) -> str:
    """Return the text of `tree`, broken over lines where it is wider than a line."""
    flat = _flat(tree)
    if isinstance(tree, str) or indent + len(flat) <= _WIDTH or not any(isinstance(t, list) for t in tree):
        return " " * indent + flat
    head = list(tree)
    first: list[str] = []
    while head and (isinstance(head[0], str) or (len(head) > 1 and len(_flat(head[0])) < _WIDTH // 3)):
        first.append(_flat(head.pop(0)))
    rest = [_layout(t, indent + 2) for t in head]
    return "\n".join([" " * indent + "(" + " ".join(first), *rest]) + ")"


def _flat(tree: _Tree) -> str:
    return tree if isinstance(tree, str) else f"({' '.join(map(_flat, tree))})"


# Reading


class _Reader:
    """Builds the program; every error is told where it stands."""

    def __init__(self, source: str, file: str) -> None:
        self._source, self._file = source, file
        self._inputs: dict[str, Input] = {}
        self._names: dict[str, Expr] = {}

    def program(self, form: Node) -> Program:
        outputs: list[Output] = []
        for item in form.args:
            if item.head == "input":
                row = self._input(item)
                if row.name in self._inputs:
                    raise self._fail(f"a second input is called {row.name!r}; give it another name", item)
                self._inputs[row.name] = row
            elif item.head == "let":
                self._want(item, 2, "(let name value)")
                name = self._word(item.args[0], "a name")
                if name in self._names:
                    raise self._fail(f"{name!r} is bound twice; give this one another name", item.args[0])
                self._names[name] = self._value(item.args[1], 0)
            elif item.head == "output":
                outputs.append(self._output(item))
            else:
                raise self._fail(f"expected (input …), (let …) or (output …); got {_brief(item)}", item)
        return self._guard(form, lambda: self._whole_program(tuple(outputs)))

    def _whole_program(self, outputs: tuple[Output, ...]) -> Program:
        out = Program(tuple(self._inputs.values()), outputs)
        _ = out.extents  # refuses one axis with two extents
        return out

    def _input(self, form: Node) -> Input:
        if len(form.args) not in (3, 4) or form.args[2].kind != "list" or (form.args[3:] and form.args[3].text != "constant"):
            raise self._fail("expected (input name dtype (extent …)), with `constant` at the end or without", form)
        name = self._word(form.args[0], "a name")
        dtype = self._dtype(form.args[1])
        shape = tuple(self._integer(n, least=0) for n in form.args[2].items)
        return self._guard(form, lambda: Input(name, shape, dtype, len(form.args) == 4))

    def _output(self, form: Node) -> Output:
        if len(form.args) != 4 or form.args[2].kind != "list":
            raise self._fail("expected (output name dtype (axis …) value)", form)
        name, dtype = self._word(form.args[0], "a name"), self._dtype(form.args[1])
        dimensions = [[self._axis(a) for a in (d.items if d.kind == "list" else [d])] for d in form.args[2].items]
        axes = tuple(a for d in dimensions for a in d)
        joined = () if len(axes) == len(dimensions) else tuple(map(len, dimensions))
        expr = self._value(form.args[3], 0)
        return self._guard(form, lambda: Output(name, expr, axes, dtype, joined))

    def _value(self, node: Node, depth: int) -> Expr:
        if depth > _LIMIT:
            raise self._fail(f"more than {_LIMIT} levels deep; bind inner parts with (let name value)", node)
        if node.kind == "symbol":
            if node.text not in self._names:
                raise self._fail(
                    f"{node.text!r} is not bound before here: an input is read as (read {node.text} axis …), a shared "
                    "value is bound by (let name value)",
                    node,
                )
            return self._names[node.text]
        if node.kind in ("int", "float"):
            raise self._fail(f"nothing here gives {node.text} a type; write (const {node.text} f32)", node)
        row = OPS.get(node.head)
        if row is None:
            raise self._fail(f"expected an operation out of {', '.join(sorted(OPS))}; got {_brief(node)}", node)
        match row.name:
            case "read":
                return self._read(node)
            case "const":
                self._want(node, 2, "(const value dtype)")
                return self._constant(node.args[0], self._dtype(node.args[1]))
            case "iota":
                if len(node.args) not in (2, 3):
                    raise self._fail("expected (iota axis extent), with a dtype at the end or without", node)
                dtype = self._dtype(node.args[2]) if node.args[2:] else DType.I64
                return ir.iota(self._word(node.args[0], "an axis"), self._integer(node.args[1], least=1), dtype)
            case "access":
                return self._access(node, depth)
            case "cast":
                self._want(node, 2, "(cast dtype value)")
                dtype, arg = self._dtype(node.args[0]), self._value(node.args[1], depth + 1)
                return ir.apply("cast", arg, dtype=dtype)
        if row.kind is Kind.REDUCE:
            self._want(node, 2, f"({row.name} axis value)")
            axis, arg = self._word(node.args[0], "an axis"), self._value(node.args[1], depth + 1)
            return self._guard(node, lambda: ir.reduce(row.name, axis, arg))
        self._want(node, row.arity, f"({row.name}{' value' * row.arity})")
        return self._pointwise(node, row, depth)

    def _pointwise(self, node: Node, row: Op, depth: int) -> Expr:
        known = [None if a.kind in ("int", "float") else self._value(a, depth + 1) for a in node.args]
        free = known[1:] if row.result is Result.BRANCHES else known
        weak = _weak_type([a.dtype for a in free if a is not None and a.op != "const"])
        args: list[Expr] = []
        for a, written in zip(known, node.args, strict=True):
            if a is None and weak is None:
                raise self._fail(f"nothing here gives {written.text} a type; write (const {written.text} f32)", written)
            args.append(a if a is not None else self._constant(written, weak or DType.F32))
        return self._guard(node, lambda: ir.apply(row.name, *args))

    def _read(self, node: Node) -> Expr:
        if not node.args:
            raise self._fail("expected (read input axis …)", node)
        name = self._word(node.args[0], "an input")
        if name not in self._inputs:
            raise self._fail(
                f"{name!r} is not an input; the inputs before here are {', '.join(self._inputs) or 'none'}", node.args[0]
            )
        source, axes = self._inputs[name], tuple(self._axis(a) for a in node.args[1:])
        if len(axes) == len(source.shape) and any(n > 1 and not a for a, n in zip(axes, source.shape, strict=True)):
            raise self._fail(f"'.' stands for a dimension of extent 1; {name!r} has the shape {list(source.shape)}", node)
        return self._guard(node, lambda: ir.read(name, axes, source.shape, source.dtype))

    def _constant(self, node: Node, dtype: DType) -> Expr:
        if dtype is DType.BOOL:
            if node.text not in ("true", "false"):
                raise self._fail(f"expected true or false as a bool; got {_brief(node)}", node)
            return ir.const(node.text == "true", dtype)
        if node.kind not in ("int", "float"):
            raise self._fail(f"expected a number; got {_brief(node)}", node)
        if not dtype.is_float:
            return ir.const(self._integer(node), dtype)
        return ir.const(float(node.text), dtype)

    def _access(self, node: Node, depth: int) -> Expr:
        self._want(node, 3, "(access ((axis index) …) ((axis extent) …) value)")
        pairs = [self._pairs(part) for part in node.args[:2]]
        entries = tuple((self._word(a, "an axis"), self._index(x, 0)) for a, x in pairs[0])
        extents = tuple((self._word(a, "an axis"), self._integer(n, least=1)) for a, n in pairs[1])
        known = {a for a, _ in extents}
        for (_, written), (_, index) in zip(pairs[0], entries, strict=True):
            if unknown := sorted(index.axes - known):
                raise self._fail(f"the extent of axis {unknown[0]!r} is not among those given", written)
        arg = self._value(node.args[2], depth + 1)
        return self._guard(node, lambda: ir.access(arg, AccessMap(entries, extents)))

    def _pairs(self, node: Node) -> list[tuple[Node, Node]]:
        out: list[tuple[Node, Node]] = []
        if node.kind != "list":
            raise self._fail("expected a list of pairs", node)
        for item in node.items:
            if len(item.items) != 2:
                raise self._fail(f"expected a pair; got {_brief(item)}", item)
            out.append((item.items[0], item.items[1]))
        return out

    def _index(self, node: Node, depth: int) -> Index:
        if node.kind == "int":
            return Index.const(int(node.text))
        if node.kind == "symbol":
            return Index.axis(node.text)
        if len(node.items) != 3 or node.head not in ("+", "*", "//", "%") or depth > _LIMIT:
            raise self._fail(f"expected an axis, a number, (+ a b), (* a n), (// a n) or (% a n); got {_brief(node)}", node)
        left = self._index(node.args[0], depth + 1)
        if node.head == "+":
            return Index("add", args=(left, self._index(node.args[1], depth + 1)))
        if node.head == "*":
            return Index("mul", value=self._integer(node.args[1]), args=(left,))
        return Index("div" if node.head == "//" else "mod", value=self._integer(node.args[1], least=1), args=(left,))

    # Atoms

    def _want(self, node: Node, count: int, form: str) -> None:
        if len(node.args) != count:
            raise self._fail(f"expected {form}; got {len(node.args)} parts after {node.head!r}", node)

    def _word(self, node: Node, what: str) -> str:
        if node.kind != "symbol" or node.text == ".":
            raise self._fail(f"expected {what}; got {_brief(node)}", node)
        return node.text

    def _axis(self, node: Node) -> str:
        return "" if node.kind == "symbol" and node.text == "." else self._word(node, "an axis, or . for an extent of 1")

    def _integer(self, node: Node, least: int | None = None) -> int:
        if node.kind != "int" or (least is not None and int(node.text) < least):
            bound = "" if least is None else f" of at least {least}"
            raise self._fail(f"expected a whole number{bound}; got {_brief(node)}", node)
        return int(node.text)

    def _dtype(self, node: Node) -> DType:
        return self._guard(node, lambda: DType.parse(node.text or _brief(node)))

    def _guard(self, node: Node, build: Callable[[], T]) -> T:
        """Build something; an error in it is told as an error of the text at `node`."""
        try:
            return build()
        except TextError:
            raise
        except UsageError as error:
            raise self._fail(str(error), node) from error

    def _fail(self, reason: str, node: Node) -> TextError:
        return TextError(reason, file=self._file, line=node.line, column=node.column, source=self._source)


def _brief(node: Node) -> str:
    text = str(node)
    return text if len(text) <= 40 else text[:37] + "…"
