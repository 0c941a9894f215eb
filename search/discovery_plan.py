"""What a plan does, read off its kernels: the facts by which the discovery suite tells one plan from another.

Nothing here knows a program by name. A fact is about kernels (how many, what each reads and writes, over which axes it sums
products of what) and about buffers (how large, over which inputs' dimensions).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from eqsat.codegen.plan import Kernel, Plan
from eqsat.codegen.problem import nest
from eqsat.formula import show
from eqsat.ir import Expr, Program
from eqsat.ops import Kind


@dataclass(frozen=True, slots=True)
class Product:
    """A contraction: a sum over `over` of a product in which two factors each have an axis that the other lacks.

    `factors` are the operands of the product, `axes` those of the result, `extents` those of every axis of the product.
    """

    node: Expr
    over: frozenset[str]
    factors: tuple[Expr, ...]

    @property
    def axes(self) -> frozenset[str]:
        """Axes of the result."""
        return self.node.axes

    @property
    def elements(self) -> int:
        """Elements of the result."""
        return self.node.type.elements

    @property
    def volume(self) -> int:
        """Multiplications: elements of the product before the sum."""
        extents = {a: n for f in self.factors for a, n in f.type.axes}
        return math.prod(extents.values())

    @property
    def reads(self) -> frozenset[str]:
        """Buffers that the factors read."""
        return frozenset().union(*(buffers(f) for f in self.factors))

    @property
    def of_reads(self) -> bool:
        """Whether every factor is a buffer as it lies there (converted at most): what matrix units take."""
        return all(is_read(f) for f in self.factors)


def is_read(e: Expr) -> bool:
    """Whether `e` is a buffer's element: a read, one through an access, or one converted to another type."""
    while e.op in ("cast", "access"):
        e = e.args[0]
    return e.op == "read"


def buffers(e: Expr) -> frozenset[str]:
    """Return the names of the buffers that `e` reads."""
    return frozenset(str(x.attrs[0]) for x in e.walk() if x.op == "read")


def factors_of(e: Expr) -> tuple[Expr, ...]:
    """Return the factors of a product, conversions and signs looked through."""
    if e.op == "mul":
        return factors_of(e.args[0]) + factors_of(e.args[1])
    if e.op in ("neg", "cast") and e.args[0].op in ("mul", "neg", "cast"):
        return factors_of(e.args[0])
    return (e,)


def outer_reductions(program: Program) -> tuple[Expr, ...]:
    """Return the reductions of a program, each nest of one op once, operands first."""
    nodes = list({e.digest: e for o in program.outputs for e in o.expr.walk()}.values())
    inside = {e.args[0].digest for e in nodes if e.row.kind is Kind.REDUCE and e.args[0].op == e.op}
    roots = {o.expr.digest for o in program.outputs}
    users: dict[str, list[Expr]] = {}
    for e in nodes:
        for a in e.args:
            users.setdefault(a.digest, []).append(e)
    return tuple(
        e
        for e in nodes
        if e.row.kind is Kind.REDUCE
        and not (e.digest in inside and e.digest not in roots and all(u.op == e.op for u in users.get(e.digest, ())))
    )


def products_of(program: Program) -> tuple[Product, ...]:
    """Return the contractions of a program."""
    out = []
    for e in outer_reductions(program):
        if e.op != "sum":
            continue
        axes, body = nest(e)
        over = frozenset(axes)
        factors = factors_of(body)
        if any(f.axes & g.axes & over and f.axes - g.axes and g.axes - f.axes for f in factors for g in factors):
            out.append(Product(e, over, factors))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Pass:
    """One kernel of a plan."""

    kernel: Kernel

    @property
    def program(self) -> Program:
        """What it computes."""
        return self.kernel.program

    @property
    def family(self) -> str:
        """The family that serves it."""
        return self.kernel.problem.family

    @property
    def reads(self) -> frozenset[str]:
        """Names of the buffers it reads."""
        return frozenset(i.name for i in self.program.inputs)

    @property
    def writes(self) -> frozenset[str]:
        """Names of the buffers it writes."""
        return frozenset(o.name for o in self.program.outputs)

    @property
    def products(self) -> tuple[Product, ...]:
        """Its contractions."""
        return products_of(self.program)

    @property
    def reductions(self) -> tuple[Expr, ...]:
        """Its reductions, contractions among them."""
        return outer_reductions(self.program)

    @property
    def depth(self) -> int:
        """The longest chain of reductions of which each needs the one before: passes over the data if nothing is rebased."""
        outer = {e.digest for e in self.reductions}
        level: dict[str, int] = {}
        for o in self.program.outputs:
            for e in o.expr.walk():
                level[e.digest] = max((level[a.digest] for a in e.args), default=0) + (e.digest in outer)
        return max(level.values())


@dataclass(frozen=True)
class Picture:
    """A plan as the checks see it. `prepared` are the kernels that need only constants; `passes` run at every call."""

    plan: Plan

    @functools.cached_property
    def _constant(self) -> frozenset[str]:
        known = {i.name for i in self.plan.program.inputs if i.constant}
        outputs = {o.name for o in self.plan.program.outputs}
        for k in self.plan.kernels:
            names = {o.name for o in k.program.outputs}
            if {i.name for i in k.program.inputs} <= known and not names & outputs:
                known |= names
        return frozenset(known)

    @functools.cached_property
    def passes(self) -> tuple[Pass, ...]:
        """Kernels of every call."""
        return tuple(p for p in map(Pass, self.plan.kernels) if not p.writes <= self._constant)

    @functools.cached_property
    def prepared(self) -> tuple[Pass, ...]:
        """Kernels that run once for given constants."""
        return tuple(p for p in map(Pass, self.plan.kernels) if p.writes <= self._constant)

    @functools.cached_property
    def intermediates(self) -> dict[str, int]:
        """Elements of each buffer that one kernel of a call writes for another."""
        outputs = {o.name for o in self.plan.program.outputs}
        return {o.name: o.expr.type.elements for p in self.passes for o in p.program.outputs if o.name not in outputs}

    @property
    def largest(self) -> int:
        """Elements of the largest intermediate; 0 if there is none."""
        return max(self.intermediates.values(), default=0)

    @property
    def products(self) -> tuple[Product, ...]:
        """Contractions of every call, kernel after kernel."""
        return tuple(x for p in self.passes for x in p.products)

    @property
    def flops(self) -> int:
        """Arithmetic of every call."""
        return sum(p.program.flops for p in self.passes)

    @property
    def saving(self) -> float:
        """Arithmetic of the program as written over that of the plan."""
        return self.plan.program.flops / max(1, self.flops)

    def readers(self, name: str) -> tuple[Pass, ...]:
        """Return the kernels of a call that read a buffer."""
        return tuple(p for p in self.passes if name in p.reads)

    def values(self) -> Iterator[Expr]:
        """Yield every subexpression of every kernel of a call."""
        for p in self.passes:
            for o in p.program.outputs:
                yield from o.expr.walk()

    def extent(self, name: str, dimension: int) -> int:
        """Return the extent of a dimension of an input of the program."""
        return next(i.shape[dimension] for i in self.plan.program.inputs if i.name == name)


def description(picture: Picture, width: int = 150) -> str:
    """Return what the plan is, in one line made of its kernels."""
    parts = [f"{len(picture.passes)} kernel{'s' if len(picture.passes) != 1 else ''}"]
    for p in picture.passes:
        parts += [f"{o.name} = {_short(show(o.expr), width)}" for o in p.program.outputs]
    if picture.prepared:
        made = "; ".join(f"{o.name} = {_short(show(o.expr), width // 2)}" for p in picture.prepared for o in p.program.outputs)
        parts.append(f"prepared once: {made}")
    if picture.saving >= 1.05:
        parts.append(f"{picture.saving:.3g}× less arithmetic")
    return "; ".join(parts)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
