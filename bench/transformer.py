"""Transformer layers as they are written down: what the search must handle at the size people run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eqsat import numpy_like as fn
from eqsat.array import Array
from eqsat.ir import Program
from eqsat.trace import tensor, to_program


@dataclass(frozen=True, slots=True)
class Size:
    """Extents of a decoder layer, and the dtype of activations and weights."""

    tokens: int = 2048
    hidden: int = 4096
    heads: int = 32
    inner: int = 11008
    dtype: str = "bf16"

    @property
    def width(self) -> int:
        """Elements of a head."""
        return self.hidden // self.heads


SMALL = Size(tokens=24, hidden=32, heads=2, inner=48, dtype="f32")
"""A size at which a search that measures takes seconds on a CPU."""


def attention_block(x: Array, size: Size, name: str = "") -> Array:
    """Return x + softmax(q·kᵀ/√d)·v·wo over RMS-normalised x, heads as axes of the weights."""
    h, d, c = size.heads, size.width, size.hidden
    normed = fn.rms_norm(x, tensor(f"g1{name}", (c,), size.dtype, constant=True))
    q, k, v = (fn.einsum("tc,chd->htd", normed, tensor(f"w{part}{name}", (c, h, d), size.dtype, constant=True)) for part in "qkv")
    mixed = fn.softmax(q @ k.mT * (1 / math.sqrt(d))) @ v
    return x + fn.einsum("htd,hdc->tc", mixed, tensor(f"wo{name}", (h, d, c), size.dtype, constant=True))


def gated_mlp(x: Array, size: Size, name: str = "") -> Array:
    """Return x + (silu(n·gate)·(n·up))·down over RMS-normalised x."""
    c, f = size.hidden, size.inner
    normed = fn.rms_norm(x, tensor(f"g2{name}", (c,), size.dtype, constant=True))
    gate, up = (tensor(f"{part}{name}", (c, f), size.dtype, constant=True) for part in ("gate", "up"))
    inner = fn.silu(normed @ gate) * (normed @ up)
    return x + inner @ tensor(f"down{name}", (f, c), size.dtype, constant=True)


def block(size: Size = Size()) -> Program:
    """Return the program of one attention block."""
    return to_program(attention_block(tensor("x", (size.tokens, size.hidden), size.dtype), size))


def layers(count: int = 1, size: Size = Size()) -> Program:
    """Return the program of `count` layers in a row, each with weights of its own."""
    x = tensor("x", (size.tokens, size.hidden), size.dtype)
    for n in range(count):
        x = gated_mlp(attention_block(x, size, f"_{n}"), size, f"_{n}")
    return to_program(x)
