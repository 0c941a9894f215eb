"""The e-graph's signature in egglog text, generated from the op table; and a program's facts and terms.

A class of sort `T` is a value over named axes, one of sort `Region` is what one launch may compute. Every class of sort
`T` carries `axes` (a set that only shrinks), `dtype` (two dtypes in one class are an error, never a choice) and, where
it depends on nothing that changes between calls, `constant`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from eqsat.access import AccessMap, Index
from eqsat.errors import DTypeError, UsageError
from eqsat.indexterms import MADE, canonical, index_declarations, index_term, made_axis, made_extent, origin
from eqsat.ir import Expr, Program
from eqsat.ops import TABLE, Kind, Op, Result
from eqsat.types import DType, promote

WEAK = "weak"
"""dtype of a constant: it takes the type of what it meets."""

RANGES: Mapping[str, tuple[str, float]] = {
    "at-least-zero": ("Maximum", 0.0),
    "at-most-zero": ("Minimum", 0.0),
    "at-most-one": ("Minimum", 1.0),
}
"""Relations about the range of a value, found by rules: each means that the value equals this op of itself and the number."""

COSTS = frozenset({"turn-pays", "clash-pays"})
"""Relations that say what pays, not what holds: a law is tested without them, and a step is right without them."""

# The points of each box of axes that a rule asks for by `(counted-axes …)`: the set is taken apart axis by axis.
_COUNTS = (
    "(relation counted-axes (Axes))",
    "(function elements (Axes) i64 :no-merge)",
    '(rule ((counted-axes x) (= 0 (set-length x))) ((set (elements x) 1)) :ruleset rs-analysis :name "analysis/elements-none")',
    "(rule ((counted-axes x) (< 0 (set-length x)) (= a (set-get x 0))) ((counted-axes (set-remove x a)))"
    ' :ruleset rs-analysis :name "analysis/elements-rest")',
    "(rule ((counted-axes x) (< 0 (set-length x)) (= a (set-get x 0)) (= r (set-remove x a)) (= n (elements r)) (= m (extent a)))"
    ' ((set (elements x) (* n m))) :ruleset rs-analysis :name "analysis/elements")',
)
_LEAVES = {"read": "String String", "const": "f64", "iota": "String"}
_GIVEN = {"access": "String Index T", "cast": "T String"}
_NAMES = (*(d.value for d in DType), WEAK)
# egglog's parser recurses: terms nested 20,000 deep crash it, so deeper ones are cut into bindings.
_NESTING = 200
_MADE_NAME = re.compile(f'"([^" ]*{MADE}[^" ]*)"')


def constructors() -> dict[str, tuple[tuple[str, ...], str]]:
    """Return argument sorts and result sort of every constructor of a value or a region.

    Returns
    -------
    dict of str to (tuple of str, str)
        Sorts are `T`, `Region`, `Index`, `Axes`, `String` and `f64`.

    Notes
    -----
    `(Access k ix a)` is `a` with axis k replaced by the index expression ix; where ix leaves 0 … extent(k) − 1 it is 0.
    """
    values = {op.constructor: (tuple(_arguments(op).split()), "T") for op in TABLE}
    return values | {
        "Anchor": (("T",), "Region"),
        "ReduceAnchor": (("String", "Axes", "T"), "Region"),
        "ContractAnchor": (("Axes", "T", "T"), "Region"),
        "FoldAnchor": (("String", "Axes", "T", "T"), "Region"),
    }


def declarations(*, accesses: bool = True) -> str:
    """Return sorts, constructors, analyses with their rules (ruleset `rs-analysis`) and the promotion table.

    Parameters
    ----------
    accesses : bool
        Whether to give the rules about accesses and index expressions too; where there are none, they only take time.
    """
    lines = ["(sort Axes (Set String))", "(sort Index)", "(sort T)", "(sort Region)"]
    lines += [f"(constructor {name} ({' '.join(args)}) {out})" for name, (args, out) in constructors().items()]
    lines += [
        "(function axes (T) Axes :merge (set-intersect old new))",
        "(function dtype (T) String :no-merge)",
        "(function extent (String) i64 :no-merge)",
        "(function promote (String String) String :no-merge)",
        "(function floating (String) String :no-merge)",
        "(function counting (String) String :no-merge)",
        "(relation constant (T))",
        "(relation program-axis (String))",
        "(function origin (String) String :no-merge)",
        "(relation constant-read (T i64))",
        *(f"(relation {name} (T))" for name in RANGES),
        "(relation turn-asked (String T T T Axes Axes Axes))",
        "(relation turn-pays (String T T T))",
        "(relation clash-asked (String String T T T Axes Axes Axes))",
        "(relation clash-pays (String String T T T))",
        "(ruleset rs-analysis)",
        *_COUNTS,
        *index_declarations(rules=accesses),
    ]
    for op in TABLE:
        if op.kind is Kind.ACCESS and not accesses:
            continue
        lines += _analysis_rules(op)
    return "\n".join([*lines, *_dtype_tables()]) + "\n"


def load_text(program: Program, roots: Sequence[str]) -> str:
    """Return facts and terms of `program`: extents, types of its leaves, constants, and one binding for each output.

    Parameters
    ----------
    program : Program
    roots : sequence of str
        Name of the global that each output's expression is bound to, in order of outputs; each starts with `$`.

    Raises
    ------
    UsageError
        If the names do not match the outputs.
    DTypeError
        If a constant cannot be held exactly by a float64.
    """
    if len(roots) != len(program.outputs) or not all(r.startswith("$") for r in roots):
        raise UsageError(
            f"expected one global name starting with $ for each of the {len(program.outputs)} outputs; got {list(roots)}"
        )
    lines = extent_facts(program.extents)
    writer = TermWriter(constant_inputs(program))
    for root, out in zip(roots, program.outputs, strict=True):
        term = writer.strong(out.expr)
        lines += writer.take_lines()
        lines.append(f"(let {root} {term})")
    return "\n".join(lines) + "\n"


def constant_inputs(program: Program) -> tuple[str, ...]:
    """Return the names of the inputs that are the same in every call, in order."""
    return tuple(i.name for i in program.inputs if i.constant)


def extent_facts(extents: Mapping[str, int]) -> list[str]:
    """Return the commands that give each axis' extent, what it was made from, and whether it is a program's own."""
    own = [f"(program-axis {quoted(axis)})" for axis in sorted(extents) if MADE not in axis]
    known = [f"(set (origin {quoted(axis)}) {quoted(origin(axis))})" for axis in sorted(extents)]
    return [f"(set (extent {quoted(axis)}) {n})" for axis, n in sorted(extents.items())] + known + own


def quoted(name: str) -> str:
    """Return `name` as an egglog string literal."""
    if '"' in name or "\\" in name or "\n" in name:
        raise UsageError(f"a name may hold neither quotes, backslashes nor line breaks; got {name!r}. Rename it.")
    return f'"{name}"'


def operation_text(expr: Expr, args: Sequence[str]) -> str:
    """Return the constructor call of `expr`'s own node over operands given as text."""
    name = expr.row.constructor
    match expr.op:
        case "read":
            buffer, axes = expr.attrs
            return f"({name} {quoted(buffer)} {quoted(' '.join(a or '.' for a in axes))})"
        case "const":
            return f"({name} {_float_text(expr.attrs[0])})"
        case "iota":
            return f"({name} {quoted(expr.attrs[0])})"
        case "access":
            return access_text(args[0], expr.attrs[0], expr.args[0].type.extents)
        case "cast":
            return f"({name} {args[0]} {quoted(expr.dtype.value)})"
        case _:
            attrs = [quoted(a) for a in expr.attrs]
            return f"({' '.join([name, *attrs, *args])})"


def access_text(term: str, mapping: AccessMap, extents: Mapping[str, int]) -> str:
    """Return the nest of `Access` that reads `term`, whose axes have these extents, through `mapping`.

    The map replaces its axes at once, the nest one after the other; so an axis that an expression brings in while the
    operand's own axis of that name still waits for its turn is called otherwise until then.
    """
    waiting = dict(mapping.entries)
    known = {**dict(mapping.extents), **extents}
    while waiting:
        free = [a for a in waiting if not any(b != a and b in waiting for b in waiting[a].axes)]
        if free:
            axis = free[0]
            index = waiting.pop(axis)
        else:  # the expressions run in a circle: one axis steps aside
            axis = next(iter(waiting))
            aside = _unused(axis, extents[axis], {*known, *waiting})
            known[aside] = extents[axis]
            index, waiting = Index.axis(aside), {aside if a == axis else a: e for a, e in waiting.items()}
        new = {**known, **dict(mapping.extents)}
        term = f"(Access {quoted(axis)} {index_term(canonical(index, new))} {term})"
    return term


def _unused(axis: str, extent: int, taken: set[str]) -> str:
    stem = axis
    while (name := made_axis(stem, "", extent)) in taken:
        stem += "_"
    return name


def weak_dtype(op: Op, operands: Sequence[str]) -> str:
    """Return the dtype that the analysis gives `op` over operands of these dtypes, the weak one included."""
    match op.result:
        case Result.BOOL:
            return DType.BOOL.value
        case Result.INDEX:
            return DType.I64.value
        case Result.BRANCHES:
            operands = operands[1:]
        case _:
            pass
    out = _meet(operands)
    if op.result is Result.FLOAT:
        return _floating(out)
    return _counting(out) if op.result is Result.COUNT else out


def node_term(node: Expr, operands: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return the term of `node` and its dtype in the e-graph, from those of its operands.

    A constant has no dtype in the e-graph. Where the node's own dtype would not follow from that (float32 0.5 times a
    bfloat16 tensor is float32), the other operands are cast.
    """
    row = node.row
    texts, dtypes = [t for t, _ in operands], [d for _, d in operands]
    if row.result is Result.GIVEN or row.kind is Kind.ACCESS:
        text = operation_text(node, texts)
        if node.op == "iota" and node.dtype is not DType.I64:
            text = f"(Cast {text} {quoted(node.dtype.value)})"
        return text, {"const": WEAK, "access": dtypes[0] if dtypes else ""}.get(node.op, node.dtype.value)
    own = [a.dtype.value for a in node.args]
    if arithmetic(row) and node.dtype is not DType.BOOL:
        # Truth values are cast: regrouping could else add two of them, which means `or`: m·x + n·x is not (m or n)·x.
        for i in [i for i, d in enumerate(dtypes) if d == DType.BOOL.value]:
            texts[i], dtypes[i] = f"(Cast {texts[i]} {quoted(node.dtype.value)})", node.dtype.value
            own[i] = node.dtype.value
    skipped = 1 if row.result is Result.BRANCHES else 0
    meet = _meet(own[skipped:])
    if _meet(dtypes[skipped:]) not in (WEAK, meet):
        for i in range(skipped, len(texts)):
            if dtypes[i] not in (WEAK, meet):
                texts[i], dtypes[i] = f"(Cast {texts[i]} {quoted(meet)})", meet
    return operation_text(node, texts), weak_dtype(row, dtypes)


def arithmetic(op: Op) -> bool:
    """Return whether `op` computes with numbers; rules may assume that its operands are never bool."""
    return op.kind in (Kind.POINTWISE, Kind.REDUCE) and op.result in (Result.PROMOTE, Result.FLOAT, Result.COUNT)


class TermWriter:
    """Writes expressions as terms; shared and deeply nested nodes become global bindings, each written once.

    Parameters
    ----------
    constant_inputs : sequence of str
        Names of the inputs that are the same in every call; their order says which are neighbours.
    """

    def __init__(self, constant_inputs: Sequence[str]) -> None:
        self._constant_inputs = list(constant_inputs)
        self._written: dict[str, tuple[str, str]] = {}  # digest -> term, its dtype in the e-graph
        self._depth: dict[str, int] = {}
        self._lines: list[str] = []
        self._bindings = 0

    def strong(self, expr: Expr) -> str:
        """Return the term of `expr` with `expr`'s own dtype, even if it is a constant."""
        nodes = list(expr.walk())
        users = Counter(a.digest for node in nodes for a in node.args)
        for node in nodes:
            if node.digest not in self._written:
                self._write(node, shared=users[node.digest] > 1)
        text, dtype = self._written[expr.digest]
        return text if dtype == expr.dtype.value else f"(Cast {text} {quoted(expr.dtype.value)})"

    def take_lines(self) -> list[str]:
        """Return the commands written since the last call: bindings and facts that the terms rest on."""
        lines, self._lines = self._lines, []
        return lines

    def _write(self, node: Expr, *, shared: bool) -> None:
        text, dtype = node_term(node, [self._written[a.digest] for a in node.args])
        depth = 1 + max((self._depth[a.digest] for a in node.args), default=0)
        if node.op == "access":
            self._lines += extent_facts({a: n for a in _MADE_NAME.findall(text) if (n := made_extent(a)) is not None})
        if node.op == "read" or shared or depth > _NESTING:
            text, depth = self._bind(text), 0
        if node.op == "read":
            self._lines += self._facts(node, text)
        self._written[node.digest], self._depth[node.digest] = (text, dtype), depth

    def _bind(self, text: str) -> str:
        name = f"$n{self._bindings}"
        self._bindings += 1
        self._lines.append(f"(let {name} {text})")
        return name

    def _facts(self, node: Expr, name: str) -> Iterator[str]:
        """Return what the e-graph cannot know of a read."""
        axes = " ".join(quoted(a) for a in sorted(node.axes))
        yield f"(set (axes {name}) ({'set-of ' + axes if axes else 'set-empty'}))"
        yield f"(set (dtype {name}) {quoted(node.dtype.value)})"
        if node.attrs[0] in self._constant_inputs:
            yield f"(constant {name})"
            if len(node.axes) > 1:
                yield f"(constant-read {name} {self._constant_inputs.index(node.attrs[0])})"


def _meet(names: Sequence[str]) -> str:
    """Type in which operands meet: the promoted one, weak ones giving way."""
    out = WEAK
    for name in names:
        out = _promoted(out, name)
    return out


def _float_text(value: float | bool) -> str:
    if isinstance(value, int) and int(float(value)) != value:
        raise DTypeError(f"the constant {value} does not fit a float64 exactly; pass it as an input of dtype i64")
    number = float(value)
    if number != number:
        return "NaN"
    if number in (float("inf"), float("-inf")):
        return "inf" if number > 0 else "-inf"
    return repr(number)


def _arguments(op: Op) -> str:
    if op.name in _LEAVES:
        return _LEAVES[op.name]
    if op.name in _GIVEN:
        return _GIVEN[op.name]
    return " ".join((["String"] if op.kind is Kind.REDUCE else []) + ["T"] * op.arity)


def _analysis_rules(op: Op) -> list[str]:
    """Rules for axes, dtype and constness of one row; those of reads are facts of the program."""
    name = op.constructor
    match op.name:
        case "read":
            return []
        case "const":
            head = '(set (axes e) (set-empty)) (set (dtype e) "weak") (constant e)'
            return [_rule(op, "leaf", "(= e (Const v))", head)]
        case "iota":
            head = f'(set (axes e) (set-of a)) (set (dtype e) "{DType.I64}") (constant e)'
            return [_rule(op, "leaf", "(= e (Iota a))", head)]
        case "access":
            whole = "(= e (Access k i a))"
            axes = "(set (axes e) (set-union (set-remove x k) y))"
            return [
                _rule(op, "axes", f"{whole} (= x (axes a)) (= y (index-axes i))", axes),
                _rule(op, "dtype", f"{whole} (= p (dtype a))", "(set (dtype e) p)"),
                _constant_rule(op, whole, "a"),
            ]
        case "cast":
            whole = f"(= e ({name} a v))"
            return [
                _rule(op, "axes", f"{whole} (= x (axes a))", "(set (axes e) x)"),
                _rule(op, "dtype", whole, "(set (dtype e) v)"),
                _constant_rule(op, whole, "a"),
            ]
        case _:
            return _operator_rules(op)


def _operator_rules(op: Op) -> list[str]:
    operands = [f"a{i}" for i in range(op.arity)]
    if op.kind is Kind.REDUCE:
        whole, axes = f"(= e ({op.constructor} k a0))", "(set-remove x0 k)"
    else:
        whole, axes = f"(= e ({op.constructor} {' '.join(operands)}))", "x0"
        for i in range(1, op.arity):
            axes = f"(set-union {axes} x{i})"
    known = " ".join(f"(= x{i} (axes {a}))" for i, a in enumerate(operands))
    return [
        _rule(op, "axes", f"{whole} {known}", f"(set (axes e) {axes})"),
        _rule(op, "dtype", *_dtype_rule(op, whole)),
        _constant_rule(op, whole, *operands),
    ]


def _dtype_rule(op: Op, whole: str) -> tuple[str, str]:
    """Body and head that follow `ops.result_dtype`."""
    if op.result in (Result.BOOL, Result.INDEX):
        return whole, f'(set (dtype e) "{DType.BOOL if op.result is Result.BOOL else DType.I64}")'
    used = range(1 if op.result is Result.BRANCHES else 0, op.arity)
    body = whole + "".join(f" (= p{i} (dtype a{i}))" for i in used)
    out = f"p{used[0]}"
    for i in used[1:]:
        body += f" (= q{i} (promote {out} p{i}))"
        out = f"q{i}"
    if op.result in (Result.FLOAT, Result.COUNT):
        body += f" (= q ({'floating' if op.result is Result.FLOAT else 'counting'} {out}))"
        out = "q"
    return body, f"(set (dtype e) {out})"


def _constant_rule(op: Op, whole: str, *operands: str) -> str:
    return _rule(op, "constant", whole + "".join(f" (constant {a})" for a in operands), "(constant e)")


def _rule(op: Op, what: str, body: str, head: str) -> str:
    return f'(rule ({body}) ({head}) :ruleset rs-analysis :name "analysis/{op.name}-{what}")'


def _dtype_tables() -> list[str]:
    lines = [f'(set (promote "{a}" "{b}") "{_promoted(a, b)}")' for a in _NAMES for b in _NAMES]
    lines += [f'(set (floating "{d}") "{_floating(d)}")' for d in _NAMES]
    lines += [f'(set (counting "{d}") "{_counting(d)}")' for d in _NAMES]
    return lines


def _promoted(a: str, b: str) -> str:
    if WEAK in (a, b):
        return b if a == WEAK else a
    return promote(DType(a), DType(b)).value


def _floating(d: str) -> str:
    return d if d == WEAK or DType(d).is_float else DType.F32.value


def _counting(d: str) -> str:
    return DType.I64.value if d == DType.BOOL.value else d
