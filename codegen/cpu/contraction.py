"""What all contraction kernels share: types, scratch memory, row statistics, and the epilogue over a block of sums."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence

from eqsat.codegen.cpu.accumulate import accumulator
from eqsat.codegen.cpu.loads import Loop, load_of, merged
from eqsat.codegen.cpu.loops import loop, parallel, vector_loop
from eqsat.codegen.cpu.vector import ELEMENT, REGISTER, Lanes, Printer, Scope, positions
from eqsat.codegen.printer import is_load, read_indices
from eqsat.codegen.problem import Contract
from eqsat.ir import Expr
from eqsat.types import DType, promote

_ALIGNMENT = 64
_NONE = (Loop("", 1, frozenset()),)


def sum_dtype(problem: Contract) -> DType:
    """Return the type in which products are formed and added: f32 for 16-bit floats, i64 for counts of truth values."""
    first, *others = (c.node.dtype for p in problem.parts for c in p.contractions)
    out = first
    for dtype in others:
        out = promote(out, dtype)
    return DType.I32 if out is DType.BOOL else out.accumulator


class ContractNest:
    """A contraction kernel while it is being printed.

    It prints one part of the problem at a time, `problem`; `parts` gives the nests of all, which share what is printed outside
    the loops over columns. `batch`, `m`, `n`, `k` are the merged loops of each group of axes. `element` is the C type of packed operands and
    sums, `vector` the vector type of the sums (unsigned for integers, which wrap).
    """

    def __init__(self, problem: Contract, lanes: int) -> None:
        self._parts = problem.parts
        self.problem = lead = problem.parts[0]
        self.printer = Printer(problem.program, lanes)
        self.batch = merged(problem.program, lead.batch, problem.program.extents)
        self.m, self.n, self.k = map(self._loops, (lead.m, lead.n, lead.k))
        self.dtype = sum_dtype(problem)
        self.register = REGISTER[self.dtype]
        self.element = ELEMENT[self.register]
        self.bytes = self.dtype.bytes
        self.vector = f"v{self.register.replace('i', 'u')}"
        self.scalar = f"unsigned {self.element}" if self.register[0] == "i" else self.element
        self.outer = [Scope()] + [Scope(x.covers) for x in self.batch]
        for i, x in enumerate(self.batch):
            self.printer.names[x.axis] = f"g{i}"
        self._arrays: dict[str, tuple[str, int]] = {}  # C type and bytes of each scratch array

    def _loops(self, axes: tuple[str, ...]) -> tuple[Loop, ...]:
        return merged(self.printer.program, axes, self.printer.program.extents) or _NONE

    @property
    def parts(self) -> Iterator[ContractNest]:
        """The nests of the parts, which run one after another."""
        for p in self._parts:
            nest = copy.copy(self)
            nest.problem, nest.m, nest.n = p, self._loops(p.m), self._loops(p.n)
            yield nest

    @property
    def workspace_bytes(self) -> int:
        """Bytes of scratch memory asked for so far, with room to align it."""
        total = sum(size for _, size in self._arrays.values())
        return total + _ALIGNMENT if total else 0

    def scratch(self, name: str, count: int, element: str, size: int) -> None:
        """Reserve an array in scratch memory; parts that ask for the same name use it one after another."""
        _, before = self._arrays.get(name, (element, 0))
        self._arrays[name] = element, max(before, -(-max(count, 1) * size // _ALIGNMENT) * _ALIGNMENT)

    def wrapped(self, body: Sequence[str], *, pragma: Sequence[str] = ()) -> list[str]:
        """Return the kernel's body: scratch pointers, and the batch loops around `body` (printed into the inner scope)."""
        lines = [*self.outer[-1].lines, *body]
        for i, x in reversed(list(enumerate(self.batch))):
            head = list(pragma) if i == 0 else []
            lines = [*self.outer[i].lines, *head, *loop(f"for (pos g{i} = 0; g{i} < {x.extent}; g{i}++)", lines)]
        base = "char *const base = (char *)(((__UINTPTR_TYPE__)workspace + 63) & ~(__UINTPTR_TYPE__)63);"
        starts = itertools.accumulate((size for _, size in self._arrays.values()), initial=0)
        pointers = [
            f"{element} *restrict const {name} = ({element} *)(base + {start});"
            for (name, (element, _)), start in zip(self._arrays.items(), starts, strict=False)
        ]
        return [*([base] if pointers else []), *pointers, *lines]

    def place(self, loops: Sequence[Loop], position: str) -> None:
        """Set the names of a group's axes for a scalar position."""
        self.printer.names |= positions(loops, position)

    def along(self, e: Expr, loops: Sequence[Loop]) -> bool:
        """Whether the largest read of `e` is contiguous along the innermost of `loops`."""
        buffers = {i.name: i for i in self.problem.program.inputs}
        found = [load_of(x, buffers[read_indices(x)[0]]) for x in e.walk() if is_load(x)]
        covers = frozenset().union(*(x.covers for x in [*self.m, *self.n, *self.k]))
        found = [x for x in found if x.expr.axes & covers]
        if not found:
            return True
        largest = max(found, key=lambda x: x.expr.type.elements)
        return loops[-1].axis not in largest.offset.opaque and largest.offset.factor(loops[-1].axis) == 1

    def statistics(self, threads: int) -> list[str]:
        """Print the row statistics of the left operand into scratch arrays `stat0`, `stat1`, …, one pass for each."""
        rows = self.problem.extent(self.problem.m)
        out: list[str] = []
        for i, node in enumerate(self.problem.statistics):
            a = accumulator(node)
            register = spilled(a.register)
            self.scratch(f"stat{i}", rows, ELEMENT[register], int(register[1:]) // 8)
            self.place(self.m, "row")
            scope = Scope(frozenset().union(*(x.covers for x in self.m)))
            scope.lines += a.declare("s")

            def take(position: str, part: str | None, _: int, row: Scope = scope) -> list[str]:
                last, lanes = Scope(self._covers(self.k)), Lanes(self.k, position, part)
                x = self.printer.value(a.body, [*self.outer, row, last], lanes)  # noqa: B023 - called before the next a
                return [*last.lines, *a.take("s", x, a.body.dtype, "", part)]  # noqa: B023

            lines = list(vector_loop("k", "0", self.problem.extent(self.problem.k), self.printer.width, 1, take))
            scope.lines += [*lines, f"stat{i}[row] = ({spill(a.register, a.folded('s'))})[0];"]
            out += [*parallel(threads), *loop(f"for (pos row = 0; row < {rows}; row++)", scope.lines)]
        return out

    @staticmethod
    def _covers(loops: Sequence[Loop]) -> frozenset[str]:
        return frozenset().union(*(x.covers for x in loops))

    def epilogue(self, sums: Callable[[int, str], str], first: str, stop: str | int, row: str) -> list[str]:
        """Print the output for one row and the columns from `first` to `stop`.

        `sums(c, position)` is the address of the sums of contraction `c` at the column `position`.
        """
        self.place(self.m, row)
        scope = Scope(self._covers(self.m))
        for i, node in enumerate(self.problem.statistics):
            a = accumulator(node)
            register = spilled(a.register)
            text = unspill(a.register, f"eq_splat_{register}(stat{i}[{row}])")
            scope.names[node.digest] = self.printer.define(node.dtype, text, scope)

        def loader(c: int, dtype: DType) -> Callable[[Lanes], str]:
            def load(lanes: Lanes) -> str:
                text = f"eq_load_{self.register}({sums(c, lanes.position)})"
                return text if REGISTER[dtype] == self.register else f"__builtin_convertvector({text}, v{REGISTER[dtype]})"

            return load

        for c, contraction in enumerate(self.problem.contractions):
            self.printer.stored[contraction.node.digest] = loader(c, contraction.node.dtype)

        def body(position: str, part: str | None, _: int) -> list[str]:
            last, lanes = Scope(self._covers(self.n)), Lanes(self.n, position, part)
            value = self.printer.value(self.problem.output.expr, [*self.outer, scope, last], lanes)
            self.printer.store(value, last, lanes, self.problem.output)
            return last.lines

        lines = list(vector_loop("column", first, stop, self.printer.width, 1, body))
        return [*scope.lines, *lines]


def side_by_side(bodies: Sequence[list[str]]) -> list[str]:
    """Return what the parts do, one after another; each in a block of its own if there are several."""
    return bodies[0] if len(bodies) == 1 else [line for body in bodies for line in loop("", body)]


def spilled(register: str) -> str:
    """Return the register type whose elements hold `register` in an array (masks as i32)."""
    return "i32" if register == "m" else register


def spill(register: str, value: str) -> str:
    """Return a value as a vector of array elements."""
    return f"eq_bits32({value})" if register == "m" else value


def unspill(register: str, value: str) -> str:
    """Return array elements as a value."""
    return f"eq_mask32({value})" if register == "m" else value
