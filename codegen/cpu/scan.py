"""Cumulative reductions in one pass along their axis: vectors along it with what came before carried on, or columns side by side."""

from __future__ import annotations

from dataclasses import dataclass

from eqsat.codegen.cpu.accumulate import Accumulator
from eqsat.codegen.cpu.bounds import memory_bound_ns
from eqsat.codegen.cpu.loads import Loop, merged
from eqsat.codegen.cpu.loops import loop, parallel
from eqsat.codegen.cpu.model import shared
from eqsat.codegen.cpu.point import common_refusal
from eqsat.codegen.cpu.source import assemble
from eqsat.codegen.cpu.vector import Lanes, Printer, Scope, widest
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import Problem, ReduceProblem
from eqsat.codegen.scans import ScanForm, scan_form
from eqsat.codegen.targets import Target
from eqsat.errors import IllegalScheduleError

_JOIN = {"sum": "add", "prod": "mul", "max": "maximum", "min": "minimum"}


@dataclass(frozen=True, slots=True)
class CpuScanTile(Schedule):
    """A pass along the scanned axis.

    Parameters
    ----------
    vector_bytes : int
        Bytes of a vector of the widest type that occurs: 16, 32 or 64.
    unroll : int
        Vectors in one iteration: neighbours along the scan, or side by side where the outputs are contiguous across it.
    threads : int
        1, or 0 for all cores.
    compiler : int
        0 any, 1 the system's, 2 zig.
    """

    vector_bytes: int
    unroll: int
    threads: int
    compiler: int


class ScanFamily:
    """Cumulative reductions on the CPU."""

    name = "cpu-scan"
    schedules: tuple[type[Schedule], ...] = (CpuScanTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, ReduceProblem) or not isinstance(schedule, CpuScanTile):
            return f"expected a reduce problem and a CpuScanTile; got {problem.family} and {type(schedule).__name__}"
        found = scan_form(problem)
        if isinstance(found, str):
            return found
        if refusal := common_refusal(schedule.vector_bytes, schedule.unroll, schedule.threads, schedule.compiler):
            return refusal
        loops = _loops(problem, found)
        if schedule.unroll > 1 and loops[-1].extent < _lanes(found, schedule.vector_bytes) * schedule.unroll:
            return f"the innermost loop has {loops[-1].extent} elements: less than an unrolled iteration takes"
        return "one row alone is not shared among threads" if schedule.threads != 1 and len(loops) == 1 else None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source."""
        if refusal := self.legal(problem, schedule):
            raise IllegalScheduleError(f"{schedule}: {refusal}")
        assert isinstance(problem, ReduceProblem)
        assert isinstance(schedule, CpuScanTile)
        found = scan_form(problem)
        assert not isinstance(found, str)
        nest = _ScanNest(problem, found, schedule)
        mask_bits = 8 * widest([o.expr for o in found.elements.outputs])
        body = nest.lines()
        nest.printer.program = problem.program  # the head says what is computed
        return assemble(
            nest.printer,
            schedule,
            body,
            mask_bits=mask_bits,
            threads=schedule.threads,
            compiler=schedule.compiler,
            functions=nest.functions,
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time of the bytes over the launch floor."""
        return max(memory_bound_ns(problem.program, rates) / rates.cores, rates.launch_ns)

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return the time that a model expects: the bytes, and the steps from lane to lane where the scan runs along vectors."""
        assert isinstance(problem, ReduceProblem)
        assert isinstance(schedule, CpuScanTile)
        found = scan_form(problem)
        assert not isinstance(found, str)
        along = _loops(problem, found)[-1].axis == found.form.along
        lanes = _lanes(found, schedule.vector_bytes)
        each = lanes.bit_length() * 1.5 / lanes if along else 1.0 / lanes
        steps = problem.row_count * len(found.scans) * each * 0.5 * (1 + 0.5 / schedule.unroll)
        return shared(memory_bound_ns(problem.program, rates) * 1.1 + steps, schedule.threads, rates) + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether the target is a CPU."""
        return target.kind == "cpu"


def _lanes(found: ScanForm, vector_bytes: int) -> int:
    """Return the elements of a vector: as many as fit of the widest type that occurs (the mask of the scan never does)."""
    return vector_bytes // widest([o.expr for o in found.elements.outputs])


def _loops(problem: ReduceProblem, found: ScanForm) -> tuple[Loop, ...]:
    """Return the loops over the outputs in their order, the scanned axis a loop of its own."""
    rows, extents, along = problem.rows, problem.program.extents, found.form.along
    at = rows.index(along)
    before = merged(found.elements, rows[:at], extents)
    after = merged(found.elements, rows[at + 1 :], extents)
    return (*before, Loop(along, extents[along], frozenset([along])), *after)


class _ScanNest:
    """The loop nest of one kernel while it is being printed."""

    def __init__(self, problem: ReduceProblem, found: ScanForm, schedule: CpuScanTile) -> None:
        self.problem, self.found, self.schedule = problem, found, schedule
        self.printer = Printer(found.elements, _lanes(found, schedule.vector_bytes))
        loops = _loops(problem, found)
        self.along = next(x for x in loops if x.axis == found.form.along)
        self.inner = loops[-1]
        self.outer = [x for x in loops if x not in (self.along, self.inner)]
        for i, x in enumerate(self.outer):
            self.printer.names[x.axis] = f"i{i}"
        self.scopes = [Scope()] + [Scope(x.covers) for x in self.outer]
        self.sums = [Accumulator(x.node, x.operand, x.node.dtype) for x in found.scans]
        self.functions: list[str] = []

    def lines(self) -> list[str]:
        """Return the body of the kernel."""
        lines = self._along() if self.inner == self.along else self._across()
        for i, x in reversed(list(enumerate(self.outer))):
            pragma = parallel(self.schedule.threads) if i == 0 else []
            lines = [*pragma, *loop(f"for (pos i{i} = 0; i{i} < {x.extent}; i{i}++)", self.scopes[i + 1].lines + lines)]
        return self.scopes[0].lines + lines

    def _join(self, a: Accumulator, earlier: str, later: str) -> str:
        """Print what two neighbouring stretches add up to."""
        return f"eq_{_JOIN[a.node.op]}_{a.register}({earlier}, {later})"

    def _carries(self, count: int) -> list[str]:
        return [f"v{a.register} c{n}_{u} = {a.start};" for n, a in enumerate(self.sums) for u in range(count)]

    # -- the scan along vectors

    def _along(self) -> list[str]:
        """Print the loops over the vectors of a row, in the direction of the scan."""
        self.functions = [line for n in range(len(self.sums)) for line in self._within(n)]
        extent, width, unroll, suffix = self.along.extent, self.printer.width, self.schedule.unroll, self.found.form.suffix
        step, whole = width * unroll, extent // width * width
        split = whole // step * step
        parts: list[list[str]] = []
        if split:
            positions = [f"(p + {u * width})" if u else "p" for u in range(unroll)]
            body = [line for p in (positions[::-1] if suffix else positions) for line in self._vector(p, None)]
            head = (
                f"for (pos p = {split - step}; p >= 0; p -= {step})" if suffix else f"for (pos p = 0; p < {split}; p += {step})"
            )
            parts.append(loop(head, body))
        if whole > split:
            head = (
                f"for (pos p = {whole - width}; p >= {split}; p -= {width})"
                if suffix
                else f"for (pos p = {split}; p < {whole}; p += {width})"
            )
            parts.append(loop(head, self._vector("p", None)))
        if extent > whole:
            parts.append(loop("", [f"const pos p = {whole};", *self._vector("p", str(extent - whole))]))
        ordered = parts[::-1] if suffix else parts
        return [*self._carries(1), *(line for part in ordered for line in part)]

    def _within(self, n: int) -> list[str]:
        """Print a function that makes the lanes of a vector the running values of those lanes."""
        a, way = self.sums[n], "sooner" if self.found.form.suffix else "later"
        steps, by = [], 1
        while by < self.printer.width:
            steps.append(f"x = {self._join(a, f'eq_{way}{by}(x, none)', 'x')};")
            by *= 2
        head = f"static inline v{a.register} within{n}(v{a.register} x)"
        return loop(head, [f"const v{a.register} none = {a.start};", *steps, "return x;"])

    def _vector(self, position: str, part: str | None) -> list[str]:
        """Print what happens to one vector along the scan."""
        form, last = self.found.form, Scope(self.along.covers)
        lanes = Lanes((self.along,), position, part)
        way, end = ("sooner", "0") if form.suffix else ("later", f"{self.printer.width - 1}")
        for n, a in enumerate(self.sums):
            value = self.printer.value(a.body, [*self.scopes, last], lanes)
            x, v = self.printer.fresh("x"), f"v{a.register}"
            if part is not None:
                value = f"eq_where_{a.register}(eq_first({part}), {value}, {a.start})"
            last.lines.append(f"const {v} {x} = within{n}({value});")
            own = f"eq_{way}1({x}, {a.start})" if form.strict else x
            last.names[a.node.digest] = self.printer.define(a.node.dtype, self._join(a, f"c{n}_0", own), last)
            last.lines.append(f"c{n}_0 = {self._join(a, f'c{n}_0', f'eq_splat_{a.register}({x}[{end}])')};")
        self._write(last, lanes)
        return loop("", last.lines)

    def _write(self, last: Scope, lanes: Lanes) -> None:
        for o in self.problem.program.outputs:
            self.printer.store(self.printer.value(o.expr, [*self.scopes, last], lanes), last, lanes, o)

    # -- the scan across vectors

    def _across(self) -> list[str]:
        """Print the loops over blocks of columns, and along the scan inside."""
        extent, width, unroll = self.inner.extent, self.printer.width, self.schedule.unroll
        step, whole = width * unroll, extent // width * width
        split = whole // step * step
        out: list[str] = []
        if split:
            pragma = parallel(self.schedule.threads) if not self.outer else []
            out += [*pragma, *loop(f"for (pos p = 0; p < {split}; p += {step})", self._columns(unroll, None))]
        if whole > split:
            out += loop(f"for (pos p = {split}; p < {whole}; p += {width})", self._columns(1, None))
        if extent > whole:
            out += loop("", [f"const pos p = {whole};", *self._columns(1, str(extent - whole))])
        return out

    def _columns(self, count: int, part: str | None) -> list[str]:
        """Print the scan of `count` vectors of columns."""
        name, n = self.printer.fresh("q"), self.along.extent
        self.printer.names[self.along.axis] = name
        shared_scope = Scope(self.along.covers)
        lines: list[str] = []
        for u in range(count):
            last = Scope(self.along.covers | self.inner.covers)
            lanes = Lanes((self.inner,), f"(p + {u * self.printer.width})" if u else "p", part)
            scopes = [*self.scopes, shared_scope, last]
            before: dict[str, str] = {}
            for k, a in enumerate(self.sums):
                value = self.printer.value(a.body, scopes, lanes)
                before[a.node.digest] = self._take(k, a, u, value, last)
            last.names |= before
            for o in self.problem.program.outputs:
                self.printer.store(self.printer.value(o.expr, scopes, lanes), last, lanes, o)
            lines += loop("", last.lines)
        head = (
            f"for (pos {name} = {n - 1}; {name} >= 0; {name}--)"
            if self.found.form.suffix
            else f"for (pos {name} = 0; {name} < {n}; {name}++)"
        )
        return [*self._carries(count), *loop(head, [*shared_scope.lines, *lines])]

    def _take(self, k: int, a: Accumulator, u: int, value: str, last: Scope) -> str:
        """Print how a carry takes a vector in; return the name of the running value."""
        carry = f"c{k}_{u}"
        old = self.printer.define(a.node.dtype, carry, last) if self.found.form.strict else ""
        last.lines.append(f"{carry} = {self._join(a, carry, value)};")
        return old or self.printer.define(a.node.dtype, carry, last)
