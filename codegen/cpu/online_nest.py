"""The loop nest of a dependent fold: tiles of rows by keys, and the four things that happen to each.

For every tile of rows, keys come in tiles: (1) scores: a small contraction of packed operands; (2) masks and the rest of the
score's expression, and each row's maximum; (3) weights e^(s − shift), their sums, and how far old sums are to be scaled; (4) the
weighted values: a small contraction that scales what is there on the way. The rows' maxima, sums and values stay on the stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eqsat.codegen.cpu.loads import Loop, load_of, merged
from eqsat.codegen.cpu.loops import loop, vector_loop
from eqsat.codegen.cpu.online_values import Operand, Values, covers, register_tile
from eqsat.codegen.cpu.pack import pack
from eqsat.codegen.cpu.vector import ELEMENT, REGISTER, Lanes, Printer, Scope, converted, positions
from eqsat.codegen.masks import ALWAYS, NEVER, Box, spans, unmasked, vanishes
from eqsat.codegen.online import Accumulated, OnlineProblem, outer_reductions
from eqsat.codegen.printer import is_load, read_indices
from eqsat.ir import Expr, Output
from eqsat.types import DType

_NONE = (Loop("", 1, frozenset()),)
_FEW = 4  # rows that share their keys, at most, for which packing the keys would cost more than it saves
_LOWEST = {DType.F32: -3e38, DType.F64: -1.7e308}  # below every score that is not masked out: shifts start here


@dataclass(frozen=True, slots=True)
class Tiling:
    """Extents of the tiles: rows and keys of one, and the register tile (rows by vectors) of both contractions."""

    rows: int
    keys: int
    tile_rows: int
    vectors: int


def groups(problem: OnlineProblem) -> list[tuple[tuple[str, ...], list[Accumulated]]]:
    """Return the accumulators with value axes, those over the same axes together."""
    out: dict[tuple[str, ...], list[Accumulated]] = {}
    for a in problem.wide:
        out.setdefault(a.axes, []).append(a)
    return list(out.items())


class OnlineNest:
    """A dependent fold while it is being printed."""

    def __init__(self, problem: OnlineProblem, tiling: Tiling, lanes: int, threads: int) -> None:
        self.problem, self.tiling, self.threads = problem, tiling, threads
        self.printer = Printer(problem.program, lanes)
        extents = problem.program.extents

        def loops(axes: tuple[str, ...]) -> tuple[Loop, ...]:
            return merged(problem.program, axes, extents) or _NONE

        self.batch = merged(problem.program, problem.batch, extents)
        self.m, self.over, self.d = loops(problem.m), loops(problem.over), loops(problem.d)
        self.register = REGISTER[problem.dtype]
        self.element = ELEMENT[self.register]
        self.scopes = [Scope(), Scope(covers(self.batch))]
        self.values = [Values(self, n, loops(axes), found) for n, (axes, found) in enumerate(groups(problem))]
        self.narrow = [a for a in problem.accumulators if not a.axes]
        self.lowest = max(_LOWEST[problem.dtype], problem.floor)
        for i, x in enumerate(self.batch):
            self.printer.names[x.axis] = f"g{i}"

    # -- pieces ----------------------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Lanes of a vector."""
        return self.printer.width

    @property
    def keys(self) -> int:
        """Keys of a tile, at most as many as there are, in whole panels."""
        step = self.width * (self.tiling.vectors if self.problem.contraction else 1)
        return -(-min(self.tiling.keys, self.problem.extent(self.problem.over)) // step) * step

    @property
    def rows(self) -> int:
        """Rows of a tile, in whole register tiles."""
        step = self.tiling.tile_rows
        return -(-min(self.tiling.rows, self.problem.extent(self.problem.m)) // step) * step

    def along(self, e: Expr, loops: Sequence[Loop]) -> bool:
        """Whether the largest read of `e` is contiguous along the innermost of `loops`."""
        buffers = {i.name: i for i in self.problem.program.inputs}
        found = [load_of(x, buffers[read_indices(x)[0]]) for x in e.walk() if is_load(x)]
        if not found:
            return True
        largest = max(found, key=lambda x: x.expr.type.elements)
        return loops[-1].axis not in largest.offset.opaque and largest.offset.factor(loops[-1].axis) == 1

    def in_type(self, e: Expr, scopes: Sequence[Scope], lanes: Lanes | None) -> str:
        """Print the value of `e` in the type in which the fold computes."""
        return converted(self.printer.value(e, scopes, lanes), e.dtype, self.problem.dtype)

    def array(self, name: str, count: int) -> str:
        """Declare an array on the stack."""
        return f"{self.element} {name}[{count}] __attribute__((aligned(64)));"

    # -- the kernel -------------------------------------------------------------------------------------------------

    def lines(self) -> list[str]:
        """Return the body of the kernel: one task for each tile of rows of each batch."""
        batch, m, _, _, _ = self.problem.shape
        step = min(self.tiling.rows, m)
        tiles = -(-m // step)
        task = [
            f"const pos row_first = task % {tiles} * {step};",
            f"const pos rows = {m} - row_first < {step} ? {m} - row_first : {step};",
        ]
        place = f"task / {tiles}"
        for i, text in enumerate(positions(self.batch, f"({place})").values() if self.batch else ()):
            task.append(f"const pos g{i} = {text};")
        body = self._task()
        lines = [*task, *self.scopes[1].lines, *body]
        count = batch * tiles
        # causal masks make tiles of rows unequal, so threads take the next one that is left
        pragma = [] if self.threads == 1 else ["#pragma omp parallel for schedule(dynamic)"]
        return [*self.scopes[0].lines, *pragma, *loop(f"for (pos task = 0; task < {count}; task++)", lines)]

    def _task(self) -> list[str]:
        """Print what happens for one tile of rows."""
        lines = [self.array("top", self.rows), self.array("rebase", self.rows)]
        lines += [self.array(f"sum{i}", self.rows) for i in range(len(self.narrow))]
        lines += [line for v in self.values for line in v.declare()]
        start = ["top[r] = -__builtin_inf();", "rebase[r] = 0;", *(f"sum{i}[r] = 0;" for i in range(len(self.narrow)))]
        lines += loop(f"for (pos r = 0; r < {self.rows}; r++)", start)
        lines += self._left()
        lines += [self.array("dots", self.rows * self.keys)]
        lines += (
            [self.array("weights", self.rows * self.keys)] if self._needs_dots() else [f"{self.element} *const weights = dots;"]
        )
        extent = self.problem.extent(self.problem.over)
        head = f"for (pos key_first = 0; key_first < {extent}; key_first += {self.keys})"
        lines += loop(head, self._tile(extent))
        return [*lines, *self._epilogue()]

    def _needs_dots(self) -> bool:
        """Whether a value reads the contraction itself, not only the finished score."""
        c = self.problem.contraction
        if not c:
            return False
        stack, seen = [a.value for a in self.narrow], set()
        while stack:
            e = stack.pop()
            if e.digest == c.node.digest:
                return True
            if e != self.problem.score and e.digest not in seen:
                seen.add(e.digest)
                stack.extend(e.args)
        return False

    def _tile(self, extent: int) -> list[str]:
        """Print what happens to one tile of keys."""
        lines = [f"const pos keys = {extent} - key_first < {self.keys} ? {extent} - key_first : {self.keys};"]
        box, names = self._box()
        lines += names
        nothing = vanishes(self.problem.score, box)
        if nothing not in (ALWAYS, NEVER):
            lines.append(f"if ({nothing}) continue;")
        lines += self._dots()
        condition, plain = unmasked(self.problem.score, box)
        if condition == NEVER:
            lines += self._scores(self.problem.score)
        elif condition == ALWAYS:
            lines += self._scores(plain)
        else:
            lines += loop(f"if ({condition})", self._scores(plain))
            lines += loop("else", self._scores(self.problem.score))
        lines += self._weights()
        return lines + [line for v in self.values for line in v.accumulate()]

    def _box(self) -> tuple[Box, list[str]]:
        """Return the box of the tile, and the lines that name the ends of its spans."""
        span = {a: (f"g{i}", f"g{i}") for i, x in enumerate(self.batch) for a in [x.axis]}
        lines: list[str] = []
        iotas = {e.attrs[0] for e in self.problem.score.walk() if e.op == "iota"}
        for loops, first, count in ((self.m, "row_first", "rows"), (self.over, "key_first", "keys")):
            if not any(x.axis in iotas for x in loops):
                continue
            found, named = spans([(x.axis, x.extent) for x in loops], first, f"{first} + {count} - 1", f"{first}_", "pos")
            span |= found
            lines += named
        fixed = covers(self.batch)

        def uniform(e: Expr) -> str | None:
            if not e.axes <= fixed or any(x.row.name == "iota" for x in e.walk()) or outer_reductions([e]):
                return None
            return f"({self.printer.value(e, self.scopes, None)})[0]"

        return Box(span, self.problem.program.extents, uniform), lines

    # -- scores ----------------------------------------------------------------------------------------------------

    def _left(self) -> list[str]:
        """Evaluate the rows' operand of the contraction, row by row; rows that are missing are 0."""
        c = self.problem.contraction
        if not c:
            return []
        size = self.problem.extent(self.problem.d)
        self.printer.names |= positions(self.m, "(row_first + r)")
        row = Scope(covers(self.m))

        def body(position: str, part: str | None, _: int) -> list[str]:
            last = Scope(covers(self.d))
            value = self.in_type(c.a, [*self.scopes, row, last], Lanes(self.d, position, part))
            tail = "" if part is None else f", {part}"
            last.lines.append(
                f"eq_store{'_part' if tail else ''}_{self.register}(left + r * {size} + {position}, {value}{tail});"
            )
            return last.lines

        vectors = list(vector_loop("k", "0", size, self.width, 1, body))
        clear = f"if (rows < {self.rows}) memset(left + rows * {size}, 0, ({self.rows} - rows) * {size} * sizeof *left);"
        return [
            self.array("left", self.rows * size),
            *loop("for (pos r = 0; r < rows; r++)", [*row.lines, *vectors]),
            clear,
            *([] if self._inner else [self.array("right", size * self.keys)]),
        ]

    @property
    def _inner(self) -> bool:
        """Whether scores are inner products along d: few rows, and keys that lie along d in memory, are not worth packing."""
        c = self.problem.contraction
        return c is not None and self.rows <= _FEW and not self.along(c.b, self.over) and self.along(c.b, self.d)

    def _dots(self) -> list[str]:
        """Print the contraction of the tile."""
        c = self.problem.contraction
        if not c:
            return []
        size, panel = self.problem.extent(self.problem.d), self.width * self.tiling.vectors
        if self._inner:
            return self._inner_products(c.b, size)
        lines = [f"const pos k_first = 0, kc = {size};"]
        lines += pack(Operand(self, self.d), c.b, self.over, panel, "key_first", "keys", "right")
        step = self.tiling.tile_rows
        call = f"tile{self.tiling.vectors}({size}, left + i * {size}, {size}, right + j * {size}, {panel}, dots + i * {self.keys} + j, {self.keys}, 0);"
        inner = loop(f"for (pos i = 0; i < rows; i += {step})", [call])
        return [*loop("", lines), *loop(f"for (pos j = 0; j < keys; j += {panel})", inner)]

    def _inner_products(self, b: Expr, size: int) -> list[str]:
        """Print the contraction key by key, each key once for all rows."""
        r, v = self.register, f"v{self.register}"
        self.printer.names |= positions(self.over, "(key_first + c)")
        key = Scope(covers(self.over))

        def body(position: str, part: str | None, _: int) -> list[str]:
            last = Scope(covers(self.d))
            value = self.in_type(b, [*self.scopes, key, last], Lanes(self.d, position, part))
            last.lines.append(f"const {v} x = {value};")
            for i in range(self.rows):
                at = f"left + {i * size} + {position}"
                if part is None:
                    last.lines.append(f"dot{i} += eq_load_{r}({at}) * x;")
                else:
                    product = f"eq_load_part_{r}({at}, {part}) * x"
                    last.lines.append(f"dot{i} += eq_where_{r}(eq_first({part}), {product}, ({v}){{0}});")
            return last.lines

        vectors = list(vector_loop("k", "0", size, self.width, 1, body))
        start = [f"{v} dot{i} = {{0}};" for i in range(self.rows)]
        end = [f"dots[{i * self.keys} + c] = eq_fold_add_{r}(dot{i})[0];" for i in range(self.rows)]
        return loop("for (pos c = 0; c < keys; c++)", [*key.lines, *start, *vectors, *end])

    def _dots_at(self, lanes: Lanes) -> str:
        return f"eq_load_{self.register}(dots + r * {self.keys} + ({lanes.position} - key_first))"

    def _each_key(self, visit: Callable[[Scope, Lanes, str], None]) -> list[str]:
        """Print a loop of vectors over the keys of the tile; `visit` gets the offset in the tile as text too."""

        def body(position: str, part: str | None, _: int) -> list[str]:
            last = Scope(covers(self.over))
            visit(last, Lanes(self.over, f"(key_first + {position})", part), position)
            return last.lines

        return list(vector_loop("c", "0", "keys", self.width, 1, body))

    def _scores(self, score: Expr) -> list[str]:
        """Print the finished scores of each row and their maximum, which joins that of the tiles before."""
        r = self.register
        self.printer.names |= positions(self.m, "(row_first + r)")
        row = Scope(covers(self.m))
        c = self.problem.contraction
        if c:
            own = c.node.dtype
            self.printer.stored[c.node.digest] = lambda lanes: converted(self._dots_at(lanes), self.problem.dtype, own)

        def visit(last: Scope, lanes: Lanes, offset: str) -> None:
            value = self.in_type(score, [*self.scopes, row, last], lanes)
            if lanes.part is not None:
                value = f"eq_where_{r}(eq_first({lanes.part}), {value}, eq_splat_{r}(-__builtin_inf()))"
            last.lines += [
                f"const v{r} s = {value};",
                f"eq_store_{r}(weights + r * {self.keys} + {offset}, s);",
                f"most = eq_maximum_{r}(s, most);",
            ]

        vectors = self._each_key(visit)
        start = f"v{r} most = eq_splat_{r}(-__builtin_inf());"
        body = [start, *row.lines, *vectors]
        fold = [
            f"const v{r} before = eq_splat_{r}(top[r]), now = eq_maximum_{r}(eq_fold_maximum_{r}(most), before);",
            f"const v{r} shift = {self._shift('now')}, old = {self._shift('before')};",
            "top[r] = now[0];",
            f"rebase[r] = eq_exp_{r}(old - shift)[0];",
        ]
        return loop("for (pos r = 0; r < rows; r++)", [*body, *fold])

    def _shift(self, top: str) -> str:
        """Return what exponents subtract, given a maximum: never −inf, so that no difference of two of them is NaN."""
        return f"eq_maximum_{self.register}({top}, eq_splat_{self.register}({_number(self.lowest, self.problem.dtype)}))"

    # -- weights ---------------------------------------------------------------------------------------------------

    def _weights(self) -> list[str]:
        """Print the weights of each row and the sums that are one number for each row."""
        r = self.register
        self.printer.names |= positions(self.m, "(row_first + r)")
        row = Scope(covers(self.m))
        row.lines += [f"const v{r} shift = {self._shift(f'eq_splat_{r}(top[r])')};"]
        row.lines += [f"v{r} part{i} = {{0}};" for i in range(len(self.narrow))]

        def visit(last: Scope, lanes: Lanes, offset: str) -> None:
            at = f"weights + r * {self.keys} + {offset}"
            last.lines += [f"const v{r} s = eq_load_{r}({at}), w = eq_exp_{r}(s - shift);"]
            last.lines += [f"eq_store_{r}({at}, w);"] if self.values else []
            last.names[self.problem.score.digest] = converted("s", self.problem.dtype, self.problem.score.dtype)
            for i, a in enumerate(self.narrow):
                last.lines.append(f"part{i} += {self._product(a, last, lanes, row)};")

        vectors = self._each_key(visit)
        sums = [f"sum{i}[r] = sum{i}[r] * rebase[r] + eq_fold_add_{r}(part{i})[0];" for i in range(len(self.narrow))]
        return loop("for (pos r = 0; r < rows; r++)", [*row.lines, *vectors, *sums])

    def _product(self, a: Accumulated, last: Scope, lanes: Lanes, row: Scope) -> str:
        if a.value.op == "const" and a.value.attrs[0] == 1:
            return "w"
        product = f"w * {self.in_type(a.value, [*self.scopes, row, last], lanes)}"
        if lanes.part is None:
            return product
        return f"eq_where_{self.register}(eq_first({lanes.part}), {product}, (v{self.register}){{0}})"

    # -- results ---------------------------------------------------------------------------------------------------

    def _epilogue(self) -> list[str]:
        """Print the outputs of the tile of rows."""
        r, dtype = self.register, self.problem.dtype
        self.printer.names |= positions(self.m, "(row_first + r)")
        row = Scope(covers(self.m))
        row.lines.append(f"const v{r} top_r = eq_splat_{r}(top[r]);")
        shift = "top_r" if self.problem.floor == -math.inf else self._shift("top_r")
        # NaN where a whole row is masked out, as (−inf) − (−inf) is; else 0
        row.lines.append(f"const v{r} nan = {shift} - {shift};")
        for e in outer_reductions(o.expr for o in self.problem.program.outputs):
            if e.op == "max":
                row.names[e.digest] = self.printer.define(e.dtype, converted("top_r", dtype, e.dtype), row)
        for i, a in enumerate(self.narrow):
            text = converted(f"(eq_splat_{r}(sum{i}[r]) + nan)", dtype, a.node.dtype)
            row.names[a.node.digest] = self.printer.define(a.node.dtype, text, row)
        used = {v.axes: v for v in self.values}
        lines: list[str] = []
        plain: list[Output] = []
        for o in self.problem.program.outputs:
            own = next((v for axes, v in used.items() if set(axes) & o.expr.axes), None)
            if own is None:
                plain.append(o)
            else:
                lines += own.write(o, row)
        self.printer.write(plain, [*self.scopes, row], None)
        return loop("for (pos r = 0; r < rows; r++)", [*row.lines, *lines])

    def functions(self) -> list[str]:
        """Return the register tiles that the kernel calls, before it."""
        wanted = {self.tiling.vectors} if self.problem.contraction and not self._inner else set()
        return [line for v in sorted(wanted | {v.vectors for v in self.values}) for line in register_tile(self, v)]


def _number(value: float, dtype: DType) -> str:
    return repr(value) + ("f" if dtype is DType.F32 else "")
