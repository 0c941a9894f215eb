"""Reductions along rows: each row in passes over its reduced axes, vectors along the innermost of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eqsat.codegen.cpu.accumulate import Accumulator, stages
from eqsat.codegen.cpu.bounds import streaming_bound_ns
from eqsat.codegen.cpu.loads import Loop, elements, loads, merged
from eqsat.codegen.cpu.loops import loop, parallel, vector_loop
from eqsat.codegen.cpu.model import streaming_ns
from eqsat.codegen.cpu.point import common_refusal, lanes_of
from eqsat.codegen.cpu.source import assemble
from eqsat.codegen.cpu.vector import ELEMENT, REGISTER, Lanes, Printer, Scope, widest
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.printer import is_load
from eqsat.codegen.problem import Problem, ReduceProblem
from eqsat.codegen.targets import Target
from eqsat.errors import IllegalScheduleError
from eqsat.ir import Expr
from eqsat.ops import Kind
from eqsat.types import DType

KEPT_BYTES = 1 << 18  # the most that row buffers take of the stack
_BLOCK_VECTORS = 256  # sums of floats longer than this many vectors in one accumulator are added up in blocks
_DEAR = frozenset({"exp", "log", "tanh", "erf", "sigmoid", "sin", "cos", "pow", "div", "sqrt", "rsqrt", "recip"})


@dataclass(frozen=True, slots=True)
class CpuReduceTile(Schedule):
    """Row by row, vectors along the reduced axes.

    Parameters
    ----------
    vector_bytes : int
        Bytes of a vector of the widest type that occurs: 16, 32 or 64.
    unroll : int
        Accumulators, and vectors in one iteration.
    keep : int
        What a later pass finds in a row buffer instead of computing it again: 0 nothing, 1 values with a dear function in
        them (exp, division, …), 2 every computed value.
    threads : int
        1, or 0 for all cores.
    compiler : int
        0 any, 1 the system's, 2 zig.
    """

    vector_bytes: int
    unroll: int
    keep: int
    threads: int
    compiler: int


class ReduceFamily:
    """Reductions with vectors along the reduced axes: legal for every reduce problem, best where these are contiguous."""

    name = "cpu-reduce"
    schedules: tuple[type[Schedule], ...] = (CpuReduceTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, ReduceProblem) or not isinstance(schedule, CpuReduceTile):
            return f"expected a reduce problem and a CpuReduceTile; got {problem.family} and {type(schedule).__name__}"
        if refusal := common_refusal(schedule.vector_bytes, schedule.unroll, schedule.threads, schedule.compiler):
            return refusal
        least = schedule.vector_bytes == 16 and schedule.unroll == 1 and not schedule.keep
        if not least and not contiguous(problem, reduced_loops(problem)[-1]):
            return "no read is contiguous along the reduced axes: only the fallback serves, element by element"
        step = lanes_of(problem, schedule.vector_bytes) * schedule.unroll
        inner = reduced_loops(problem)[-1].extent
        if schedule.unroll > 1 and inner < step:
            return f"the innermost reduced loop has {inner} elements; one unrolled iteration takes {step}"
        if schedule.threads != 1 and not row_loops(problem):
            return "one row alone is not shared among threads"
        if schedule.keep:
            kept = sum(register_bytes for _, register_bytes in kept_values(problem, schedule.keep)) * problem.length
            if not kept:
                return f"keep={schedule.keep}: no such value is used by two passes"
            if schedule.keep == 2 and len(kept_values(problem, 1)) == len(kept_values(problem, 2)):
                return "keep=2 keeps no more than keep=1"
            if kept > KEPT_BYTES:
                return f"row buffers of {kept} bytes are more than {KEPT_BYTES}"
        return None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source."""
        if refusal := self.legal(problem, schedule):
            raise IllegalScheduleError(f"{schedule}: {refusal}")
        assert isinstance(problem, ReduceProblem)
        assert isinstance(schedule, CpuReduceTile)
        nest = _RowNest(problem, schedule)
        return assemble(
            nest.printer,
            schedule,
            nest.lines(),
            mask_bits=8 * widest([o.expr for o in problem.program.outputs]),
            threads=schedule.threads,
            compiler=schedule.compiler,
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time of the bytes or of the arithmetic, whichever is longer, over the launch floor."""
        return streaming_bound_ns(problem.program, rates)

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return the time that a model expects."""
        assert isinstance(problem, ReduceProblem)
        assert isinstance(schedule, CpuReduceTile)
        again = len(stages(problem.reductions)) - 1 + problem.keeps
        gathered = 0 if contiguous(problem, reduced_loops(problem)[-1]) else problem.row_count * problem.length
        return streaming_ns(
            problem.program,
            rates,
            vector_bytes=schedule.vector_bytes,
            unroll=schedule.unroll,
            threads=schedule.threads,
            # passes after the first find the row in a cache; without row buffers they compute again
            passes=1.0 + again * (0.3 if schedule.keep else 0.6),
            gathered=gathered,
        )

    def serves(self, target: Target) -> bool:
        """Return whether the target is a CPU."""
        return target.kind == "cpu"


def row_loops(problem: ReduceProblem) -> tuple[Loop, ...]:
    """Return the loops over the rows, outer first; none for a single row."""
    return merged(problem.program, problem.rows, problem.program.extents)


def reduced_loops(problem: ReduceProblem) -> tuple[Loop, ...]:
    """Return the loops over the reduced axes, at least one."""
    return merged(problem.program, problem.reduced, problem.program.extents) or (Loop("", 1, frozenset()),)


def contiguous(problem: ReduceProblem, loop: Loop) -> bool:
    """Whether some load that varies along `loop` is contiguous there (or none varies, and nothing is lost)."""
    found = [x for x in loads(problem.program) if loop.covers & x.expr.axes]
    return not found or any(loop.axis not in x.offset.opaque and x.offset.factor(loop.axis) == 1 for x in found)


def varying(roots: Sequence[Expr], reduced: frozenset[str]) -> dict[str, Expr]:
    """Return the nodes that `roots` evaluate for each reduced element: reached without crossing a reduction."""
    out: dict[str, Expr] = {}
    stack = list(roots)
    while stack:
        e = stack.pop()
        if e.digest in out or e.row.kind is Kind.REDUCE or not e.axes & reduced:
            continue
        out[e.digest] = e
        if not is_load(e):
            stack.extend(e.args)
    return out


def kept_values(problem: ReduceProblem, keep: int) -> list[tuple[Expr, int]]:
    """Return (value, bytes of an element) of what more than one pass needs and an earlier one can store."""
    reduced = frozenset(problem.reduced)
    passes = [[a.body for a in group] for group in stages(problem.reductions)]
    passes += [[o.expr for o in problem.kept]] if problem.keeps else []
    out: dict[str, Expr] = {}
    known: dict[str, Expr] = {}
    for roots in passes:
        stack = list(roots)
        seen: set[str] = set()
        while stack:
            e = stack.pop()
            if e.digest in seen or e.row.kind is Kind.REDUCE or not e.axes & reduced or is_load(e) or not e.args:
                continue
            seen.add(e.digest)
            if e.digest in known and e.dtype is not DType.BOOL and (keep > 1 or _dear(e, reduced)):
                out[e.digest] = e
            else:
                stack.extend(e.args)
        known |= varying(roots, reduced)
    return [(e, e.dtype.accumulator.bytes) for e in out.values()]


def _dear(e: Expr, reduced: frozenset[str]) -> bool:
    return any(x.op in _DEAR for x in varying([e], reduced).values())


_Take = Callable[[list[Scope], Scope, Lanes, int], None]
_Block = tuple[list[str], list[str]]


class _RowNest:
    """The loop nest of one kernel while it is being printed."""

    def __init__(self, problem: ReduceProblem, schedule: CpuReduceTile) -> None:
        self.problem, self.schedule = problem, schedule
        self.printer = Printer(problem.program, lanes_of(problem, schedule.vector_bytes))
        self.rows, self.reduced = row_loops(problem), reduced_loops(problem)
        for i, x in enumerate(self.rows):
            self.printer.names[x.axis] = f"i{i}"
        self.kept = {e.digest: e for e, _ in kept_values(problem, schedule.keep)} if schedule.keep else {}
        self.scopes = [Scope()] + [Scope(x.covers) for x in self.rows]

    def lines(self) -> list[str]:
        """Return the body of the kernel."""
        self._level(0)
        return self.scopes[0].lines

    def _level(self, level: int) -> None:
        """Print what a row loop holds: the passes whose reductions vary over it, then the next loop or the output."""
        scopes = self.scopes[: level + 1]
        for group in stages(self.problem.reductions):
            here = [a for a in group if self._depth(a.node) == level]
            if here:
                self._pass(here, scopes)
        if level == len(self.rows):
            self._output(scopes)
            return
        self._level(level + 1)
        counter, extent = f"i{level}", self.rows[level].extent
        pragma = parallel(self.schedule.threads) if level == 0 else []
        inner = loop(f"for (pos {counter} = 0; {counter} < {extent}; {counter}++)", self.scopes[level + 1].lines)
        scopes[-1].lines += [*pragma, *inner]

    def _depth(self, node: Expr) -> int:
        return max((i for i, s in enumerate(self.scopes) if s.covers & node.axes), default=0)

    def _pass(self, group: Sequence[Accumulator], scopes: list[Scope]) -> None:
        """Print one pass over the reduced axes: accumulators, loops, and the folded results."""
        row, unroll, width = scopes[-1], self.schedule.unroll, self.printer.width
        stems = [self.printer.fresh("a") for _ in group]
        copies = [f"{stem}_{u}" for stem in stems for u in range(unroll)]
        of = {f"{stem}_{u}": a for stem, a in zip(stems, group, strict=True) for u in range(unroll)}
        buffers = self._buffers([a.body for a in group], row)
        long = elements(self.reduced) > _BLOCK_VECTORS * 2 * width * unroll and any(a.rounds for a in group)

        def take(value_scopes: list[Scope], last: Scope, lanes: Lanes, u: int) -> None:
            for stem, a in zip(stems, group, strict=True):
                x = self.printer.value(a.body, [*value_scopes, last], lanes)
                place = f"eq_iota_i64({lanes.position})"
                last.lines += a.take(f"{stem}_{u}", x, a.body.dtype, place, lanes.part)

        declare = [line for c in copies for line in of[c].declare(c)]
        if long:
            totals = {c: f"{c}_sum" for c in copies}
            row.lines += [line for c in copies for line in of[c].declare(totals[c])]
            flush = [line for c in copies for line in of[c].join(totals[c], c)]
            row.lines += self._loops(scopes, take, buffers, (declare, flush))
            copies = [totals[c] for c in copies]
            of = {f"{stem}_{u}_sum": a for stem, a in zip(stems, group, strict=True) for u in range(unroll)}
        else:
            row.lines += declare
            row.lines += self._loops(scopes, take, buffers, None)
        for e in buffers:
            self.printer.stored[e.digest] = self._loader(e)
        for i, a in enumerate(group):
            mine = copies[i * unroll : (i + 1) * unroll]
            for other in mine[1:]:
                row.lines += of[mine[0]].join(mine[0], other)
            row.names[a.node.digest] = self.printer.define(a.node.dtype, a.folded(mine[0]), row)

    def _loops(self, scopes: list[Scope], take: _Take, buffers: Sequence[Expr], block: _Block | None) -> list[str]:
        """Print the loops over the reduced axes around `take`; with `block`, the innermost in blocks between its two parts."""
        outer = [Scope(x.covers) for x in self.reduced[:-1]]
        inner, width, unroll = self.reduced[-1], self.printer.width, self.schedule.unroll
        names = [self.printer.fresh("k") for _ in self.reduced]
        for x, name in zip(self.reduced, names, strict=True):
            self.printer.names[x.axis] = name
        counter = names[-1]

        def body(position: str, part: str | None, u: int) -> list[str]:
            last, lanes = Scope(inner.covers), Lanes((inner,), position, part)
            take([*scopes, *outer], last, lanes, u)
            for e in buffers:
                value = self.printer.value(e, [*scopes, *outer, last], lanes)
                last.lines.append(f"eq_store_{REGISTER[e.dtype]}({self._slot(e, lanes)}, {value});")
            return last.lines

        span = _BLOCK_VECTORS * width * unroll
        if block is None:
            lines = list(vector_loop(counter, "0", inner.extent, width, unroll, body))
        elif inner.extent <= span:
            lines = loop("", [*block[0], *vector_loop(counter, "0", inner.extent, width, unroll, body), *block[1]])
        else:
            first, last = f"{counter}_first", f"{counter}_last"
            end = f"const pos {last} = {first} + {span} < {inner.extent} ? {first} + {span} : {inner.extent};"
            vectors = vector_loop(counter, first, last, width, unroll, body)
            header = f"for (pos {first} = 0; {first} < {inner.extent}; {first} += {span})"
            lines = loop(header, [end, *block[0], *vectors, *block[1]])
        for x, name, scope in reversed(list(zip(self.reduced[:-1], names[:-1], outer, strict=True))):
            lines = loop(f"for (pos {name} = 0; {name} < {x.extent}; {name}++)", [*scope.lines, *lines])
        return lines

    def _buffers(self, roots: Sequence[Expr], scope: Scope) -> list[Expr]:
        """Declare the row buffers of values that this pass is the first to compute; from the next pass on they are loaded."""
        here = varying(roots, frozenset(self.problem.reduced))
        out = [e for d, e in self.kept.items() if d in here and d not in self.printer.stored]
        size = elements(self.reduced) + self.printer.width
        for e in out:
            element = ELEMENT[REGISTER[e.dtype]]
            scope.lines.append(f"{element} kept_{e.digest[:8]}[{size}] __attribute__((aligned(64)));")
        return out

    def _loader(self, e: Expr) -> Callable[[Lanes], str]:
        return lambda lanes: f"eq_load_{REGISTER[e.dtype]}({self._slot(e, lanes)})"

    def _slot(self, e: Expr, lanes: Lanes) -> str:
        """Return the address of a kept value at the current place of the reduced loops."""
        terms, step = [lanes.position], self.reduced[-1].extent
        for x in reversed(self.reduced[:-1]):
            terms.append(f"{self.printer.names[x.axis]} * {step}")
            step *= x.extent
        return f"kept_{e.digest[:8]} + {' + '.join(terms)}"

    def _output(self, scopes: list[Scope]) -> None:
        self.printer.write(self.problem.lost, scopes, None)
        if not self.problem.keeps:
            return

        def write(value_scopes: list[Scope], last: Scope, lanes: Lanes, _: int) -> None:
            self.printer.write(self.problem.kept, [*value_scopes, last], lanes)

        scopes[-1].lines += self._loops(scopes, write, (), None)
