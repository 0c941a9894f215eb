"""From cuts to kernels: each cut of a class that a plan may materialise, written as a kernel-sized program."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from eqsat.cut import Cut, Form, Load
from eqsat.cuts import CutLimits, Cuts
from eqsat.errors import ExtractionError
from eqsat.frozen import Frozen
from eqsat.indexterms import read_index
from eqsat.ir import Expr, Input, Output, Program, apply, const, iota, read, rebuild, reduce, rename
from eqsat.ops import OPS, Kind
from eqsat.terms import accessed
from eqsat.types import DType


@dataclass(frozen=True, slots=True)
class KernelNode:
    """A kernel of the graph: the buffers (classes) it writes, the intermediate ones it needs, its family, its program.

    `writes` are in the order of the program's outputs.
    """

    writes: tuple[int, ...]
    needs: frozenset[int]
    family: str
    program: Program

    @property
    def name(self) -> str:
        """What it writes, for people."""
        return " ".join(f"t{c}" for c in self.writes)


@dataclass(slots=True)
class KernelGraph:
    """Every kernel that a plan for `program` may launch.

    `goals` are the classes of the program's outputs. Intermediate buffers lay their axes out in one global order, which
    follows the layouts of the program's own buffers.
    """

    program: Program
    frozen: Frozen
    limits: CutLimits = field(default_factory=CutLimits)
    cuts: Cuts = field(init=False)
    kernels: list[KernelNode] = field(init=False, default_factory=list)
    goals: frozenset[int] = field(init=False)
    _order: dict[str, int] = field(init=False)
    _outputs: dict[int, Output] = field(init=False)
    _inputs: dict[str, Input] = field(init=False)
    _operands: frozenset[int] = field(init=False)
    _largest: int = field(init=False)
    # by identity of the form, which the cuts keep alive; and whether intermediates have their own types
    _built: dict[tuple[int, bool], Expr] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        regions = (n for found in self.frozen.nodes.values() for n in found if n.op == "ContractAnchor")
        self._operands = frozenset(x for n in regions for x in n.children)
        self._inputs = {i.name: i for i in self.program.inputs}
        self._largest = max((i.elements for i in self.program.inputs), default=0)
        self._order = axis_order(self.program)
        made = sorted(self.frozen.extents.keys() - self._order.keys())
        self._order |= {a: i for i, a in enumerate(made, len(self._order))}
        self.goals = frozenset(self.frozen.roots)
        if len(self.goals) != len(self.frozen.roots):
            raise ExtractionError("two outputs of the program are the same value; return it once")
        self._outputs = dict(zip(self.frozen.roots, self.program.outputs, strict=True))
        self.cuts = Cuts(self.frozen, {**self.frozen.extents, **self.program.extents}, self.limits)
        self._collect()

    def _collect(self) -> None:
        stack, seen = list(self.goals), set(self.goals)
        while stack:
            b = stack.pop()
            for cut in self.cuts.of[b]:
                needs = frozenset(int(x[1]) for x in cut.loads if x[0] == "buf")
                self.kernels.append(KernelNode((b,), needs, cut.mode.family, self._program([(b, cut)])))
                for x in sorted(needs - seen):
                    seen.add(x)
                    stack.append(x)
        wanted = dict.fromkeys([self.goals, *(k.needs for k in self.kernels)])
        joint = dict.fromkeys(group for together in wanted if len(together) > 1 for group in self._joint(together))
        for group in joint:
            needs = frozenset(int(x[1]) for _, cut in group for x in cut.loads if x[0] == "buf")
            writes = tuple(b for b, _ in group)
            self.kernels.append(KernelNode(writes, needs, group[0][1].mode.family, self._program(group)))

    def _joint(self, classes: frozenset[int]) -> Iterator[tuple[tuple[int, Cut], ...]]:
        """Yield groups of classes, wanted together, that one pass over what they all load can write.

        Each is computed by its cut of least rank among those over the same axes (and, in a dependent fold, of the same
        score; in contractions, of an operand out of the same buffers) that load something in common.
        """
        groups: dict[tuple[str, frozenset[str], object], dict[int, Cut]] = defaultdict(dict)
        for c in sorted(classes):
            for cut in self.cuts.of[c]:
                if cut.mode.family == "contract":
                    for operand in cut.mode.shared:
                        if self._loaded_axes(operand).intersection(self.layout(c)[-1:]):
                            continue  # each row of the operand would be scattered over the result
                        groups["contract", cut.mode.over, frozenset(x[:2] for x in operand)].setdefault(c, cut)
                elif cut.mode.family in ("reduce", "online"):
                    groups[cut.mode.family, cut.mode.over, cut.mode.score].setdefault(c, cut)
                elif cut.mode.family == "point":
                    groups["point", frozenset(self.frozen.axes[c]), None].setdefault(c, cut)
        for (family, over, _), found in groups.items():
            if family == "contract":  # rows have a name of their own in each result that needs them (queries, keys)
                found = _with_own_products(found)
                loads = [frozenset(x[:2] for x in cut.loads) for cut in found.values()]
            else:
                loads = [cut.loads for cut in found.values()]
            common = frozenset.intersection(*loads)
            if family in ("reduce", "point"):  # one that every element of every result walks along: else this is no single pass
                walked = self.cuts.elements(frozenset(over).union(*(cut.mode.free for cut in found.values())))
                common = frozenset(x for x in common if walked <= self._loaded_elements(x))
            apart = not any(("buf", c) in load for c in found for load in loads)
            if len(found) > 1 and apart and common and len(frozenset().union(*loads)) <= self.limits.loads:
                yield tuple(found.items())

    def _loaded_elements(self, load: Load) -> int:
        kind, source, *_ = load
        return self._inputs[str(source)].elements if kind == "read" else self.cuts.elements(self.frozen.axes[int(source)])

    def _loaded_axes(self, loads: frozenset[Load]) -> frozenset[str]:
        names = (str(x[2]).split() if x[0] == "read" else self.frozen.axes[int(x[1])] for x in loads)  # type: ignore[misc]
        return frozenset(a for axes in names for a in axes)

    def buffer(self, c: int) -> Output | Input:
        """Return the buffer that holds class `c`: an output of the program, or an intermediate called `t<class>`."""
        if c in self._outputs:
            out = self._outputs[c]
            return Input(out.name, out.shape, out.dtype)
        axes = self.layout(c)
        return Input(f"t{c}", tuple(self.cuts.extents[a] for a in axes), self.dtype(c))

    def layout(self, c: int) -> tuple[str, ...]:
        """Return the axes of class `c`'s buffer, outermost first."""
        if c in self._outputs:
            return self._outputs[c].axes
        return tuple(sorted(self.frozen.axes[c], key=self._order.__getitem__))

    def dtype(self, c: int) -> DType:
        """Return the stored type of an intermediate.

        The value's own type, except that an intermediate of less than an eighth of the largest buffer's elements is kept
        in the accumulator type: row statistics lose nothing to storage, and cost nothing. An operand of a contraction stays
        in its own type, which is the one matrix units take, unless that is f16: a sum that the program itself never stores
        may leave its range.
        """
        if c in self._outputs:
            return self._outputs[c].dtype
        own = self._own_dtype(c)
        small = 8 * self.cuts.elements(self.frozen.axes[c]) <= self._largest
        return own.accumulator if small and (c not in self._operands or own is DType.F16) else own

    def _own_dtype(self, c: int) -> DType:
        name = self.frozen.dtype[c]
        return DType.F32 if name == "weak" else DType.parse(name)

    def _program(self, group: Sequence[tuple[int, Cut]]) -> Program:
        loads = frozenset().union(*(cut.loads for _, cut in group))
        inputs = tuple(self._input(load) for load in sorted(loads, key=self._load_key))
        outputs = tuple(self._output(c, self._whole(cut)) for c, cut in group)
        return Program(tuple({i.name: i for i in inputs}.values()), outputs)

    def _output(self, c: int, expr: Expr) -> Output:
        if c in self._outputs:
            out = self._outputs[c]
            return Output(out.name, expr, out.axes, out.dtype)
        return Output(f"t{c}", expr, self.layout(c), self.dtype(c))

    def _load_key(self, load: Load) -> tuple[int, str]:
        position = {i.name: n for n, i in enumerate(self.program.inputs)}
        return (position[str(load[1])], "") if load[0] == "read" else (len(position), str(self._input(load).name))

    def _input(self, load: Load) -> Input:
        if load[0] == "read":
            return self._inputs[str(load[1])]
        b = self.buffer(int(load[1]))
        assert isinstance(b, Input)
        return b

    def _whole(self, cut: Cut) -> Expr:
        """Return a cut as an expression, the weights of a dependent fold in their own type."""
        built = self._build(cut.form)
        return _own_weights(built, self._build(cut.form, own=True)) if cut.mode.family == "online" else built

    def _build(self, form: Form, *, own: bool = False) -> Expr:
        """Return a form as an expression; `own`: with intermediates in their own types, though they are stored in wider ones."""
        key = id(form), own
        if key in self._built:
            return self._built[key]
        head = form[0]
        if head == "read":
            source = self._inputs[form[1]]
            axes = tuple("" if a == "." else a for a in form[2].split())
            out = read(source.name, axes, source.shape, source.dtype)
        elif head == "load":
            b = self.buffer(form[1])
            assert isinstance(b, Input)
            out = read(b.name, self.layout(form[1]), b.shape, self._own_dtype(form[1]) if own else b.dtype)
        elif head == "const":
            out = const(form[1], DType.F32)
        elif head == "iota":
            out = iota(form[1], self.cuts.extents[form[1]])
        elif head == "access":
            axis, index = form[1]
            out = _called(accessed(self._build(form[2], own=own), axis, read_index(index), self.cuts.extents))
        elif head == "contract":
            body = self._apply("mul", (), [self._build(x, own=own) for x in form[2:]])
            out = self._nest("sum", form[1], body)
        elif OPS[head].kind is Kind.REDUCE:
            out = self._nest(head, form[1], self._build(form[2], own=own))
        else:
            out = self._apply(head, form[1], [self._build(x, own=own) for x in form[2:]])
        self._built[key] = out
        return out

    def _nest(self, op: str, axes: tuple[str, ...], body: Expr) -> Expr:
        for a in sorted(axes, key=self._order.__getitem__, reverse=True):
            body = reduce(op, a, body)
        return body

    @staticmethod
    def _apply(op: str, literals: tuple[str, ...], args: list[Expr]) -> Expr:
        """Apply a pointwise op; constants take the type of the operands beside them."""
        if op == "cast":
            return apply("cast", *args, dtype=DType.parse(literals[0]))
        typed = [a.dtype for a in args if a.op != "const" and a.dtype is not DType.BOOL]
        if typed:
            beside = typed[0]
            args = [const(a.attrs[0], beside) if a.op == "const" and _fits(a.attrs[0], beside) else a for a in args]
        return apply(op, *args)


def _own_weights(e: Expr, own: Expr, *, summed: bool = False) -> Expr:
    """Return `e` with exponentials that are summed with 16-bit factors in their own type, as `own` has it.

    Statistics that are kept in the accumulator type make what follows from them that wide. In a score that is welcome; but the
    weights that a fold makes of it meet its values in the matrix units, which take both in the values' type, and the program's
    own weights are of that type.
    """
    args = tuple(_own_weights(a, b, summed=e.op == "sum") for a, b in zip(e.args, own.args, strict=True))
    if summed and e.op == "mul":
        types = {a.dtype for a in args}
        args = tuple(
            apply("cast", a, dtype=b.dtype)
            if a.dtype is DType.F32 and b.dtype in types - {DType.F32} and any(x.op == "exp" for x in a.walk())
            else a
            for a, b in zip(args, own.args, strict=True)
        )
    return rebuild(e, args)


def _with_own_products(found: dict[int, Cut]) -> dict[int, Cut]:
    """Return the cuts but those that share a contraction with one before: it would be computed for each of them."""
    kept: dict[int, Cut] = {}
    seen: set[tuple[object, ...]] = set()
    for c, cut in found.items():
        products = {a for a in cut.anchors if a[0] == "contract"}
        if not products & seen:
            kept[c] = cut
            seen |= products
    return kept


def _called(expr: Expr) -> Expr:
    """Return a read by other names where an access does nothing but call the axes of a buffer otherwise."""
    if expr.op != "access" or expr.args[0].op != "read":
        return expr
    (source,), (mapping,) = expr.args, expr.attrs
    names = {a: e.name for a, e in mapping.entries if e.op == "axis"}
    extents, new = source.type.extents, expr.type.extents
    whole = len(names) == len(mapping.entries) and all(new[b] == extents[a] for a, b in names.items())
    return rename(source, names) if whole and len(expr.axes) == len(source.axes) else expr


def _fits(value: float, dtype: DType) -> bool:
    return dtype.is_float or (math.isfinite(value) and float(value).is_integer())


def axis_order(program: Program) -> dict[str, int]:
    """Order all axes so that the layouts of outputs, then inputs, are respected wherever they do not contradict each other."""
    import networkx  # slow import (0.2 s), which an answer from the store need not pay

    layouts = [tuple(a for a in o.axes if a) for o in program.outputs]
    nodes = [e for o in program.outputs for e in o.expr.walk()]
    layouts += [tuple(a for a in e.attrs[1] if a) for e in nodes if e.op == "read"]
    graph: networkx.DiGraph = networkx.DiGraph()
    graph.add_nodes_from(dict.fromkeys([*(a for layout in layouts for a in layout), *program.extents]))
    for layout in layouts:
        for i, first in enumerate(layout):
            for second in layout[i + 1 :]:
                if not networkx.has_path(graph, second, first):
                    graph.add_edge(first, second)
    rank = {a: n for n, a in enumerate(graph.nodes)}
    return {a: n for n, a in enumerate(networkx.lexicographical_topological_sort(graph, key=rank.__getitem__))}
