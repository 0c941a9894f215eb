"""Reductions as accumulators: how each starts, takes a vector in, joins another, and folds its lanes."""

from __future__ import annotations

from dataclasses import dataclass

from eqsat.codegen.cpu.vector import REGISTER, converted
from eqsat.codegen.problem import nest
from eqsat.ir import Expr
from eqsat.types import DType

_JOIN = {"sum": "add", "prod": "mul", "max": "maximum", "min": "minimum"}
_START = {
    ("sum", "f"): "0", ("sum", "i"): "0", ("prod", "f"): "1", ("prod", "i"): "1",
    ("max", "f"): "-__builtin_inff()", ("min", "f"): "__builtin_inff()",
}  # fmt: skip
_LIMITS = {
    ("max", "i32"): "(-0x7fffffff - 1)", ("min", "i32"): "0x7fffffff",
    ("max", "i64"): "(-0x7fffffffffffffffLL - 1)", ("min", "i64"): "0x7fffffffffffffffLL",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Accumulator:
    """A reduction node, what it reduces, and the type in which it does."""

    node: Expr
    body: Expr
    dtype: DType

    @property
    def searches(self) -> bool:
        """Whether it keeps the place of a value beside the value (argmax, argmin)."""
        return self.node.op in ("argmax", "argmin")

    @property
    def register(self) -> str:
        """The register type of the value."""
        return REGISTER[self.dtype]

    @property
    def rounds(self) -> bool:
        """Whether its order of evaluation matters: a sum or product of floats."""
        return self.node.op in ("sum", "prod") and self.dtype.is_float

    @property
    def start(self) -> str:
        """The neutral element as a vector."""
        if self.register == "m":
            ones = self.node.op in ("all", "min", "prod")
            return "~(vm){0}" if ones else "(vm){0}"
        op = self.node.op.removeprefix("arg")
        kind = self.register[0]
        number = _START.get((op, kind)) or _LIMITS[op, self.register]
        return f"eq_splat_{self.register}({number})"

    def names(self, stem: str) -> tuple[tuple[str, str], ...]:
        """Return (register type, variable) of the variables of one accumulator."""
        out = ((self.register, stem),)
        return (*out, ("i64", f"{stem}_at")) if self.searches else out

    def declare(self, stem: str) -> list[str]:
        """Return the lines that start it."""
        return [f"v{t} {name} = {self.start if name == stem else '{0}'};" for t, name in self.names(stem)]

    def take(self, stem: str, value: str, dtype: DType, place: str, part: str | None) -> list[str]:
        """Return the lines that take a vector in; of a part of a vector the other lanes become neutral."""
        x = converted(value, dtype, self.dtype)
        if part is not None:
            x = f"eq_where_{self.register}(eq_first({part}), {x}, {self.start})"
        return self._update(stem, x, place)

    def join(self, stem: str, other: str) -> list[str]:
        """Return the lines that take another accumulator in."""
        if self.searches:  # the earlier of equals wins, so the places decide
            beats = f"eq_beats_{self.node.op[3:]}_{self.register}"
            return [
                f"{{ const vm w = {beats}({other}, {stem}) | (~{beats}({stem}, {other}) & eq_lt_i64({other}_at, {stem}_at));",
                f"  {stem}_at = eq_where_i64(w, {other}_at, {stem}_at);",
                f"  {stem} = eq_where_{self.register}(w, {other}, {stem}); }}",
            ]
        return self._update(stem, other, "")

    def _update(self, stem: str, x: str, place: str) -> list[str]:
        if self.searches:
            return [
                f"{{ const v{self.register} x = {x};",
                f"  const vm w = eq_beats_{self.node.op[3:]}_{self.register}(x, {stem});",
                f"  {stem}_at = eq_where_i64(w, {place}, {stem}_at);",
                f"  {stem} = eq_where_{self.register}(w, x, {stem}); }}",
            ]
        if self.register == "m":
            return [f"{stem} {'&' if self.node.op in ('all', 'min', 'prod') else '|'}= {x};"]
        # the new value first: its test for NaN is then no part of the chain from one accumulation to the next
        return [f"{stem} = eq_{_JOIN[self.node.op]}_{self.register}({x}, {stem});"]

    def folded(self, stem: str) -> str:
        """Return the C text of the result in every lane."""
        if self.searches:
            return f"eq_fold_{self.node.op}_{self.register}({stem}, {stem}_at)"
        if self.register == "m":
            return f"eq_fold_{'and' if self.node.op in ('all', 'min', 'prod') else 'or'}_m({stem})"
        return f"eq_fold_{_JOIN[self.node.op]}_{self.register}({stem})"

    def result(self, stem: str) -> str:
        """Return the variable that holds the result where no lanes are folded."""
        return f"{stem}_at" if self.searches else stem


def accumulator(node: Expr) -> Accumulator:
    """Return the accumulator of a reduction node (the outermost of its nest)."""
    _, body = nest(node)
    if node.op in ("argmax", "argmin"):
        return Accumulator(node, body, DType.I32 if body.dtype is DType.BOOL else body.dtype)
    return Accumulator(node, body, node.dtype)


def stages(reductions: tuple[Expr, ...]) -> list[list[Accumulator]]:
    """Group reductions into passes over the data: each as early as the reductions it depends on allow."""
    when: dict[str, int] = {}
    out: list[list[Accumulator]] = []
    for node in reductions:  # dependency order
        before = [when[e.digest] for e in node.walk() if e.digest in when]
        at = max(before, default=-1) + 1
        when[node.digest] = at
        while len(out) <= at:
            out.append([])
        out[at].append(accumulator(node))
    return out
