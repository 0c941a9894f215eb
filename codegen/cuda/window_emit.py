"""Printing a window kernel: the patches that a thread loads, the reductions over its windows, the outputs of its tile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from eqsat.codegen.cuda.emit import Scope, assemble, parameters, register_type, stored_type
from eqsat.codegen.cuda.loads import AxisNames, LoopAxis, axis_names, index_type, iota_text, print_steps, row_major, split_index
from eqsat.codegen.cuda.reduce_print import indent
from eqsat.codegen.cuda.shorten import call_short, short_in_all
from eqsat.codegen.cuda.window_patch import Access, Patch, patches
from eqsat.codegen.cuda.window_shape import Line, WindowShape
from eqsat.codegen.kernel import KernelSource, Schedule
from eqsat.ir import Expr

HINTS = ("PLAIN", "STREAMING")  # of the stores: the second leaves the cache to the input, whose rows are read again


@dataclass(frozen=True, slots=True)
class WindowTile(Schedule):
    """A thread makes `rows` positions along the strip by `columns` neighbours; blocks of `threads`; `hint` for the stores."""

    rows: int
    columns: int
    threads: int
    hint: int


class WindowPrinter:
    """Prints a window kernel."""

    def __init__(self, shape: WindowShape, s: WindowTile) -> None:
        self.shape, self.s = shape, s
        self.program = shape.problem.program
        self.extents = self.program.extents
        self.names = AxisNames(axis_names(shape.loops))
        self.patches = patches(shape, s.rows, s.columns)
        self.sizes = {shape.strip: s.rows, shape.inner: s.columns}
        self.window = {a: f"k{n}" for n, a in enumerate(shape.problem.reduced)}
        self.within = {
            **self.window,
            **({shape.inner: "j"} if shape.inner else {}),
            **({shape.strip: "i"} if shape.strip else {}),
        }
        self.fields = {x.windowed.load.expr.digest: self._field(n, x) for n, x in enumerate(self.patches)}
        self.short = short_in_all(self.program.outputs)

    def kernel(self) -> KernelSource:
        """Return the source."""
        s, tiles = self.s, self._tiles()
        total = math.prod(t.extent for t in tiles)
        kind = "u32" if total < 2**31 else "u64"
        lines = [
            f"const {kind} tile = ({kind})blockIdx.x * {s.threads} + threadIdx.x;",
            f"if (tile >= {total}u) return;",
            *split_index("tile", tiles, total),
            *(
                f"const {index_type(self.extents[a])} {self.names[a]} = {self.names[a]}_tile * {n};"
                for a, n in self.sizes.items()
                if a
            ),
        ]
        for n, x in enumerate(self.patches):
            lines += self._fetch(n, x)
        lines += [*self._accumulate(), *self._outputs()]
        text = [
            f'extern "C" __global__ void __launch_bounds__({s.threads}) eqsat_kernel({parameters(self.program)}) {{',
            *indent(lines),
            "}",
        ]
        return assemble(
            self.program,
            s,
            "window",
            "\n".join(text) + "\n",
            parts=("prelude.cuh", "math.cuh", "reduce.cuh"),
            grid=(max(-(-total // s.threads), 1), 1, 1),
            block=s.threads,
        )

    def _tiles(self) -> list[LoopAxis]:
        """Return the loops with those of the tile counted in tiles."""
        out = []
        for loop in self.shape.loops:
            size = self.sizes.get(loop.axes[0]) if len(loop.axes) == 1 else None
            out.append(LoopAxis(f"{loop.var}_tile", loop.axes, -(-loop.extent // size)) if size else loop)
        return out

    def _corner(self, line: Line) -> tuple[int, int]:
        """Return the least and greatest index at the corners of tiles, the last of which may reach beyond its axis."""
        corners = dict.fromkeys(self.window, 1)
        for a, n in self.sizes.items():
            if a:
                corners[a] = (-(-self.extents[a] // n) - 1) * n + 1
        return line.bounds({**self.extents, **corners})

    def _guard(self, n: int, d: int, line: Line, places: Sequence[int], at: str) -> tuple[list[str], str]:
        """Return a statement that names the corner's index, and the condition that place `at` of `places` is inside dimension `d`."""
        low, high = self._corner(line)
        below, above = low + min(places) < 0, high + max(places) >= line.extent
        if not below and not above:
            return [], ""
        terms = [f"{self.names[a]} * {f}" if f != 1 else self.names[a] for a, f in line.factors if a not in self.window]
        name = f"b{n}_{d}"
        where = f"{name} + {at}" if at != "0" else name
        condition = (
            f"(u32)({where}) < {line.extent}u" if below and above else f"{where} >= 0" if below else f"{where} < {line.extent}"
        )
        return [f"const int {name} = {' + '.join([*terms, str(line.offset)])};"], condition

    def _fetch(self, n: int, x: Patch) -> list[str]:
        """Print the loads of a patch into `x<n>`."""
        load, lines, strides = x.windowed.load, x.windowed.lines, x.windowed.strides
        ctype, varying = register_type(load.dtype), x.varying
        firsts = [p[0] for p in x.places]
        offset = load.offset + sum(f * s for f, s in zip(firsts, strides, strict=True))
        at = print_steps(dict(load.steps or ()), offset, self.shape.loops, load.buffer.elements)
        out = [f"const {stored_type(load.dtype)}* const p{n} = {load.parameter} + ({at});"]
        if not lines:
            return [*out, f"const {ctype} x{n} = load_one(p{n});"]
        out.append(f"{ctype} x{n}{''.join(f'[{x.extent(d)}]' for d in varying)};")
        guards: list[str] = []
        opened: list[str] = []
        for d in range(len(lines) - 1):
            y = f"y{d}"
            many = d in varying
            position = f"({firsts[d]} + {y})" if many else str(firsts[d])
            named, condition = self._guard(n, d, lines[d], x.places[d], position)
            out += named
            guards += [condition] if condition else []
            if many:
                sparse = len(x.places[d]) < x.extent(d)
                bits = sum(1 << (p - firsts[d]) for p in x.places[d])
                opened.append(
                    f"UNROLL for (int {y} = 0; {y} < {x.extent(d)}; ++{y})" + (f" if ({bits:#x}ull >> {y} & 1)" if sparse else "")
                )
        named = self._guard(n, len(lines) - 1, lines[-1], [p for a in x.accesses for p in (a.first, a.first + a.count - 1)], "0")[
            0
        ]
        rows = "".join(f"[y{d}]" for d in varying if d < len(lines) - 1)
        jump = " + ".join([f"y{d} * {strides[d]}" for d in varying if d < len(lines) - 1])
        body = [line for a in x.accesses for line in self._access(n, x, a, guards, rows, jump)]
        return [
            *out,
            *named,
            *opened[:-1],
            *(f"{head} {{" for head in opened[-1:]),
            *indent(body, 2 * bool(opened)),
            *(["}"] if opened else []),
        ]

    def _access(self, n: int, x: Patch, a: Access, guards: list[str], rows: str, jump: str) -> list[str]:
        """Print one load instruction and where its elements go."""
        load, d = x.windowed.load, len(x.windowed.lines) - 1
        first = x.places[d][0]
        _, condition = self._guard(n, d, x.windowed.lines[d], [a.first], str(a.first))
        inside = " && ".join([*guards, *([condition] if condition else [])])
        where = " + ".join([f"p{n}", *([jump] if jump else []), *([str(a.first - first)] if a.first != first else [])])

        def kept(p: int) -> str:
            return f"x{n}{rows}" + (f"[{p - first}]" if d in x.varying else "")

        if a.count == 1:
            get = f"load_one({where})"
            return [f"{kept(a.first)} = {f'{inside} ? {get} : 0' if inside else get};"]
        size = a.count * load.dtype.bytes
        get = f"load_raw<{size}, PLAIN>({where})"
        takes = [f"{kept(p)} = Element<{stored_type(load.dtype)}>::get(v, {p - a.first});" for p in a.wanted]
        return [
            f"{{ const Raw<{size}> v = {f'{inside} ? {get} : zero_raw<{size}>()' if inside else get};",
            *indent(takes),
            "}",
        ]

    def _field(self, n: int, x: Patch) -> str:
        """Print the element of a patch at position (i, j) of the tile and (k0, …) of the window."""
        out = f"x{n}"
        for d in x.varying:
            terms = [
                f"{self.within[a]} * {f}" if f != 1 else self.within[a]
                for a, f in x.windowed.lines[d].factors
                if a in self.within
            ]
            out += f"[{' + '.join([*terms, *([str(-x.places[d][0])] if x.places[d][0] else [])])}]"
        return out

    def _leaf(self, e: Expr, results: Mapping[str, str]) -> str | None:
        if e.digest in self.fields:
            return self.fields[e.digest]
        if e.op == "iota":
            axis = e.attrs[0]
            corner = "" if axis in self.window else self.names[axis]
            return iota_text(e, " + ".join(t for t in (corner, self.within.get(axis, "")) if t))
        return results.get(e.digest)

    def _each(self, lines: Sequence[str], window: bool) -> list[str]:
        """Wrap statements in the loops over the tile, and over the window around them."""
        heads = [f"UNROLL for (int {v} = 0; {v} < {self.extents[a]}; ++{v})" for a, v in self.window.items()] if window else []
        heads += [f"UNROLL for (int i = 0; i < {self.s.rows}; ++i)", f"UNROLL for (int j = 0; j < {self.s.columns}; ++j) {{"]
        return [*heads, *indent(lines), "}"]

    def _accumulate(self) -> list[str]:
        """Print the reductions of all outputs of the tile."""
        tile = f"[{self.s.rows}][{self.s.columns}]"
        lines = [f"{r.operator}::type a{r.number}{tile};" for r in self.shape.reductions]
        lines += self._each([f"a{r.number}[i][j] = {r.operator}::identity();" for r in self.shape.reductions], window=False)
        scope = Scope(partial(self._leaf, results={}), "t", call=partial(call_short, self.short))
        values = [(r, scope.value(r.body)) for r in self.shape.reductions]
        taken = [f"a{r.number}[i][j] = {r.operator}::combine(a{r.number}[i][j], {r.operator}::lift({v}, 0));" for r, v in values]
        return [*lines, *self._each([*scope.take(), *taken], window=True)]

    def _outputs(self) -> list[str]:
        """Print the outputs of the tile and their stores."""
        s, shape = self.s, self.shape
        results = {r.node.digest: f"{r.operator}::value(a{r.number}[i][j])" for r in shape.reductions}
        scope = Scope(partial(self._leaf, results=results), "e", call=partial(call_short, self.short))
        made = [f"o{n}[i][j] = {scope.value(o.expr)};" for n, (o, _) in enumerate(shape.outputs)]
        lines = [f"{register_type(o.dtype)} o{n}[{s.rows}][{s.columns}];" for n, (o, _) in enumerate(shape.outputs)]
        lines += self._each([*scope.take(), *made], window=False)
        stores = []
        for n, (o, name) in enumerate(shape.outputs):
            steps = row_major(o.axes, self.extents)
            at = print_steps(steps, 0, [x for x in shape.loops if x.extent > 1], o.expr.type.elements)
            jump = f" + i * {steps[shape.strip]}" if shape.strip else ""
            size = s.columns * o.dtype.bytes
            hint = HINTS[s.hint] if size >= 16 else "PLAIN"
            stores.append(
                f"store_raw<{size}, {hint}>({name} + {at}{jump}, Pack<{stored_type(o.dtype)}>::template from<{s.columns}>(o{n}[i]));"
            )
        ragged = shape.strip and self.extents[shape.strip] % s.rows
        inside = f" if ({self.names[shape.strip]} + i < {self.extents[shape.strip]})" if ragged else ""
        return [*lines, f"UNROLL for (int i = 0; i < {s.rows}; ++i){inside} {{", *indent(stores), "}"]
