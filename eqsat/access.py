"""Index expressions: quasi-affine maps from axes to positions, the meaning of slices, pads, splits and joins of axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

IndexOp = Literal["axis", "const", "add", "mul", "div", "mod"]


@dataclass(frozen=True, slots=True)
class Index:
    """A quasi-affine index expression over axes: axis, constant, sum, and *, //, % by a positive constant.

    `op` names the node; `name` is set for an axis, `value` for a constant and for the right side of mul, div, mod.
    """

    op: IndexOp
    name: str = ""
    value: int = 0
    args: tuple[Index, ...] = ()

    @staticmethod
    def axis(name: str) -> Index:
        """Return the position along axis `name`."""
        return Index("axis", name=name)

    @staticmethod
    def const(value: int) -> Index:
        """Return the constant `value`."""
        return Index("const", value=value)

    def __add__(self, other: Index) -> Index:
        return _total([*_terms(self), *_terms(other)])

    def __mul__(self, factor: int) -> Index:
        return _total([(base, factor * count) for base, count in _terms(self)])

    def __floordiv__(self, divisor: int) -> Index:
        if divisor == 1:
            return self
        if self.op == "div":
            return Index("div", value=self.value * divisor, args=self.args)
        return Index.const(self.value // divisor) if self.op == "const" else Index("div", value=divisor, args=(self,))

    def __mod__(self, divisor: int) -> Index:
        if divisor == 1:
            return Index.const(0)
        if self.op == "mod" and self.value % divisor == 0:
            return self.args[0] % divisor
        return Index.const(self.value % divisor) if self.op == "const" else Index("mod", value=divisor, args=(self,))

    @property
    def axes(self) -> frozenset[str]:
        """Names of the axes it depends on."""
        return frozenset([self.name]) if self.op == "axis" else frozenset().union(*(a.axes for a in self.args))

    def substitute(self, by: Mapping[str, Index]) -> Index:
        """Return it with each axis in `by` replaced."""
        if self.op == "axis":
            return by.get(self.name, self)
        parts = tuple(a.substitute(by) for a in self.args)
        match self.op:
            case "const":
                return self
            case "add":
                return parts[0] + parts[1]
            case "mul":
                return parts[0] * self.value
            case "div":
                return parts[0] // self.value
            case _:
                return parts[0] % self.value

    def at(self, positions: Mapping[str, Any], number: Callable[[int], Any]) -> Any:
        """Return its value at positions of its axes: numbers or arrays, with constants made by `number`."""
        parts = [a.at(positions, number) for a in self.args]
        match self.op:
            case "axis":
                return positions[self.name]
            case "const":
                return number(self.value)
            case "add":
                return parts[0] + parts[1]
            case "mul":
                return parts[0] * self.value
            case "div":
                return parts[0] // self.value
            case _:
                return parts[0] % self.value

    def bounds(self, extents: Mapping[str, int]) -> tuple[int, int]:
        """Return the least and the greatest value over the box of `extents` (interval arithmetic, so possibly wide)."""
        match self.op:
            case "axis":
                return 0, extents[self.name] - 1
            case "const":
                return self.value, self.value
            case "add":
                (a, b), (c, d) = (x.bounds(extents) for x in self.args)
                return a + c, b + d
            case "mul":
                low, high = sorted(x * self.value for x in self.args[0].bounds(extents))
                return low, high
            case "div":
                low, high = self.args[0].bounds(extents)
                return low // self.value, high // self.value
            case _:
                low, high = self.args[0].bounds(extents)
                return (low, high) if low >= 0 and high < self.value else (0, self.value - 1)

    def simplify(self, extents: Mapping[str, int]) -> Index:
        """Return an equal expression with divisions and remainders removed where the extents allow it."""
        if self.op in ("axis", "const"):
            return self
        parts = tuple(a.simplify(extents) for a in self.args)
        if self.op == "add":
            return parts[0] + parts[1]
        if self.op == "mul":
            return parts[0] * self.value
        whole, rest = _divisible(parts[0], self.value)
        low, high = rest.bounds(extents)
        if low >= 0 and high < self.value:
            return whole if self.op == "div" else rest
        if self.op == "div":
            return whole + rest // self.value
        return rest % self.value

    def __str__(self) -> str:
        match self.op:
            case "axis":
                return self.name
            case "const":
                return str(self.value)
            case "add":
                return f"(+ {self.args[0]} {self.args[1]})"
            case "mul":
                return f"(* {self.args[0]} {self.value})"
            case "div":
                return f"(// {self.args[0]} {self.value})"
            case _:
                return f"(% {self.args[0]} {self.value})"


def _terms(index: Index) -> list[tuple[Index, int]]:
    """Return the summands of `index`, each with its factor; constants are summands of base 1."""
    match index.op:
        case "add":
            return [t for a in index.args for t in _terms(a)]
        case "mul":
            return [(base, count * index.value) for base, count in _terms(index.args[0])]
        case "const":
            return [(_ONE, index.value)]
        case _:
            return [(index, 1)]


def _total(terms: list[tuple[Index, int]]) -> Index:
    """Return the sum of `terms` with like terms joined, the constant last: equal sums become equal trees."""
    counts: dict[Index, int] = {}
    for base, count in terms:
        counts[base] = counts.get(base, 0) + count
    for base in list(counts):  # c*(x // c) + x % c = x, which joins again what a reshape split
        if base.op == "mod" and counts[base]:
            whole, count = base.args[0] // base.value, counts[base]
            if whole.op == "div" and counts.get(whole) == count * base.value:
                counts[base] = counts[whole] = 0
                return _total([*counts.items(), *((b, c * count) for b, c in _terms(base.args[0]))])
    constant = counts.pop(_ONE, 0)
    parts = [b if c == 1 else Index("mul", value=c, args=(b,)) for b, c in counts.items() if c]
    if constant or not parts:
        parts.append(Index.const(constant))
    out = parts[0]
    for part in parts[1:]:
        out = Index("add", args=(out, part))
    return out


def _divisible(index: Index, divisor: int) -> tuple[Index, Index]:
    """Split index = divisor * whole + rest, moving every summand with a factor of `divisor` into `whole`."""
    if index.op == "add":
        (w0, r0), (w1, r1) = (_divisible(a, divisor) for a in index.args)
        return w0 + w1, r0 + r1
    if index.op == "mul" and index.value % divisor == 0:
        return index.args[0] * (index.value // divisor), Index.const(0)
    if index.op == "const":
        return Index.const(index.value // divisor), Index.const(index.value % divisor)
    return Index.const(0), index


_ONE = Index("const", value=1)


@dataclass(frozen=True, slots=True)
class AccessMap:
    """A substitution axis -> index expression; axes not named stay as they are.

    `extents` gives the extents of the new axes that the expressions mention. Where an expression leaves the old axis'
    range the value is 0 (zero extension: a pad), unless the map is total.
    """

    entries: tuple[tuple[str, Index], ...]
    extents: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(sorted(self.entries, key=lambda e: e[0])))
        object.__setattr__(self, "extents", tuple(sorted(self.extents)))

    def is_total(self, old: Mapping[str, int]) -> bool:
        """Whether no read leaves the ranges `old` (extents of the axes replaced)."""
        new = dict(self.extents)
        return all(low >= 0 and high < old[axis] for axis, e in self.entries for low, high in [e.bounds(new)])

    def __str__(self) -> str:
        body = " ".join(f"({axis} {index})" for axis, index in self.entries)
        return f"({body}) ({' '.join(f'({name} {extent})' for name, extent in self.extents)})"
