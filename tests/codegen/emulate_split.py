"""Run emitted split kernels on the CPU: the emulator of wgmma kernels, with the 64-byte swizzle and a workspace."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eqsat.codegen.kernel import BufferArg, KernelSource, TensorMapArg
from eqsat.ir import Program
from tests.codegen.emulate import aligned
from tests.codegen.emulate_mma import Map, emulated_wgmma

# The canonical layouts of the 64-byte swizzle beside those of 128 (PTX ISA, "Shared memory matrix layout").
OPERAND = """static float operand_value(u64 d, int mn, int k, int transposed, bool) {
  const u32 start = (u32)(d & 0x3fff) << 4, leading = (u32)(d >> 16 & 0x3fff) << 4, stride = (u32)(d >> 32 & 0x3fff) << 4;
  const int width = d >> 62 == 2 ? 64 : 128, held = width / 2;
  const u32 at = transposed ? start + mn / held * leading + k / 8 * stride + k % 8 * width + mn % held * 2
                            : start + mn / 8 * stride + mn % 8 * 128 + k * 2;
  u16 bits;
  memcpy(&bits, here(swizzled(at, width)), 2);
  return f16_value(bits);
}
"""


def emulated_split(source: KernelSource) -> KernelSource:
    """Rewrite a split kernel for `emulate.compile_kernels`."""
    made = emulated_wgmma(source)
    text, layouts = re.subn(r"^static float operand_value\(.*?^}\n", OPERAND, made.text, flags=re.DOTALL | re.MULTILINE)
    head, mark, tail = text.partition("// split.cuh:")
    assert layouts == 1, "the emulator of wgmma kernels has changed"
    vocabulary = Path(__file__).with_name("emulate_split.hpp").read_text(encoding="utf-8")
    return dataclasses.replace(made, text=head + vocabulary + mark + tail)


def run_split(
    entry: Any, source: KernelSource, program: Program, inputs: Mapping[str, np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    """Run an emulated kernel with one output, twice if it has a workspace (whose counters must be left as they were); return it."""
    (out,) = program.outputs
    result = aligned(np.full(math.prod(out.shape) * out.dtype.bytes, 0xCB, np.uint8))
    arrays = {name: aligned(a) for name, a in inputs.items()} | {out.name: result}
    workspace = aligned(np.zeros(source.workspace_bytes, np.uint8))
    keep, pointers = [], []
    for arg in source.args:
        if isinstance(arg, TensorMapArg):
            assert all(s % 16 == 0 for s in arg.strides), "TMA wants strides of whole 16 bytes"
            keep.append(Map(arrays[arg.name].ctypes.data, arg.extents, arg.strides, arg.box, arg.swizzle, arg.dtype.bytes))
            pointers.append(ctypes.addressof(keep[-1]))
        elif isinstance(arg, BufferArg):
            pointers.append(arrays[arg.name].ctypes.data)
        else:
            pointers.append(workspace.ctypes.data)
    for _ in range(2 if source.workspace_bytes else 1):
        result[...] = 0xCB
        entry((ctypes.c_void_p * len(pointers))(*pointers), source.grid[0], source.block)
    around = np.asarray(result.base)
    start = result.ctypes.data - around.ctypes.data
    assert np.all(around[:start] == 0xA5), "written before the output"
    assert np.all(around[start + result.nbytes :] == 0xA5), "written behind the output"
    return result.view(out.dtype.numpy).reshape(out.shape)
