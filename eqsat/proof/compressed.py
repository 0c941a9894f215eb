"""Evaluate programs at their own extents on inputs that are constant on few blocks of every axis.

An axis of extent n is split into a few blocks, the same for every axis of that extent; an input depends on the blocks of
its positions alone. A reduction then needs one position of each block and its size, so that a program over 4096 × 4096
arrays is evaluated, exactly, on a handful of numbers. Constants that hold an extent (the n of a mean) keep their meaning,
which they would lose at smaller extents. Where positions matter (masks, slices) an axis is taken position by position.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from eqsat.access import AccessMap
from eqsat.ir import Expr
from eqsat.ops import Kind

Array = np.ndarray[Any, Any]
BLOCKS = 3
"""Blocks of an axis; equalities that hold at extents 1 and 2 alone are told from true ones by 3."""
_LARGEST = 1 << 21  # elements of one value
_MOST = 1 << 25  # elements of all values together
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class TooLargeError(Exception):
    """A value needs more elements than this evaluation is meant for."""


V = TypeVar("V")


class Algebra(Protocol[V]):
    """One number system. Values are kept over the dimensions of an expression's axes in sorted order."""

    def leaf(self, e: Expr, codes: Array) -> V:
        """Return an input's elements; equal codes stand for one element."""
        ...

    def constant(self, e: Expr) -> V:
        """Return the value of an expression that depends on constants alone."""
        ...

    def positions(self, numbers: Array) -> V:
        """Return whole numbers."""
        ...

    def apply(self, e: Expr, args: Sequence[V]) -> V:
        """Return a pointwise op; the operands' dimensions are aligned."""
        ...

    def reduce(self, e: Expr, arg: V, dimension: int, counts: Array | None) -> V:
        """Return the reduction along one dimension, whose elements stand for `counts` each (None: one each)."""
        ...

    def reshape(self, value: V, change: Callable[[Array], Array]) -> V:
        """Return the value with its arrays' shapes changed."""
        ...

    def only(self, value: V, inside: Array) -> V:
        """Return the value with 0 where `inside` is false."""
        ...


def mix(codes: Array) -> Array:
    """Return a well-mixed function of 64-bit numbers (the finaliser of SplitMix64)."""
    x = codes.astype(np.uint64, copy=False)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * _MIX[0]
        x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Positions:
    """Positions along an axis, in a fixed order; `counts` says how many each one stands for."""

    at: tuple[int, ...]
    counts: tuple[int, ...] | None = None


class Evaluation:
    """Values of expressions in one algebra; equal subexpressions are evaluated once, over all calls.

    Parameters
    ----------
    algebra : Algebra
    seed : int
        Of the blocks and of the positions at which outputs are looked at.
    """

    def __init__(self, algebra: Algebra[Any], seed: int) -> None:
        self._algebra = algebra
        self._seed = np.uint64(seed)
        self._memo: dict[tuple[str, tuple[tuple[str, Positions], ...]], Any] = {}
        self._special: dict[str, frozenset[str]] = {}
        self._fixed: dict[str, bool] = {}
        self._split: dict[int, Positions] = {}
        self._elements = 0

    def value(self, expr: Expr) -> Any:
        """Return the value of `expr` at a few positions of each of its axes: the first, the last, one of each block."""
        return self.value_at(expr, {a: self.sampled(n) for a, n in expr.type.axes})

    def value_at(self, expr: Expr, at: Mapping[str, Positions]) -> Any:
        """Return the value of `expr` at the given positions of each of its axes."""
        self._mark(expr)
        with np.errstate(over="ignore"):  # scrambling wraps around
            return self._value(expr, at)

    def sampled(self, extent: int) -> Positions:
        """Return positions of an axis at which outputs are looked at."""
        if extent <= BLOCKS:
            return Positions(tuple(range(extent)))
        one_of_each = self._whole(extent, special=False).at
        return Positions(tuple(sorted({0, *one_of_each, extent - 1})))

    def blocks(self, at: Array, extent: int) -> Array:
        """Return the block of each position."""
        if extent <= BLOCKS:
            return at
        salt = mix(np.asarray([self._seed + np.uint64(extent)]))[0]
        with np.errstate(over="ignore"):  # a multiplicative hash: an axis may have millions of positions
            scrambled = (at.astype(np.uint64) + salt) * (salt | np.uint64(1))
        return np.asarray((scrambled >> np.uint64(40)) % np.uint64(BLOCKS), np.int64)

    def _whole(self, extent: int, *, special: bool) -> Positions:
        """Return positions that stand for the whole axis."""
        if special or extent <= BLOCKS:
            return Positions(tuple(range(extent)))
        if extent not in self._split:
            block = self.blocks(np.arange(extent), extent)
            members = [block == b for b in range(BLOCKS)]
            found = sorted((int(m.argmax()), int(m.sum())) for m in members if m.any())
            self._split[extent] = Positions(tuple(first for first, _ in found), tuple(count for _, count in found))
        return self._split[extent]

    def _mark(self, expr: Expr) -> None:
        """Find the axes along which each subexpression depends on positions, not on blocks alone."""
        for e in expr.walk():
            if e.digest in self._special:
                continue
            below = frozenset[str]().union(*(self._special[a.digest] for a in e.args))
            self._fixed[e.digest] = e.op == "const" or (
                e.row.kind is Kind.POINTWISE and all(self._fixed[a.digest] for a in e.args)
            )
            if e.op == "iota":
                below = frozenset((e.attrs[0],))
            elif e.row.kind is Kind.REDUCE:
                below -= {e.attrs[0]}
            elif e.row.kind is Kind.ACCESS:
                mapping: AccessMap = e.attrs[0]
                inner = below
                below = below - {a for a, _ in mapping.entries}
                for a, x in mapping.entries:
                    # Calling an axis otherwise leaves its blocks what they are.
                    calls = x.op == "axis" and e.type.extents[x.name] == e.args[0].type.extents[a]
                    below |= x.axes if not calls or a in inner else frozenset()
            self._special[e.digest] = below

    def _value(self, expr: Expr, at: Mapping[str, Positions]) -> Any:
        """Evaluate without recursion: programs may be deep."""
        root = self._key(expr, at)
        stack = [(expr, root)]
        while stack:
            e, key = stack[-1]
            if key in self._memo:
                stack.pop()
                continue
            here = dict(key[1])
            needs = self._operands(e, here)
            waiting = [(a, k) for a, k in needs if k not in self._memo]
            if waiting:
                stack.extend(waiting)
                continue
            elements = math.prod(len(p.at) for p in here.values())
            self._elements += elements
            if elements > _LARGEST or self._elements > _MOST:
                raise TooLargeError(f"{e.op} over {sorted(here)}")
            self._memo[key] = self._node(e, here, [self._memo[k] for _, k in needs])
            stack.pop()
        return self._memo[root]

    @staticmethod
    def _key(e: Expr, at: Mapping[str, Positions]) -> tuple[str, tuple[tuple[str, Positions], ...]]:
        return e.digest, tuple((a, at[a]) for a, _ in e.type.axes)

    def _operands(self, e: Expr, here: Mapping[str, Positions]) -> list[tuple[Expr, Any]]:
        """Return the operands whose values `e` needs, each with its positions."""
        if self._fixed[e.digest]:
            return []
        if e.row.kind is Kind.REDUCE:
            arg, axis = e.args[0], e.attrs[0]
            special = e.op in ("argmax", "argmin") or axis in self._special[arg.digest]
            return [(arg, self._key(arg, {**here, axis: self._whole(arg.type.extents[axis], special=special)}))]
        if e.row.kind is Kind.ACCESS:
            arg = e.args[0]
            inner = {**here, **{a: Positions(tuple(map(int, found[0]))) for a, found in self._sources(e, here).items()}}
            return [(arg, self._key(arg, inner))]
        return [(a, self._key(a, here)) for a in e.args]

    def _sources(self, e: Expr, here: Mapping[str, Positions]) -> dict[str, tuple[Array, Array, Array]]:
        """Return for each replaced axis: the positions read, which of them each element reads, and whether it is inside."""
        mapping: AccessMap = e.attrs[0]
        names = [a for a, _ in e.type.axes]
        out = {}
        for axis, index in mapping.entries:
            extent = e.args[0].type.extents[axis]
            target = np.asarray(index.at({a: _along(here[a], names.index(a), len(names)) for a in index.axes}, np.int64))
            target = target.reshape(target.shape or (1,) * len(names))
            inside = (target >= 0) & (target < extent)
            read, which = np.unique(np.where(inside, target, 0), return_inverse=True)
            out[axis] = read, which.reshape(target.shape), inside
        return out

    def _node(self, e: Expr, here: Mapping[str, Positions], args: list[Any]) -> Any:
        algebra, shape = self._algebra, tuple(len(here[a].at) for a, _ in e.type.axes)
        if self._fixed[e.digest]:
            return algebra.constant(e)
        if e.op == "read":
            return self._read(e, here)
        if e.op == "iota":
            return algebra.positions(np.asarray(here[e.attrs[0]].at, np.int64))
        if e.row.kind is Kind.REDUCE:
            arg, axis = e.args[0], e.attrs[0]
            dimension = [a for a, _ in arg.type.axes].index(axis)
            special = e.op in ("argmax", "argmin") or axis in self._special[arg.digest]
            counts = self._whole(arg.type.extents[axis], special=special).counts
            return algebra.reduce(e, args[0], dimension, None if counts is None else np.asarray(counts, np.int64))
        names = [a for a, _ in e.type.axes]
        if e.row.kind is Kind.ACCESS:
            return self._access(e, here, args[0], names, shape)
        aligned = [algebra.reshape(v, _aligner([a for a, _ in x.type.axes], names)) for v, x in zip(args, e.args, strict=True)]
        return algebra.reshape(algebra.apply(e, aligned), lambda x: np.broadcast_to(x, shape))

    def _access(self, e: Expr, here: Mapping[str, Positions], arg: Any, names: list[str], shape: tuple[int, ...]) -> Any:
        found = self._sources(e, here)
        index: list[Array] = []
        for a, _ in e.args[0].type.axes:
            if a in found:
                index.append(found[a][1])
            else:
                index.append(_along_array(np.arange(len(here[a].at)), names.index(a), len(names)))
        inside = np.ones((1,) * len(names), bool)
        for _, _, within in found.values():
            inside = inside & within
        at = tuple(index)
        read = self._algebra.reshape(arg, lambda x: np.broadcast_to(x[at] if at else x, shape))
        return self._algebra.only(read, np.broadcast_to(inside, shape))

    def _read(self, e: Expr, here: Mapping[str, Positions]) -> Any:
        name, axes = e.attrs
        names = [a for a, _ in e.type.axes]
        salt = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
        codes = mix(np.full((1,) * len(names), self._seed ^ np.uint64(salt)))
        for d, a in enumerate(axes):
            block = self.blocks(np.asarray(here[a].at, np.int64), e.type.extents[a]) if a else np.zeros(1, np.int64)
            along = _along_array(block, names.index(a), len(names)) if a else block.reshape((1,) * len(names))
            codes = mix(codes + np.uint64(1 + 2 * d) + (along.astype(np.uint64) << np.uint64(20)))
        return self._algebra.leaf(e, codes)


def _along(p: Positions, dimension: int, rank: int) -> Array:
    return _along_array(np.asarray(p.at, np.int64), dimension, rank)


def _along_array(values: Array, dimension: int, rank: int) -> Array:
    return values.reshape((1,) * dimension + (-1,) + (1,) * (rank - dimension - 1))


def _aligner(own: Sequence[str], names: Sequence[str]) -> Callable[[Array], Array]:
    """Return the change of shape that lays an array over axes `own` along `names`, which hold them in the same order."""

    def change(x: Array) -> Array:
        sizes = dict(zip(own, x.shape, strict=True))
        return x.reshape([sizes.get(a, 1) for a in names])

    return change
