"""Residues that stand for sets of residues: the values of a maximum of which nothing is known but that it is one of a set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from eqsat.proof.compressed import Array


class ValueSets:
    """Which residues stand for sets, so that a set of sets is the set of all their elements."""

    def __init__(self) -> None:
        self._members: dict[int, tuple[int, ...]] = {}
        self._pending: list[tuple[Array, Array]] = []
        self._known = np.zeros(0, np.int64)

    def add(self, results: Array, stack: Array, single: Array) -> None:
        """Remember the sets along the first dimension of `stack`."""
        chosen = ~single.ravel()
        if chosen.any():
            self._pending.append((results.ravel()[chosen], stack.reshape(stack.shape[0], -1)[:, chosen]))
            self._known = np.union1d(self._known, self._pending[-1][0])

    def codes(self, stack: Array, scramble: Callable[[Array], Array]) -> tuple[Array, Array]:
        """Return a code for each set along the first dimension, and whether it has one element only."""
        if self._known.size and np.isin(stack, self._known).any():
            return self._flattened(stack, scramble)
        ordered = np.sort(stack, axis=0)
        fresh = np.concatenate([np.ones((1, *ordered.shape[1:]), bool), ordered[1:] != ordered[:-1]])
        codes = np.where(fresh, scramble(ordered), np.uint64(0)).sum(axis=0, dtype=np.uint64)
        return np.asarray(codes), np.asarray(fresh.sum(axis=0) == 1)

    def _flattened(self, stack: Array, scramble: Callable[[Array], Array]) -> tuple[Array, Array]:
        for results, members in self._pending:
            for r, column in zip(results.tolist(), members.T.tolist(), strict=True):
                if r not in self._members:
                    self._members[r] = self._flat(column)
        self._pending.clear()
        flat = [self._flat(column) for column in stack.reshape(stack.shape[0], -1).T.tolist()]
        codes = [int(scramble(np.asarray(s, np.int64)).sum(dtype=np.uint64)) for s in flat]
        # a set whose elements are one operand's is that operand
        single = [s == self._members.get(first, (first,)) for s, first in zip(flat, stack[0].ravel().tolist(), strict=True)]
        return np.asarray(codes, np.uint64).reshape(stack.shape[1:]), np.asarray(single, bool).reshape(stack.shape[1:])

    def _flat(self, column: Sequence[int]) -> tuple[int, ...]:
        out: set[int] = set()
        for r in column:
            out.update(self._members.get(r, (r,)))
        return tuple(sorted(out))
