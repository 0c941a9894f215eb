"""Programs whose outputs contract one left operand: for the families that make them all in one launch."""

from __future__ import annotations

from collections.abc import Sequence

from eqsat.codegen.cuda.skinny import SkinnyTile
from eqsat.codegen.cuda.wgmma import WgmmaTile
from eqsat.codegen.kernel import Schedule
from eqsat.codegen.problem import GroupedContractProblem, contract_problem
from eqsat.ir import Expr, Input, Output, Program, apply, read, reduce
from eqsat.types import DType
from tests.codegen.contract_problems import BF16, BIG, F16, F32, Shape, gelu, silu


def together(*outputs: tuple[str, Expr, str, DType]) -> Program:
    """Make the program with these outputs: name, value, order of the axes, stored type."""
    reads = {r.attrs[0]: r for _, e, _, _ in outputs for r in e.walk() if r.op == "read"}
    inputs = tuple(Input(n, tuple(r.type.extents[a] for a in r.attrs[1]), r.dtype) for n, r in reads.items())
    return Program(inputs, tuple(Output(name, e, tuple(order), dtype) for name, e, order, dtype in outputs))


def grouped(program: Program) -> GroupedContractProblem:
    """Return the problem of a program with several outputs."""
    found = contract_problem(program)
    assert isinstance(found, GroupedContractProblem), found
    return found


def projections(m: int, columns: Sequence[int], k: int, x: str = "ik", w: str = "kj", dtype: DType = BF16) -> Program:
    """Compute y0 = x @ w0, y1 = x @ w1, …, each with its own columns: w has the axes k and j in the given order."""
    s = Shape(dtype, i=m, k=k, **dict(zip("pqrs", columns, strict=False)))
    names = "pqrs"[: len(columns)]
    values = [s.matmul(s("x", x), s(f"w{n}", w.replace("j", c))) for n, c in enumerate(names)]
    return together(*((f"y{n}", e, f"i{c}", dtype) for n, (e, c) in enumerate(zip(values, names, strict=True))))


def same_columns(m: int, n: int, k: int) -> Program:
    """Compute y0 = x @ w0 and y1 = x @ w1 over the same column axis."""
    s = Shape(BF16, i=m, j=n, k=k)
    return together(*((f"y{c}", s.matmul(s("x", "ik"), s(f"w{c}", "kj")), "ij", BF16) for c in range(2)))


def heads(m: int, queries: int, keys: int, d: int, k: int) -> Program:
    """Compute q[h, i, d] and v[g, i, e]: outputs by head, of different numbers of heads, the normalised rows' scale moved out."""
    s = Shape(BF16, i=m, k=k, h=queries, g=keys, d=d, e=d)
    x = s("x", "ik")
    q = apply("mul", s.rms(x), s.matmul(x, s("wq", "khd")))
    return together(("q", q, "hid", BF16), ("v", s.matmul(x, s("wv", "kge")), "gie", BF16))


def with_epilogues(m: int, columns: Sequence[int], k: int) -> Program:
    """Compute gelu(x @ w0 + b), silu(x @ w1) in f32, and (x @ w2) · r: one of each kind of epilogue."""
    p, q, r = columns
    s = Shape(BF16, i=m, k=k, p=p, q=q, r=r)
    x = s("x", "ik")
    first = gelu(apply("add", s.matmul(x, s("w0", "kp")), s("b", "p")))
    second = silu(apply("cast", s.matmul(x, s("w1", "kq")), dtype=F32))
    return together(
        ("y0", apply("cast", first, dtype=BF16), "ip", BF16),
        ("y1", second, "iq", F32),
        ("y2", apply("mul", s.matmul(x, s("w2", "kr")), s("r", "ir")), "ir", BF16),
    )


def gates(m: int, columns: Sequence[int], k: int) -> Program:
    """Compute two gated products, silu(x @ a) · (x @ b): two contractions for each output."""
    s = Shape(BF16, i=m, k=k, p=columns[0], q=columns[1])
    x = s("x", "ik")
    values = [apply("mul", silu(s.matmul(x, s(f"a{c}", f"k{c}"))), s.matmul(x, s(f"b{c}", f"k{c}"))) for c in "pq"]
    return together(*((f"y{c}", e, f"i{c}", BF16) for e, c in zip(values, "pq", strict=True)))


def batches(b: int, m: int, columns: Sequence[int], k: int) -> Program:
    """Compute y0[b] = x[b] @ w0[b] and y1[b] = x[b] @ w1[b]."""
    s = Shape(BF16, b=b, i=m, k=k, p=columns[0], q=columns[1])
    return together(*((f"y{c}", s.matmul(s("x", "bik"), s(f"w{c}", f"bk{c}")), f"bi{c}", BF16) for c in "pq"))


def plain(m: int, columns: Sequence[int], k: int) -> Program:
    """Compute x @ w0 and, over f32, exp of the row sums of x times x @ w1: a statistic that one part alone needs."""
    s = Shape(F32, i=m, k=k, p=columns[0], q=columns[1])
    x = s("x", "ik")
    mean = apply("mul", reduce("sum", "k", x), read("scale", (), (), F32))
    return together(
        ("y0", s.matmul(x, s("w0", "kp")), "ip", F32), ("y1", apply("add", mean, s.matmul(x, s("w1", "qk"))), "iq", F32)
    )


def queries_and_keys(m: int, n: int, k: int) -> Program:
    """Compute q[h, i, d] and c[h, j, d] of the same normalised rows, which each output calls otherwise."""
    s = Shape(BF16, i=m, j=m, k=k, h=2, d=n // 2)
    values = [apply("mul", s.rms(s("x", f"{row}k")), s.matmul(s("x", f"{row}k"), s(f"w{row}", "khd"))) for row in "ij"]
    return together(*((f"y{row}", e, f"h{row}d", BF16) for e, row in zip(values, "ij", strict=True)))


_FEW = (SkinnyTile(8, 1, 8, 2, 2, 2, 1), SkinnyTile(8, 1, 4, 1, 2, 2, 2, 0, 1), SkinnyTile(8, 2, 4, 3, 1, 2, 1, 1))
_TWO = (WgmmaTile(128, 128, 2, 0, 1, 1, 8), WgmmaTile(128, 64, 2, 0, 1, 2, 8))
CASES: tuple[tuple[str, Program, tuple[Schedule, ...]], ...] = (
    ("grouped_wgmma", projections(320, (520, 256, 8), 328), BIG),
    ("grouped_wgmma_nt_f16", projections(200, (104, 192), 136, w="jk", dtype=F16), BIG),
    ("grouped_wgmma_heads", heads(200, 4, 2, 64, 256), BIG),
    ("grouped_wgmma_rows_under_two_names", queries_and_keys(300, 256, 256), BIG),
    ("grouped_wgmma_epilogues", with_epilogues(300, (520, 264, 136), 256), BIG),
    ("grouped_wgmma_gates", gates(300, (520, 264), 256), _TWO),
    ("grouped_wgmma_batched", batches(3, 200, (264, 136), 136), BIG),
    ("grouped_skinny", projections(16, (520, 256, 8), 1024), _FEW),
    ("grouped_skinny_heads", heads(9, 4, 2, 64, 1024), _FEW),
    ("grouped_skinny_epilogues", with_epilogues(12, (520, 264, 136), 512), _FEW),
)
"""Small and odd ones, to be run on a device against the oracle."""
BOARD: tuple[tuple[str, Program, tuple[Schedule, ...]], ...] = (
    ("qkv_2048x4096_grouped_heads_bf16", projections(2048, (4096, 1024, 1024), 4096), BIG),
    ("qkv_2048x4096_bf16", projections(2048, (4096, 4096, 4096), 4096), BIG),
    ("qkv_16x4096_grouped_heads_bf16", projections(16, (4096, 1024, 1024), 4096), _FEW),
)
"""Shapes of models, meant to be timed."""
