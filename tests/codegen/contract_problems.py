"""Programs that the contract families serve, by name, each with schedules to check: small, odd, and of the board's shapes.

The tests compile some of them without a GPU; on a device all of them are run against the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass

from eqsat.codegen.cuda.skinny import SkinnyFamily, SkinnyTile
from eqsat.codegen.cuda.wgmma import WgmmaFamily, WgmmaTile
from eqsat.codegen.kernel import Family, Schedule
from eqsat.codegen.problem import ContractProblem, SummedContractProblem, contract_problem
from eqsat.ir import Expr, Input, Output, Program, apply, const, read, reduce
from eqsat.types import DType

BF16, F16, F32 = DType.BF16, DType.F16, DType.F32


@dataclass(frozen=True)
class Case:
    """A program, the family that is to serve it, and the schedules to try."""

    name: str
    program: Program
    family: Family
    schedules: tuple[Schedule, ...]

    @property
    def problem(self) -> ContractProblem | SummedContractProblem:
        """Its anatomy."""
        found = contract_problem(self.program)
        assert isinstance(found, ContractProblem | SummedContractProblem), found
        return found


class Shape:
    """Builds reads over axes of given extents, in the layout that a string of axis letters says."""

    def __init__(self, dtype: DType = BF16, **extents: int) -> None:
        self.dtype, self.extents = dtype, extents

    def __call__(self, name: str, layout: str, dtype: DType | None = None) -> Expr:
        return read(name, tuple(layout), tuple(self.extents[a] for a in layout), dtype or self.dtype)

    def matmul(self, x: Expr, w: Expr) -> Expr:
        """Return the sum over k of x · w."""
        return reduce("sum", "k", apply("mul", x, w))

    def program(self, e: Expr, out: DType | None = None, order: str = "") -> Program:
        """Make the program with output `y`, its axes in `order` (alphabetical by default)."""
        axes = tuple(order) if order else tuple(sorted(e.axes))
        reads = {r.attrs[0]: r for r in e.walk() if r.op == "read"}
        inputs = tuple(Input(n, tuple(r.type.extents[a] for a in r.attrs[1]), r.dtype) for n, r in reads.items())
        return Program(inputs, (Output("y", e, axes, out or self.dtype),))

    def rms(self, x: Expr) -> Expr:
        """Return rsqrt(mean of x² over k + 1e-6)."""
        wide = apply("cast", x, dtype=F32)
        mean = apply("mul", reduce("sum", "k", apply("mul", wide, wide)), const(1 / self.extents["k"], F32))
        return apply("rsqrt", apply("add", mean, const(1e-6, F32)))


def silu(e: Expr) -> Expr:
    """Return e · sigmoid(e)."""
    return apply("mul", e, apply("sigmoid", e))


def gelu(e: Expr) -> Expr:
    """Return the tanh form of gelu, in f32."""
    e = apply("cast", e, dtype=F32)
    cubic = apply("mul", apply("mul", e, e), e)
    inner = apply("mul", const(0.7978845608028654, F32), apply("add", e, apply("mul", const(0.044715, F32), cubic)))
    return apply("mul", apply("mul", const(0.5, F32), e), apply("add", const(1.0, F32), apply("tanh", inner)))


def linear(m: int, n: int, k: int, x: str = "ik", w: str = "kj", dtype: DType = BF16, out: DType | None = None) -> Program:
    """Compute y = x @ w with the operands in the given layouts."""
    s = Shape(dtype, i=m, j=n, k=k)
    return s.program(s.matmul(s("x", x), s("w", w)), out)


def linear_silu(m: int, n: int, k: int, dtype: DType = BF16) -> Program:
    """Compute y = silu(x @ w)."""
    s = Shape(dtype, i=m, j=n, k=k)
    return s.program(silu(s.matmul(s("x", "ik"), s("w", "kj"))))


def rms_linear_silu(m: int, n: int, k: int, dtype: DType = BF16) -> Program:
    """Compute y = silu(r · (x @ w)) with r the reciprocal root mean square of x's rows."""
    s = Shape(dtype, i=m, j=n, k=k)
    x = s("x", "ik")
    return s.program(silu(apply("mul", s.rms(x), s.matmul(x, s("w", "kj")))))


def rms_linear(m: int, n: int, k: int, dtype: DType = BF16, gain: bool = True) -> Program:
    """Compute y = (rms(x) · g) @ w, the statistic moved out and the gain left on x."""
    s = Shape(dtype, i=m, j=n, k=k)
    x = s("x", "ik")
    scaled = apply("mul", x, s("g", "k")) if gain else x
    return s.program(apply("mul", s.rms(x), s.matmul(scaled, s("w", "kj"))))


def shifted_linear(m: int, n: int, k: int, x: str = "ik", w: str = "kj", gain: DType = BF16) -> Program:
    """Compute y = (silu(x · g) + x · c) @ w with a vector g along k and a scalar c."""
    s = Shape(BF16, i=m, j=n, k=k)
    v = s("x", x)
    scaled = apply("mul", apply("cast", v, dtype=F32), apply("cast", s("g", "k", gain), dtype=F32))
    left = apply("add", silu(scaled), apply("cast", apply("mul", v, s("c", "")), dtype=F32))
    return s.program(s.matmul(apply("cast", left, dtype=BF16), s("w", w)))


def product_linear(m: int, n: int, k: int, x: str = "ik", w: str = "kj") -> Program:
    """Compute y = (silu(x) · z) @ w: two matrices make the left operand."""
    s = Shape(BF16, i=m, j=n, k=k)
    return s.program(s.matmul(apply("mul", silu(s("x", x)), s("z", x)), s("w", w)))


def rms_gated(m: int, n: int, k: int) -> Program:
    """Compute y = silu(r · (x·g) @ a) · (r · (x·g) @ b) with r the reciprocal root mean square of x's rows."""
    s = Shape(BF16, i=m, j=n, k=k)
    x = s("x", "ik")
    left = apply("mul", x, s("g", "k"))
    a, b = (apply("mul", s.rms(x), s.matmul(left, s(name, "kj"))) for name in "ab")
    return s.program(apply("mul", silu(a), b))


def sum_on_the_right(m: int, n: int, k: int, x: str = "ik", w: str = "kj") -> Program:
    """Compute y = gelu(x @ (u + v) + bias): the right operand is computed, so that rows and columns change places."""
    s = Shape(BF16, i=m, j=n, k=k)
    return s.program(gelu(apply("add", s.matmul(s("x", x), apply("add", s("u", w), s("v", w))), s("bias", "j"))))


def two_products(m: int, n: int, k: int, r: int, x: str = "ik", w: str = "kj", t: str = "ir", b: str = "rj") -> Program:
    """Compute y = silu(x @ w + t @ b), sums over axes of different lengths."""
    s = Shape(BF16, i=m, j=n, k=k, r=r)
    second = reduce("sum", "r", apply("mul", s("t", t), s("b", b)))
    return s.program(silu(apply("add", s.matmul(s("x", x), s("w", w)), second)))


def gated(m: int, n: int, k: int, dtype: DType = BF16, w: str = "kj") -> Program:
    """Compute y = silu(x @ a) · (x @ b)."""
    s = Shape(dtype, i=m, j=n, k=k)
    x = s("x", "ik")
    return s.program(apply("mul", silu(s.matmul(x, s("a", w))), s.matmul(x, s("b", w))))


def bias_gelu_residual(m: int, n: int, k: int, out: DType = BF16) -> Program:
    """Compute y = gelu(x @ w + bias) + r, with r in f32 if the output is."""
    s = Shape(BF16, i=m, j=n, k=k)
    e = apply("add", s.matmul(s("x", "ik"), s("w", "kj")), s("bias", "j"))
    return s.program(apply("add", gelu(e), s("r", "ij", out)), out)


def scaled_max(m: int, n: int, k: int) -> Program:
    """Compute y = (x @ w) / max over k of |x|, plus the row sum: two statistics of different kinds."""
    s = Shape(BF16, i=m, j=n, k=k)
    x = s("x", "ik")
    top, total = reduce("max", "k", apply("abs", x)), reduce("sum", "k", apply("cast", x, dtype=F32))
    return s.program(apply("add", apply("div", s.matmul(x, s("w", "kj")), top), total))


def batched(b: int, m: int, n: int, k: int, x: str = "bik", w: str = "bkj") -> Program:
    """Compute y[b] = x[b] @ w[b]."""
    s = Shape(BF16, b=b, i=m, j=n, k=k)
    return s.program(s.matmul(s("x", x), s("w", w)))


def attention_like(b: int, h: int, m: int, n: int, k: int) -> Program:
    """Compute y = x @ w over two joined row axes: x[b, h, k], w[k, n]."""
    s = Shape(BF16, b=b, h=h, j=n, k=k)
    return s.program(s.matmul(s("x", "bhk"), s("w", "kj")))


def transposed_left(m: int, n: int, k: int) -> Program:
    """Compute y = (2 · xᵀ + 1) @ w for few rows: the left operand is computed on the way, from a transposed buffer."""
    s = Shape(BF16, i=m, j=n, k=k)
    x = apply("add", apply("mul", s("x", "ki"), const(2.0, BF16)), const(1.0, BF16))
    return s.program(s.matmul(x, s("w", "kj")))


_W, _S = WgmmaFamily(), SkinnyFamily()
BIG = (
    WgmmaTile(128, 256, 2, 0, 1, 1, 8),
    WgmmaTile(128, 256, 2, 0, 2, 1, 8),
    WgmmaTile(128, 128, 2, 1, 1, 1, 8),
    WgmmaTile(256, 128, 2, 0, 1, 2, 8),
)
ODD = (
    WgmmaTile(128, 176, 2, 0, 1, 1, 8),
    WgmmaTile(192, 192, 3, 0, 1, 1, 8),
    WgmmaTile(64, 96, 1, 0, 1, 1, 8),
    WgmmaTile(64, 256, 2, 1, 2, 1, 8),
    WgmmaTile(128, 192, 2, 0, 1, 2, 8),
    WgmmaTile(128, 16, 2, 0, 1, 1, 8),
)
RESIDENT = (
    WgmmaTile(64, 64, 1, 0, 1, 1, 8, 2),
    WgmmaTile(64, 128, 1, 0, 1, 1, 8, 2),
    WgmmaTile(64, 32, 1, 0, 1, 1, 8, 2),
    WgmmaTile(64, 64, 2, 1, 1, 1, 8),
)
COMPUTED = (
    WgmmaTile(128, 256, 2, 0, 1, 1, 8),
    WgmmaTile(128, 256, 2, 0, 2, 1, 8),
    WgmmaTile(128, 192, 2, 0, 1, 2, 8),
    WgmmaTile(64, 192, 2, 1, 1, 1, 8),
    WgmmaTile(256, 96, 2, 0, 1, 1, 8),
    WgmmaTile(64, 128, 1, 0, 1, 1, 8),
    WgmmaTile(64, 64, 1, 0, 1, 1, 8, 2),
)
TWO = (WgmmaTile(128, 128, 2, 0, 1, 1, 8), WgmmaTile(128, 160, 2, 0, 2, 1, 8), WgmmaTile(64, 128, 2, 1, 1, 1, 8))
FEW = (
    SkinnyTile(8, 1, 8, 2, 2, 2, 1),
    SkinnyTile(8, 2, 4, 4, 2, 2, 1),
    SkinnyTile(8, 1, 4, 4, 2, 2, 3),
    SkinnyTile(8, 4, 2, 3, 2, 2, 1),
    SkinnyTile(16, 1, 8, 4, 1, 2, 1),
)
STRAIGHT = (
    SkinnyTile(8, 1, 8, 2, 2, 2, 1, 0, 1),
    SkinnyTile(8, 1, 4, 3, 2, 2, 2, 0, 1),
    SkinnyTile(8, 1, 4, 1, 2, 2, 2, 0, 1),
    SkinnyTile(8, 2, 4, 2, 1, 2, 1, 1, 1),
    SkinnyTile(16, 1, 8, 4, 1, 2, 1, 0, 1),
)
STRAIGHT_K_MAJOR = (SkinnyTile(2, 1, 16, 1, 4, 2, 1, 0, 1), SkinnyTile(4, 1, 8, 2, 4, 2, 1, 0, 1))
FEW_K_MAJOR = (SkinnyTile(2, 1, 16, 1, 4, 2, 1), SkinnyTile(4, 1, 8, 2, 4, 2, 1), SkinnyTile(8, 1, 8, 2, 2, 2, 1))

CASES: tuple[Case, ...] = (
    # wgmma: layouts
    Case("wgmma_nn_512", linear(512, 768, 320), _W, BIG + ODD),
    Case("wgmma_nt_512", linear(512, 768, 320, w="jk"), _W, BIG + ODD),
    Case("wgmma_tn_512", linear(512, 768, 320, x="ki"), _W, BIG + ODD),
    Case("wgmma_tt_512", linear(512, 768, 320, x="ki", w="jk"), _W, BIG + ODD),
    Case("wgmma_f16_nn", linear(384, 512, 256, dtype=F16), _W, BIG),
    Case("wgmma_f32_out", linear(384, 512, 256, out=F32), _W, BIG),
    # edges: rows, columns and k that no tile divides; odd columns cannot leave through TMA
    Case("wgmma_edges", linear(333, 424, 200), _W, BIG + ODD),
    Case("wgmma_odd_columns", linear(200, 201, 128, w="jk"), _W, BIG + ODD),
    Case("wgmma_odd_columns_f32", linear(130, 77, 72, w="jk", out=F32), _W, BIG),
    Case("wgmma_tiny", linear(8, 8, 8), _W, ODD),
    Case("wgmma_few_rows", linear(11, 1000, 328), _W, RESIDENT),
    Case("wgmma_few_rows_nt", linear(16, 999, 320, w="jk"), _W, RESIDENT),
    Case("wgmma_few_rows_rms_silu", rms_linear_silu(5, 1024, 512), _W, RESIDENT),
    Case("wgmma_few_rows_gated", gated(8, 1024, 512), _W, RESIDENT),
    # epilogues, statistics, several contractions
    Case("wgmma_silu", linear_silu(512, 512, 512), _W, BIG),
    Case("wgmma_bias_gelu_residual", bias_gelu_residual(300, 520, 256), _W, BIG + ODD),
    Case("wgmma_bias_gelu_residual_f32", bias_gelu_residual(300, 520, 256, F32), _W, BIG),
    Case("wgmma_rms_silu", rms_linear_silu(512, 512, 512), _W, BIG + ODD),
    Case("wgmma_two_statistics", scaled_max(320, 256, 192), _W, BIG),
    Case("wgmma_gated", gated(384, 640, 256), _W, TWO),
    Case("wgmma_gated_nt", gated(384, 640, 256, w="jk"), _W, TWO),
    # left operands computed in registers
    Case("wgmma_rms_gain", rms_linear(512, 768, 320), _W, COMPUTED),
    Case("wgmma_rms_gain_edges", rms_linear(333, 424, 192), _W, COMPUTED),
    Case("wgmma_shifted", shifted_linear(300, 512, 256), _W, COMPUTED),
    Case("wgmma_shifted_tt_f32", shifted_linear(320, 264, 128, x="ki", w="jk", gain=F32), _W, COMPUTED[1:]),
    Case("wgmma_product", product_linear(384, 512, 256), _W, COMPUTED[2:4] + COMPUTED[5:]),
    Case("wgmma_product_tn", product_linear(384, 512, 256, x="ki"), _W, COMPUTED[2:4] + COMPUTED[5:]),
    Case("wgmma_rms_gated", rms_gated(256, 384, 256), _W, (WgmmaTile(128, 96, 2, 0, 1, 1, 8), WgmmaTile(64, 64, 1, 0, 1, 1, 8))),
    Case("wgmma_sum_on_the_right", sum_on_the_right(328, 512, 256), _W, COMPUTED[1:4] + COMPUTED[5:]),
    Case("wgmma_sum_on_the_right_edges", sum_on_the_right(203, 264, 128, w="jk"), _W, COMPUTED[2:4] + COMPUTED[5:]),
    # sums of products over different axes
    Case("wgmma_two_products", two_products(333, 424, 200, 16), _W, BIG + ODD),
    Case("wgmma_two_products_tt", two_products(320, 264, 128, 72, "ki", "jk", "ri", "jr"), _W, BIG + ODD),
    # batches and joined axes
    Case("wgmma_batched", batched(5, 200, 264, 136), _W, BIG + ODD),
    Case("wgmma_batched_tn", batched(3, 128, 256, 192, x="bki", w="bjk"), _W, BIG),
    Case("wgmma_joined_rows", attention_like(4, 50, 0, 256, 128), _W, BIG),
    # skinny: layouts, rows, edges, prologue, statistics
    Case("skinny_nn_16", linear(16, 512, 1024), _S, FEW + STRAIGHT),
    Case("skinny_nt_16", linear(16, 512, 1024, w="jk"), _S, FEW_K_MAJOR + STRAIGHT_K_MAJOR),
    Case("skinny_nn_f16_2", linear(2, 512, 1024, dtype=F16), _S, FEW + STRAIGHT),
    Case("skinny_rows_33", linear(33, 256, 512), _S, (SkinnyTile(8, 1, 4, 2, 1, 2, 1),)),
    Case("skinny_rows_64", linear(64, 256, 512, w="jk"), _S, (SkinnyTile(4, 1, 8, 2, 1, 2, 1),)),
    Case("skinny_edges", linear(5, 104, 333), _S, FEW[:2] + FEW[3:4]),
    Case("skinny_edges_nt", linear(11, 101, 328, w="jk", out=F32), _S, FEW_K_MAJOR + STRAIGHT_K_MAJOR),
    Case("skinny_silu_f32", linear(7, 136, 256, out=F32), _S, FEW),
    Case("skinny_rms_gain", rms_linear(16, 512, 1024), _S, FEW + STRAIGHT),
    Case("skinny_two_statistics", scaled_max(9, 256, 512), _S, FEW + STRAIGHT),
    Case("skinny_gated", gated(8, 512, 1024), _S, FEW[:2] + FEW[3:4] + STRAIGHT[1:4]),
    Case("skinny_transposed_left", transposed_left(6, 128, 256), _S, FEW),
    Case("skinny_batched", batched(3, 4, 128, 256), _S, FEW + STRAIGHT),
)

# Few rows at full size, with the schedules that are to be told apart.
_STREAM = (
    SkinnyTile(8, 1, 8, 2, 2, 2, 1),
    SkinnyTile(8, 1, 8, 2, 2, 2, 1, 0, 1),
    SkinnyTile(8, 1, 8, 2, 3, 2, 1, 0, 1),
    SkinnyTile(8, 1, 16, 2, 1, 2, 1, 0, 1),
    SkinnyTile(8, 1, 8, 2, 1, 2, 2, 0, 1),
    SkinnyTile(8, 1, 4, 2, 3, 2, 2, 0, 1),
    SkinnyTile(8, 1, 4, 4, 2, 2, 2, 0, 1),
    SkinnyTile(8, 1, 4, 4, 2, 2, 3, 0, 1),
    SkinnyTile(16, 1, 8, 4, 1, 2, 1, 0, 1),
    SkinnyTile(8, 2, 4, 4, 2, 2, 1, 0, 1),
    SkinnyTile(8, 1, 8, 2, 2, 0, 1, 0, 1),
)
_WIDE = (
    SkinnyTile(8, 1, 4, 1, 2, 2, 1),
    SkinnyTile(8, 1, 4, 2, 2, 2, 1),
    SkinnyTile(8, 1, 4, 1, 2, 2, 2, 0, 1),
    SkinnyTile(8, 1, 4, 1, 3, 2, 2, 0, 1),
    SkinnyTile(8, 1, 4, 1, 2, 2, 3, 0, 1),
    SkinnyTile(8, 1, 8, 1, 1, 2, 2, 0, 1),
    SkinnyTile(8, 1, 8, 1, 1, 2, 1, 0, 1),
    SkinnyTile(8, 1, 4, 2, 2, 2, 3, 0, 1),
    SkinnyTile(8, 1, 4, 3, 2, 2, 2, 0, 1),
    *RESIDENT,
    WgmmaTile(64, 128, 1, 0, 1, 1, 8),
    WgmmaTile(64, 128, 2, 1, 1, 1, 8),
)
TUNING: tuple[Case, ...] = (
    Case("tuning_16x4096x4096", linear(16, 4096, 4096), _S, _STREAM),
    Case("tuning_rms_16x4096x4096", rms_linear(16, 4096, 4096), _S, _STREAM),
    Case("tuning_rms_1x4096x4096", rms_linear(1, 4096, 4096, gain=False), _S, _STREAM),
    Case("tuning_16x4096x14336", linear(16, 4096, 14336), _S, _STREAM),
    Case("tuning_16x11008x4096", linear(16, 11008, 4096), _S, _WIDE),
    Case("tuning_16x14336x4096", linear(16, 14336, 4096), _S, _WIDE),
    Case("tuning_gated_8x11008x4096", gated(8, 11008, 4096), _S, _WIDE),
    Case("tuning_gated_16x11008x4096", gated(16, 11008, 4096), _S, _WIDE),
)

# The board's shapes: too large for a quick check, meant to be timed.
BOARD: tuple[Case, ...] = (
    Case("gemm_4096x4096x4096_bf16", linear(4096, 4096, 4096), _W, BIG + ODD[:2]),
    Case("gemm_8192x8192x8192_bf16", linear(8192, 8192, 8192), _W, BIG + ODD[:2]),
    Case("gemm_1024x11008x4096_bf16", linear(1024, 11008, 4096), _W, BIG + ODD[:1]),
    Case("gemm_bias_gelu_4096x16384x4096_bf16", bias_gelu_residual(4096, 16384, 4096), _W, BIG),
    Case("rmsnorm_matmul_silu_4096x8192x4096_bf16", rms_linear_silu(4096, 8192, 4096), _W, BIG),
    Case("gated_mlp_4096x4096x11008_bf16", gated(4096, 11008, 4096), _W, TWO),
    Case("bmm_64x1024x1024x1024_bf16", batched(64, 1024, 1024, 1024), _W, BIG),
    Case("gemm_16x4096x4096_bf16", linear(16, 4096, 4096), _S, FEW),
    Case("rmsnorm_matmul_16x4096x4096_bf16", rms_linear(16, 4096, 4096), _S, FEW),
    Case("gemm_16x4096x14336_bf16", linear(16, 4096, 14336), _S, FEW),
    Case("gated_mlp_8x4096x11008_bf16", gated(8, 11008, 4096), _S, FEW[:2] + FEW[3:4]),
    Case("gated_mlp_16x4096x11008_bf16", gated(16, 11008, 4096), _S, FEW[:2] + FEW[3:4]),
    *TUNING,
)
