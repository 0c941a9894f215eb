"""Windows over the last dimensions of an array, as in deep learning: convolution, transposed convolution, pooling.

Arrays are laid out as PyTorch has them: a batch, channels, then one to three dimensions of space. A window is read in place:
its position and the place within it are one index expression, and what a padding adds is the zero outside the array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from eqsat import views
from eqsat.access import Index
from eqsat.array import Array, Operand, as_array, pointwise, reduce, view
from eqsat.errors import ShapeError, UsageError

__all__ = ["avg_pool", "conv", "conv_transpose", "depthwise_conv", "max_pool", "windows"]

Sizes: TypeAlias = int | Sequence[int]
Padding: TypeAlias = Literal["same", "valid"] | int | Sequence[int] | Sequence[Sequence[int]]


def windows(x: Operand, kernel: Sizes, stride: Sizes = 1, padding: Padding = 0, dilation: Sizes = 1, value: float = 0) -> Array:
    """Return every window of the last dimensions of `x`: leading dimensions, positions of the windows, places within them.

    Parameters
    ----------
    x : Array, shape (..., *space)
    kernel : int or sequence of int
        Extent of a window along each dimension of space; a number stands for all but the first two dimensions.
    stride, dilation : int or sequence of int
        Steps between windows, and between the places of one.
    padding : int, sequence of int, sequence of pairs, "same" or "valid"
        How far `x` is extended: by as much before and after, or by a pair for each dimension.
    value : float
        What a window reads outside `x`.
    """
    x = as_array(x)
    taps = _kernel_sizes(kernel, x)
    lead = x.ndim - len(taps)
    steps, spread = _sizes(stride, len(taps), "strides"), _sizes(dilation, len(taps), "dilations")
    pairs = _pads(padding, taps, steps, spread, x.shape[lead:])
    places = _positions(x.shape[lead:], taps, steps, spread, pairs)
    shape = (*x.shape[:lead], *places, *taps)
    entries = [views.dim(d) for d in range(lead)]
    for i, (before, _) in enumerate(pairs):
        at = views.dim(lead + i) * steps[i] + views.dim(lead + len(taps) + i) * spread[i]
        entries.append(at + Index.const(-before))
    if value == 0:
        return view(x, tuple(entries), shape)
    mask = _inside(tuple(entries), lead, x.shape, shape)
    read = view(x, tuple(entries), shape, "zero" if mask is None else "any")
    return read if mask is None else pointwise("where", mask, read, value)


def conv(x: Operand, weight: Operand, stride: Sizes = 1, padding: Padding = 0, dilation: Sizes = 1, groups: int = 1) -> Array:
    """Return the convolution (cross-correlation, as in PyTorch) of `x` with `weight` in one, two or three dimensions.

    Parameters
    ----------
    x : Array, shape (batch, channels, *space)
    weight : Array, shape (outputs, channels / groups, *kernel)
    stride, padding, dilation
        As `windows` takes them.
    groups : int
        Channels and outputs fall into so many groups, each of which is convolved alone.

    Examples
    --------
    >>> from eqsat.trace import tensor
    >>> conv(tensor("x", (2, 16, 32, 32)), tensor("w", (24, 16, 3, 3)), stride=2, padding=1).shape
    (2, 24, 16, 16)
    """
    x, weight = as_array(x), as_array(weight)
    outputs, channels, *taps = weight.shape if weight.ndim > 2 else (0, 0)
    _check_channels(x, weight, groups, channels * groups, outputs)
    read = windows(x, taps, stride, padding, dilation)
    return _contracted(_grouped(read, 1, groups), weight.reshape(1, groups, outputs // groups, *weight.shape[1:]), len(taps))


def depthwise_conv(x: Operand, weight: Operand, stride: Sizes = 1, padding: Padding = 0, dilation: Sizes = 1) -> Array:
    """Return the convolution of each channel with a kernel of its own; `weight` is (channels, *kernel).

    Examples
    --------
    >>> from eqsat.trace import tensor
    >>> depthwise_conv(tensor("x", (2, 16, 32, 32)), tensor("w", (16, 3, 3)), padding=1).shape
    (2, 16, 32, 32)
    """
    x, weight = as_array(x), as_array(weight)
    if weight.ndim < 2 or x.ndim != weight.ndim + 1 or x.shape[1] != weight.shape[0]:
        raise ShapeError(
            f"depthwise_conv: expected (batch, channels, *space) and (channels, *kernel); got {list(x.shape)} and {list(weight.shape)}."
        )
    return conv(x, weight.reshape(weight.shape[0], 1, *weight.shape[1:]), stride, padding, dilation, groups=x.shape[1])


def conv_transpose(
    x: Operand,
    weight: Operand,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    """Return the transposed convolution: each element of `x` adds a scaled copy of the kernel to the output.

    Parameters
    ----------
    x : Array, shape (batch, channels, *space)
    weight : Array, shape (channels, outputs / groups, *kernel)
    stride, dilation : int or sequence of int
        Steps in the output between the copies of two neighbours, and between the places of one copy.
    padding : int or sequence of int
        How much is cut off both ends of the output.
    output_padding : int or sequence of int
        How much longer the output is at its end.
    groups : int

    Notes
    -----
    Output y takes from places r with y + padding − r·dilation a multiple of the stride. Without dilation those are every
    stride-th place of the kernel, so that the outputs of one phase of the stride are a convolution with a part of the
    kernel, and nothing is multiplied by the zeros between the elements of `x`.
    """
    x, weight = as_array(x), as_array(weight)
    channels, outputs, *taps = weight.shape if weight.ndim > 2 else (0, 0)
    _check_channels(x, weight, groups, channels, outputs * groups)
    rank = len(taps)
    steps, spread = _sizes(stride, rank, "strides"), _sizes(dilation, rank, "dilations")
    cut, more = _sizes(padding, rank, "padding", 0), _sizes(output_padding, rank, "output padding", 0)
    places = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(x.shape[2:], steps, cut, spread, taps, more, strict=True)
    )
    if min(places) < 1:
        raise ShapeError(f"conv_transpose: nothing of the output is left; its extents would be {list(places)}. Cut off less.")
    if any(d > 1 and s > 1 for d, s in zip(spread, steps, strict=True)):
        return _stuffed(x, weight, places, (steps, cut, spread), groups)
    return _phased(x, weight, places, (steps, cut, spread), groups)


def max_pool(x: Operand, kernel: Sizes, stride: Sizes | None = None, padding: Padding = 0, dilation: Sizes = 1) -> Array:
    """Return the maximum of each window; the stride is the window's extent unless given.

    Examples
    --------
    >>> from eqsat.trace import tensor
    >>> max_pool(tensor("x", (2, 16, 32, 32)), 2).shape
    (2, 16, 16, 16)
    """
    x = as_array(x)
    if not x.dtype.is_float:
        raise ShapeError(f"max_pool takes floats, whose least value is −∞; got {x.dtype}. Cast the operand.")
    read = windows(x, kernel, kernel if stride is None else stride, padding, dilation, value=-math.inf)
    return reduce("max", read, tuple(range(x.ndim, read.ndim)))


def avg_pool(
    x: Operand, kernel: Sizes, stride: Sizes | None = None, padding: Padding = 0, count_include_pad: bool = True
) -> Array:
    """Return the mean of each window; what the padding adds counts as zeros, or (`count_include_pad=False`) not at all."""
    x = as_array(x)
    taps = _kernel_sizes(kernel, x)
    step = kernel if stride is None else stride
    read = windows(x, taps, step, padding)
    total = reduce("sum", read, tuple(range(x.ndim, read.ndim)))
    if count_include_pad:
        return total * (1 / math.prod(taps))
    lead = x.ndim - len(taps)
    steps = _sizes(step, len(taps), "strides")
    pairs = _pads(padding, taps, steps, (1,) * len(taps), x.shape[lead:])
    for i, (before, after) in enumerate(pairs):
        if before or after:
            first = _along(total.shape, lead + i) * steps[i] - before
            within = pointwise("minimum", first + taps[i], x.shape[lead + i]) - pointwise("maximum", first, 0)
            total = total / within.astype(x.dtype)
        else:
            total = total * (1 / taps[i])
    return total


def _contracted(read: Array, weight: Array, rank: int) -> Array:
    """Sum products over channels and taps: (batch, groups, 1, channels, *places, *taps) with (1, groups, outputs, channels, *taps)."""
    weight = weight.reshape(*weight.shape[:4], *(1,) * rank, *weight.shape[4:])
    total = reduce("sum", read * weight, (3, *range(4 + rank, 4 + 2 * rank)))
    batch, groups, outputs, *places = total.shape
    return total.reshape(batch, groups * outputs, *places)


def _grouped(read: Array, dimension: int, groups: int) -> Array:
    """Split the channels into (groups, 1, channels of a group)."""
    lead, channels, rest = read.shape[:dimension], read.shape[dimension], read.shape[dimension + 1 :]
    return read.reshape(*lead, groups, 1, channels // groups, *rest)


def _phased(x: Array, weight: Array, places: tuple[int, ...], geometry: tuple[tuple[int, ...], ...], groups: int) -> Array:
    """Transposed convolution without dilation where there is a stride: position u·s + v of the uncut output by u and phase v."""
    steps, cut, spread = geometry
    rank = len(places)
    taps = tuple(-(-k // s) for k, s in zip(weight.shape[2:], steps, strict=True))
    whole = tuple((p + n - 1) // s + 1 for p, n, s in zip(cut, places, steps, strict=True))
    low = tuple(p if s == 1 else 0 for p, s in zip(cut, steps, strict=True))  # where there is one phase, cut at once
    count = tuple(n if s == 1 else u for n, u, s in zip(places, whole, steps, strict=True))
    # (batch, channels, *u, *v, *taps): the phases are dimensions of extent 1 of the operand
    shape = (*x.shape[:2], *count, *(1,) * rank, *taps)
    entries = [views.dim(0), views.dim(1)]
    entries += [views.dim(2 + i) + Index.const(low[i]) + views.dim(2 + 2 * rank + i) * -spread[i] for i in range(rank)]
    read = _grouped(view(x, tuple(entries), shape), 1, groups)
    # (channels, outputs, *v, *taps)
    parts = (*weight.shape[:2], *steps, *taps)
    places_of = [views.dim(2 + rank + i) * steps[i] + views.dim(2 + i) for i in range(rank)]
    kernel = view(weight, (views.dim(0), views.dim(1), *places_of), parts)
    kernel = kernel.reshape(groups, weight.shape[0] // groups, *parts[1:]).swapaxes(1, 2)
    kernel = kernel.reshape(1, *kernel.shape[:3], *(1,) * rank, *parts[2:])
    total = reduce("sum", read * kernel, (3, *range(4 + 2 * rank, 4 + 3 * rank)))
    batch, _, outputs = total.shape[:3]
    total = total.reshape(batch, groups * outputs, *count, *steps)
    at = [views.dim(2 + i) + Index.const(cut[i] - low[i]) for i in range(rank)]
    taken = [views.dim(0), views.dim(1), *(a // s for a, s in zip(at, steps, strict=True))]
    taken += [a % s for a, s in zip(at, steps, strict=True)]
    return view(total, tuple(taken), (batch, groups * outputs, *places))


def _stuffed(x: Array, weight: Array, places: tuple[int, ...], geometry: tuple[tuple[int, ...], ...], groups: int) -> Array:
    """Transposed convolution in general: a convolution of `x` with stride − 1 zeros between its elements."""
    steps, cut, spread = geometry
    rank = len(places)
    shape = (*x.shape[:2], *places, *weight.shape[2:])
    entries = [views.dim(0), views.dim(1)]
    mask: Array | None = None
    for i in range(rank):
        at = views.dim(2 + i) + Index.const(cut[i]) + views.dim(2 + rank + i) * -spread[i]
        entries.append(at // steps[i])
        if steps[i] > 1:
            position = _along(shape, 2 + i) + cut[i] - _along(shape, 2 + rank + i) * spread[i]
            falls = pointwise("eq", _quotient(position, steps[i]) * steps[i], position)
            mask = falls if mask is None else mask & falls
    read = view(x, tuple(entries), shape)
    if mask is not None:
        read = pointwise("where", mask, read, 0)
    kernel = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).swapaxes(1, 2)
    return _contracted(_grouped(read, 1, groups), kernel.reshape(1, *kernel.shape), rank)


def _quotient(position: Array, divisor: int) -> Array:
    """Return position // divisor of whole numbers; the half keeps a rounded quotient off the borders."""
    return pointwise("floor", (position.astype("f32") + 0.5) / divisor).astype(position.dtype)


def _inside(entries: tuple[Index, ...], lead: int, source: tuple[int, ...], shape: tuple[int, ...]) -> Array | None:
    """Return the truth value that a window's place lies in the source; None if every place does."""
    mask: Array | None = None
    for d in range(lead, len(source)):
        low, high = entries[d].bounds(views.box(shape))
        position = entries[d].at({views.axis_name(e): _along(shape, e) for e in range(len(shape))}, as_array)
        bounds = [pointwise("le", 0, position)] if low < 0 else []
        bounds += [pointwise("lt", position, source[d])] if high >= source[d] else []
        for bound in bounds:
            mask = bound if mask is None else mask & bound
    return mask


def _along(shape: tuple[int, ...], d: int) -> Array:
    """Return the position along dimension `d` of `shape`, to be broadcast along the others."""
    line = Array("iota", (), (), (shape[d],), as_array(0).dtype)
    return line.reshape([shape[d] if e == d else 1 for e in range(len(shape))])


def _kernel_sizes(kernel: Sizes, x: Array) -> tuple[int, ...]:
    if isinstance(kernel, int):
        return (kernel,) * max(x.ndim - 2, 1)
    if not 1 <= len(kernel) <= x.ndim:
        raise ShapeError(f"expected a window extent for each dimension of space of {list(x.shape)}; got {list(kernel)}")
    return tuple(kernel)


def _sizes(sizes: Sizes, count: int, what: str, least: int = 1) -> tuple[int, ...]:
    out = (sizes,) * count if isinstance(sizes, int) else tuple(sizes)
    if len(out) != count or any(n < least for n in out):
        raise ShapeError(f"expected {what} of at least {least}, one for each of {count} dimensions of space; got {sizes}")
    return out


def _pads(
    padding: Padding, taps: tuple[int, ...], steps: tuple[int, ...], spread: tuple[int, ...], space: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Return how far each dimension of space is extended before and after."""
    if padding == "valid":
        return ((0, 0),) * len(taps)
    if padding == "same":
        if any(s > 1 for s in steps):
            raise UsageError(f"padding 'same' keeps the extents only with strides of 1; got the strides {list(steps)}")
        return tuple((d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2) for d, k in zip(spread, taps, strict=True))
    if isinstance(padding, str):
        raise UsageError(f"expected a padding of whole numbers, 'same' or 'valid'; got {padding!r}")
    rows: tuple[int | Sequence[int], ...] = (padding,) * len(taps) if isinstance(padding, int) else tuple(padding)
    pairs = tuple((p, p) if isinstance(p, int) else (p[0], p[-1]) for p in rows)
    if len(pairs) != len(space) or any(n < 0 for pair in pairs for n in pair):
        raise ShapeError(f"expected paddings ≥ 0, one or a pair for each of {len(space)} dimensions of space; got {padding}")
    return pairs


def _positions(
    space: tuple[int, ...],
    taps: tuple[int, ...],
    steps: tuple[int, ...],
    spread: tuple[int, ...],
    pairs: tuple[tuple[int, int], ...],
) -> tuple[int, ...]:
    """Return how many windows there are along each dimension of space."""
    out = []
    for n, k, s, d, (before, after) in zip(space, taps, steps, spread, pairs, strict=True):
        reach = d * (k - 1) + 1
        if k < 1 or n + before + after < reach:
            raise ShapeError(f"a window that reaches {reach} does not fit into an extent of {n} padded by {before} and {after}")
        out.append((n + before + after - reach) // s + 1)
    return tuple(out)


def _check_channels(x: Array, weight: Array, groups: int, channels: int, outputs: int) -> None:
    if weight.ndim < 3 or x.ndim != weight.ndim:
        raise ShapeError(
            "expected (batch, channels, *space) and a weight with as many dimensions of space; "
            f"got {list(x.shape)} and {list(weight.shape)}."
        )
    if groups < 1 or x.shape[1] != channels or channels % groups or outputs % groups:
        raise ShapeError(
            f"{groups} groups of {list(x.shape)} do not go with a weight of {list(weight.shape)}: "
            f"it takes {channels} channels and makes {outputs}."
        )
