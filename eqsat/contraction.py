"""Einstein summation over traced arrays."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from eqsat import views
from eqsat.access import Index
from eqsat.array import Array, as_array, view
from eqsat.errors import ShapeError, UsageError
from eqsat.types import DType

Labels = tuple[str, ...]  # one letter for each dimension; "…0", "…1", … are the dimensions of an ellipsis, counted from the last


def einsum(subscripts: Any, *operands: Any) -> Array:
    """Return the sum of products that `subscripts` describes, in all of NumPy's forms.

    Letters may repeat within a term (diagonals), the output may be left out (letters that occur once, sorted), `...`
    stands for broadcast dimensions, and the form `einsum(x, [0, 1], y, [1, 2], [0, 2])` is understood. Products are formed from
    left to right, and a letter that occurs in no later term is summed at once; the optimizer finds better orders.
    """
    if not isinstance(subscripts, str):
        subscripts, operands = _from_lists((subscripts, *operands))
    arrays = [as_array(x) for x in operands]
    terms, result = _parse(subscripts, arrays)
    _check_extents(subscripts, terms, arrays)
    total, have = _diagonal(arrays[0], terms[0])
    for i in range(len(arrays)):
        if i:
            other, labels = _diagonal(arrays[i], terms[i])
            joined = (*have, *(c for c in labels if c not in have))
            total, have = _spread(total, have, joined) * _spread(other, labels, joined), joined
        later = {c for term in terms[i + 1 :] for c in term} | set(result)
        done = tuple(d for d, c in enumerate(have) if c not in later)
        if done:
            total = total.any(done) if total.dtype is DType.BOOL else total.sum(done)
            have = tuple(c for c in have if c in later)
    return _spread(total, have, result)


def _from_lists(parts: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """Turn the form of alternating operands and lists of numbers into the form with letters."""
    pairs = len(parts) // 2
    operands = parts[: 2 * pairs : 2]

    def word(numbers: Sequence[Any]) -> str:
        return "".join("..." if n is Ellipsis else string.ascii_letters[n] for n in numbers)

    text = ",".join(word(parts[2 * i + 1]) for i in range(pairs))
    return (f"{text}->{word(parts[-1])}" if len(parts) % 2 else text), operands


def _parse(subscripts: str, arrays: list[Array]) -> tuple[list[Labels], Labels]:
    text = subscripts.replace(" ", "")
    left, arrow, right = text.partition("->")
    words = left.split(",")
    if len(words) != len(arrays):
        raise UsageError(f"einsum {subscripts!r} has {len(words)} terms for {len(arrays)} operands")
    terms = [_labels(subscripts, word, array.ndim, array.shape) for word, array in zip(words, arrays, strict=True)]
    dots = sorted({c for term in terms for c in term if c.startswith("…")}, key=lambda c: -int(c[1:]))
    if arrow:
        if right.count("...") > 1 or not set(right.replace("...", "")) <= set(string.ascii_letters):
            raise UsageError(f"einsum {subscripts!r}: the output {right!r} is not made of letters and at most one '...'")
        head, has_dots, tail = right.partition("...")
        result = (*head, *(dots if has_dots else ()), *tail)
        known = {c for term in terms for c in term}
        if len(set(result)) != len(result) or not set(result) <= known:
            raise UsageError(f"einsum {subscripts!r}: the output letters must be distinct and occur in the terms; got {right!r}")
        return terms, result
    once = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
    return terms, (*dots, *once)


def _labels(subscripts: str, word: str, rank: int, shape: tuple[int, ...]) -> Labels:
    head, dots, tail = word.partition("...")
    if not set(head + tail) <= set(string.ascii_letters):
        raise UsageError(f"einsum {subscripts!r}: the term {word!r} is not made of letters and at most one '...'")
    free = rank - len(head) - len(tail)
    if free < 0 or (free and not dots):
        raise ShapeError(
            f"einsum {subscripts!r}: the term {word!r} names {len(head + tail)} dimensions; the operand is {list(shape)}"
        )
    return (*head, *(f"…{i}" for i in reversed(range(free))), *tail)


def _check_extents(subscripts: str, terms: list[Labels], arrays: list[Array]) -> None:
    out: dict[str, int] = {}
    for term, array in zip(terms, arrays, strict=True):
        for c, n in zip(term, array.shape, strict=True):
            if n != 1 and out.get(c, 1) not in (1, n):
                raise ShapeError(f"einsum {subscripts!r}: {c!r} has the extents {out[c]} and {n}; they must be equal.")
            out[c] = max(out.get(c, 1), n)


def _diagonal(x: Array, labels: Labels) -> tuple[Array, Labels]:
    """Return `x` with each letter on one dimension: a repeated letter reads the diagonal."""
    distinct = tuple(dict.fromkeys(labels))
    if distinct == labels:
        return x, labels
    extent = {c: max(n for d, n in zip(labels, x.shape, strict=True) if d == c) for c in distinct}
    entries = tuple(Index.const(0) if n == 1 else views.dim(distinct.index(c)) for c, n in zip(labels, x.shape, strict=True))
    return view(x, entries, tuple(extent[c] for c in distinct)), distinct


def _spread(x: Array, labels: Labels, wanted: Labels) -> Array:
    """Return `x` with its dimensions in the order `wanted`; letters it lacks become dimensions of extent 1."""
    shape = tuple(x.shape[labels.index(c)] if c in labels else 1 for c in wanted)
    return view(x, tuple(views.dim(wanted.index(c)) for c in labels), shape)
