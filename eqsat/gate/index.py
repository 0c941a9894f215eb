"""Index expressions in the gate: random ones, and arrays read at them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eqsat.access import Index
from eqsat.gate.value import Take


def random_index(pool: Sequence[str], rng: random.Random) -> Index:
    """Draw an affine expression, a quotient or a remainder over one or two axes, or a number; many leave the extents."""
    one, other = Index.axis(rng.choice(pool)), Index.axis(rng.choice(pool))
    shift, factor = Index.const(rng.randint(-2, 3)), rng.randint(2, 3)
    match rng.randint(0, 8):
        case 0 | 1 | 2:
            return one
        case 3:
            return one + shift
        case 4:
            return one * rng.choice((-1, factor)) + shift
        case 5:
            return (one + shift) // factor
        case 6:
            return (one + shift) % factor
        case 7:
            return one * factor + other
        case _:
            return shift


def taker(extents: Mapping[str, int], axis: str, index: Index) -> Take:
    """Return what reads an array at `index` along `axis`, and a given number outside.

    Parameters
    ----------
    extents : mapping of str to int
        In order of the arrays' dimensions.
    axis : str
    index : Index
    """
    names = list(extents)
    place = names.index(axis)

    def along(name: str, extent: int) -> Any:
        return np.arange(extent).reshape([-1 if n == name else 1 for n in names])

    positions = index.at({a: along(a, extents[a]) for a in index.axes}, lambda n: np.full((1,) * len(names), n))
    inside = (positions >= 0) & (positions < extents[axis])

    def take(array: Any, outside: float) -> Any:
        extent = array.shape[place]
        places = [along(n, array.shape[d]) for d, n in enumerate(names)]
        for d, n in enumerate(names):
            if n in index.axes and array.shape[d] > 1:
                places[d] = along(n, extents[n])
        places[place] = np.clip(positions, 0, extent - 1)
        found = array[tuple(np.broadcast_arrays(*places))]
        return np.where(inside, found, np.asarray(outside, array.dtype))

    return take
