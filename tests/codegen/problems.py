"""Programs for every kernel family, small and odd: what the tests emulate or run, and what a device check runs in full.

`PROBLEMS` maps a name to a program. Extents are primes, ones, powers of two and empty; layouts, dtypes, paddings, broadcasts,
several statistics and every reduction are there.
"""

from __future__ import annotations

from collections.abc import Sequence

from eqsat.access import AccessMap, Index
from eqsat.ir import Expr, Input, Output, Program, access, apply, const, iota, read, reduce
from eqsat.types import DType

F64, F32, F16, BF16, I64, I32, BOOL = DType.F64, DType.F32, DType.F16, DType.BF16, DType.I64, DType.I32, DType.BOOL


def real(value: float, dtype: DType = F32) -> Expr:
    """Return a constant."""
    return const(value, dtype)


def array(name: str, dtype: DType, /, **dims: int) -> Expr:
    """Read `name` over the named dimensions, in their order; a dimension called `_…` has extent 1 and no axis."""
    return read(name, tuple("" if a.startswith("_") else a for a in dims), tuple(dims.values()), dtype)


def program(expr: Expr, axes: Sequence[str], dtype: DType | None = None) -> Program:
    """Return the program with one output `out` over `axes`; its inputs are what `expr` reads."""
    inputs: dict[str, Input] = {}
    for e in expr.walk():
        if e.op == "read":
            name, names = e.attrs
            shape = tuple(e.type.extents[a] if a else 1 for a in names)
            inputs[name] = Input(name, shape, e.dtype)
    return Program(tuple(inputs.values()), (Output("out", expr, tuple(axes), dtype or expr.dtype),))


def softmax(x: Expr, axis: str) -> Expr:
    """Return exp(x − max) / Σ exp(x − max)."""
    e = apply("exp", apply("sub", x, reduce("max", axis, x)))
    return apply("div", e, reduce("sum", axis, e))


def mean(x: Expr, axis: str) -> Expr:
    """Return the mean along `axis`."""
    return apply("div", reduce("sum", axis, x), real(x.type.extents[axis], x.dtype.accumulator))


def rms_norm(x: Expr, gain: Expr, axis: str) -> Expr:
    """Return x · rsqrt(mean(x²) + ε) · gain."""
    wide = apply("cast", x, dtype=F32)
    scale = apply("rsqrt", apply("add", mean(apply("mul", wide, wide), axis), real(1e-6)))
    return apply("mul", apply("mul", wide, scale), gain)


def layer_norm(x: Expr, gain: Expr, bias: Expr, axis: str) -> Expr:
    """Return (x − mean) · rsqrt(var + ε) · gain + bias."""
    wide = apply("cast", x, dtype=F32)
    centred = apply("sub", wide, mean(wide, axis))
    scale = apply("rsqrt", apply("add", mean(apply("mul", centred, centred), axis), real(1e-5)))
    return apply("add", apply("mul", apply("mul", centred, scale), gain), bias)


def group_norm(x: Expr, gain: Expr) -> Expr:
    """Return (x − mean) · rsqrt(var + ε) · gain over the axes c and n."""
    wide = apply("cast", x, dtype=F32)
    count = real(float(x.type.extents["n"] * x.type.extents["c"]))
    centred = apply("sub", wide, apply("div", reduce("sum", "c", reduce("sum", "n", wide)), count))
    spread = apply("div", reduce("sum", "c", reduce("sum", "n", apply("mul", centred, centred))), count)
    scale = apply("rsqrt", apply("add", spread, real(1e-5)))
    return apply("mul", apply("mul", centred, scale), gain)


def picked(x: Expr, label: Expr) -> Expr:
    """Return x at the position `label` of axis n, 0 if it is outside."""
    label = label if label.dtype is I64 else apply("cast", label, dtype=I64)
    return reduce("sum", "n", apply("where", apply("eq", iota("n", x.type.extents["n"]), label), x, const(0.0, x.dtype)))


def cross_entropy(x: Expr, label: Expr) -> Expr:
    """Return log Σ exp(x) − x at the label, along n."""
    x = apply("cast", x, dtype=F32)
    top = reduce("max", "n", x)
    total = reduce("sum", "n", apply("exp", apply("sub", x, top)))
    return apply("sub", apply("add", apply("log", total), top), picked(x, label))


def gelu(x: Expr) -> Expr:
    """Return x/2 · (1 + erf(x/√2))."""
    return apply("mul", apply("mul", x, real(0.5)), apply("add", real(1.0), apply("erf", apply("mul", x, real(0.5**0.5)))))


def silu(x: Expr) -> Expr:
    """Return x · sigmoid(x)."""
    return apply("mul", x, apply("sigmoid", x))


def matmul(a: Expr, b: Expr, axis: str = "k") -> Expr:
    """Return Σ_k a·b."""
    return reduce("sum", axis, apply("mul", a, b))


def padded(x: Expr, **by: int) -> Expr:
    """Return x with `by` zeros on both sides of the named axes; the new axes are called `<axis>p`."""
    extents = x.type.extents
    entries = tuple((a, Index.axis(a + "p") + Index.const(-n)) for a, n in by.items())
    return access(x, AccessMap(entries, tuple((a + "p", extents[a] + 2 * n) for a, n in by.items())))


def _point() -> dict[str, Program]:
    x, y = array("x", BF16, m=24, n=64), array("y", BF16, m=24, n=64)
    f = array("f", F32, m=7, n=13)
    image = array("i", F32, c=3, h=5, w=8)
    cube = array("q", F32, a=5, b=6, c=8)
    truth = array("t", BOOL, n=48)
    joined = AccessMap((("a", Index.axis("ab") // 6), ("b", Index.axis("ab") % 6)), (("ab", 30),))
    return {
        "point-swiglu": program(apply("mul", silu(x), y), "mn", BF16),
        "point-gelu-residual": program(apply("add", apply("mul", gelu(f), array("g", F32, m=7, n=13)), array("r", F32, n=13)), "mn"),
        "point-one-element": program(apply("add", array("u", F32, _a=1), array("v", F32, _b=1)), ("",)),
        "point-empty": program(apply("neg", array("e", F32, m=0, n=5)), "mn"),
        "point-prime": program(apply("exp", array("p", F16, m=131)), "m", F16),
        "point-mixed-dtypes": program(apply("add", apply("mul", array("b", BF16, m=6, n=32), array("s", F32, m=6)), array("d", F64, n=32)), "mn", F32),
        "point-integers": program(apply("maximum", apply("mul", array("j", I32, n=40), array("l", I64, n=40)), const(-3, I64)), "n"),
        "point-integer-division": program(apply("div", array("j", I32, n=24), apply("add", apply("abs", array("l", I32, n=24)), const(1, I32))), "n"),
        "point-booleans": program(apply("where", apply("and", truth, apply("lt", array("a", F32, n=48), array("b", F32, n=48))), array("a", F32, n=48), real(-1.0)), "n"),
        "point-bool-output": program(apply("or", apply("not", truth), apply("eq", array("z", I32, n=48), const(2, I32))), "n"),
        "point-transpose": program(apply("mul", array("w", F32, m=70, n=66), real(2.0)), "nm"),
        "point-transpose-16": program(apply("add", array("w", BF16, m=64, n=128), array("v", BF16, n=128, m=64)), "nm", BF16),
        "point-transpose-batch": program(array("w", F16, b=3, m=33, n=40), "bnm", F16),
        "point-permute": program(array("w", F32, a=4, b=6, c=10), "bca"),
        "point-pad": program(apply("add", padded(image, h=1, w=2), array("s", F32, c=3)), ("c", "hp", "wp")),
        "point-slice": program(access(cube, AccessMap((("a", Index.axis("s") * 2), ("c", Index.axis("t") + Index.const(4))), (("s", 3), ("t", 4)))), "sbt"),
        "point-flip": program(access(f, AccessMap((("n", Index.const(12) + Index.axis("r") * -1),), (("r", 13),))), "mr"),
        "point-join": program(apply("tanh", access(cube, joined)), ("ab", "c")),
        "point-iota": program(apply("where", apply("le", iota("n", 20), iota("m", 12)), array("s", F32, m=12, n=20), real(float("-inf"))), "mn"),
        "point-casts": program(apply("cast", apply("cast", array("x", F32, n=32), dtype=BF16), dtype=F32), "n"),
        "point-cast-whole": program(apply("add", apply("cast", array("x", F32, n=40), dtype=I32), apply("cast", array("d", F64, n=40), dtype=I64)), "n"),
        "point-cast-truth": program(apply("cast", array("x", BF16, n=40), dtype=BOOL), "n"),
        "point-constant": program(apply("add", array("k", F32, m=5, _n=1), real(1e-30)), ("m", "")),
    }  # fmt: skip


def _functions() -> dict[str, Program]:
    out: dict[str, Program] = {}
    unary = ("neg", "abs", "exp", "tanh", "erf", "sigmoid", "sin", "cos", "floor")
    for dtype in (F32, F64, BF16):
        x = array("x", dtype, n=96)
        for op in unary:
            out[f"function-{op}-{dtype}"] = program(apply(op, x), "n", dtype)
        positive = apply("add", apply("abs", x), const(0.125, dtype))
        for op in ("recip", "log", "sqrt", "rsqrt"):
            out[f"function-{op}-{dtype}"] = program(apply(op, positive), "n", dtype)
        out[f"function-pow-{dtype}"] = program(apply("pow", positive, array("y", dtype, n=96)), "n", dtype)
        out[f"function-minimum-{dtype}"] = program(apply("minimum", x, array("y", dtype, n=96)), "n", dtype)
    return out


def _reduce() -> dict[str, Program]:
    x = array("x", BF16, m=6, n=512)
    odd = array("x", F32, m=5, n=37)
    gain, bias, rest = array("g", BF16, n=512), array("b", BF16, n=512), array("r", BF16, m=6, n=512)
    image = array("i", F32, b=2, c=3, h=5, w=8)
    wide = array("w", F32, n=64)
    total = reduce("sum", "m", reduce("sum", "n", odd))
    double = array("d", F64, m=5, n=37)
    spread = apply("sub", double, mean(double, "n"))
    return {
        "reduce-softmax": program(softmax(x, "n"), "mn", BF16),
        "reduce-softmax-odd": program(softmax(odd, "n"), "mn"),
        "reduce-softmax-column": program(softmax(array("x", F32, m=37, n=64), "m"), "mn"),
        "reduce-softmax-transposed": program(softmax(array("x", F32, n=37, m=16), "n"), "mn"),
        "reduce-rms-norm": program(rms_norm(x, gain, "n"), "mn", BF16),
        "reduce-layer-norm-gelu": program(apply("add", gelu(layer_norm(x, gain, bias, "n")), rest), "mn", BF16),
        "reduce-layer-norm-f64": program(apply("div", spread, apply("sqrt", mean(apply("mul", spread, spread), "n"))), "mn", F64),
        "reduce-sum-rows": program(reduce("sum", "n", x), "m", F32),
        "reduce-sum-columns": program(reduce("sum", "m", array("x", F32, m=300, n=64)), "n"),
        "reduce-sum-columns-odd": program(reduce("sum", "m", array("x", F16, m=67, n=13)), "n", F32),
        "reduce-sum-columns-16": program(reduce("sum", "m", array("x", BF16, m=129, n=256)), "n", BF16),
        "reduce-sum-all": program(total, ()),
        "reduce-sum-all-long": program(reduce("sum", "n", array("x", F32, n=10000)), ()),
        "reduce-mean-variance": program(apply("sub", mean(apply("mul", odd, odd), "n"), apply("mul", mean(odd, "n"), mean(odd, "n"))), "m"),
        "reduce-channels": program(reduce("sum", "b", reduce("sum", "h", reduce("sum", "w", image))), "c"),
        "reduce-middle": program(reduce("max", "h", image), ("b", "c", "w")),
        "reduce-max": program(reduce("max", "n", odd), "m"),
        "reduce-min": program(reduce("min", "n", apply("abs", odd)), "m"),
        "reduce-prod": program(reduce("prod", "n", apply("add", real(1.0), apply("mul", odd, real(0.01)))), "m"),
        "reduce-any": program(reduce("any", "n", apply("lt", odd, real(-2.0))), "m"),
        "reduce-all": program(reduce("all", "m", apply("lt", odd, real(1.5))), "n"),
        "reduce-count": program(reduce("sum", "n", apply("lt", real(0.0), odd)), "m"),
        "reduce-argmax": program(reduce("argmax", "n", odd), "m"),
        "reduce-argmax-ties": program(reduce("argmax", "n", apply("floor", odd)), "m"),
        "reduce-argmin-column": program(reduce("argmin", "m", array("x", F32, m=67, n=64)), "n"),
        "reduce-argmax-bf16": program(reduce("argmax", "n", x), "m"),
        "reduce-integers": program(reduce("sum", "n", array("x", I32, m=4, n=129)), "m"),
        "reduce-integers-max": program(reduce("max", "m", array("x", I64, m=17, n=6)), "n"),
        "reduce-length-one": program(softmax(array("x", F32, m=9, n=1), "n"), "mn"),
        "reduce-one-row": program(softmax(array("x", F32, n=3000), "n"), "n"),
        "reduce-empty-rows": program(reduce("sum", "n", array("x", F32, m=0, n=8)), "m"),
        "reduce-empty-length": program(reduce("sum", "n", array("x", F32, m=4, n=0)), "m"),
        "reduce-gemv": program(matmul(array("a", BF16, m=12, k=512), array("v", BF16, k=512)), "m", F32),
        "reduce-gemv-left": program(matmul(array("v", F32, k=200), array("a", F32, k=200, m=64)), "m"),
        "reduce-dot": program(matmul(array("a", F32, k=5000), array("b", F32, k=5000)), ()),
        "reduce-scaled-rows": program(apply("mul", reduce("sum", "n", apply("mul", odd, array("c", F32, m=5))), array("c", F32, m=5)), "m"),
        "reduce-padded": program(reduce("max", "wp", padded(image, w=1)), ("b", "c", "h")),
        "reduce-masked": program(reduce("sum", "n", apply("where", apply("le", iota("n", 37), iota("m", 5)), odd, real(0.0))), "m"),
        "reduce-log-sum-exp": program(apply("log", reduce("sum", "n", apply("exp", wide))), ()),
        "reduce-cross-entropy": program(cross_entropy(x, array("l", I64, m=6)), "m", F32),
        "reduce-cross-entropy-column": program(cross_entropy(array("x", F32, n=40, m=64), array("l", I32, m=64)), "m"),
        "reduce-picked-alone": program(picked(odd, array("l", I32, m=5)), "m"),
        "reduce-picked-and-scaled": program(apply("sub", softmax(odd, "n"), picked(apply("mul", odd, array("w", F32, n=37)), array("l", I64, m=5))), "mn"),
        "reduce-group-norm": program(group_norm(array("x", BF16, m=3, c=4, n=128), gain=array("g", F32, c=4)), ("m", "c", "n"), BF16),
        "reduce-batch-norm": program(group_norm(array("x", F32, c=4, m=3, n=64), gain=array("g", F32, m=3)), ("c", "m", "n")),
        "reduce-strided-norm": program(layer_norm(array("x", F32, m=3, n=40, k=64), array("g", F32, n=40), array("h", F32, n=40), "n"), ("m", "n", "k")),
        "reduce-several-statistics": program(apply("add", reduce("max", "m", array("x", F32, m=70, n=64)), mean(array("x", F32, m=70, n=64), "m")), "n"),
        "reduce-long-layer-norm": program(layer_norm(array("x", BF16, m=2, n=32776), array("g", BF16, n=32776), array("h", BF16, n=32776), "n"), "mn", BF16),
        "reduce-long-rows": program(softmax(array("x", F16, m=2, n=40000), "n"), "mn", F16),
    }  # fmt: skip


def _contract() -> dict[str, Program]:
    a, b = array("a", F32, m=65, k=33), array("b", F32, k=33, n=70)
    x, w = array("x", BF16, m=48, k=64), array("w", BF16, k=64, n=72)
    square = apply("mul", x, x)
    scale = apply("rsqrt", apply("add", mean(square, "k"), real(1e-6)))
    normed = apply("mul", matmul(apply("mul", x, array("g", BF16, k=64)), w), scale)
    gated = apply("mul", silu(matmul(x, w)), matmul(x, array("u", BF16, k=64, n=72)))
    return {
        "contract-f32": program(matmul(a, b), "mn"),
        "contract-f32-transposed-out": program(matmul(a, b), "nm"),
        "contract-aligned": program(matmul(array("a", F32, m=128, k=64), array("b", F32, k=64, n=128)), "mn"),
        "contract-layouts": program(matmul(array("a", F32, k=40, m=52), array("b", F32, n=36, k=40)), "mn"),
        "contract-f64": program(matmul(array("a", F64, m=17, k=9), array("b", F64, k=9, n=21)), "mn"),
        "contract-i32": program(matmul(array("a", I32, m=17, k=30), array("b", I32, k=30, n=9)), "mn"),
        "contract-f16": program(matmul(array("a", F16, m=33, k=128), array("b", F16, k=128, n=40)), "mn", F16),
        "contract-mixed": program(matmul(array("a", BF16, m=33, k=24), array("b", F32, k=24, n=40)), "mn", F32),
        "contract-batch": program(matmul(array("a", F32, b=3, m=20, k=19), array("w", F32, b=3, k=19, n=24)), "bmn"),
        "contract-batch-of-m": program(matmul(array("a", F32, b=3, m=20, k=19), array("w", F32, k=19, n=24)), "bmn"),
        "contract-two-k": program(reduce("sum", "k", reduce("sum", "j", apply("mul", array("a", F32, m=20, j=4, k=6), array("w", F32, j=4, k=6, n=24)))), "mn"),
        "contract-bias-gelu": program(gelu(apply("add", matmul(x, w), array("c", BF16, n=72))), "mn", BF16),
        "contract-residual": program(apply("add", matmul(a, b), array("r", F32, n=70, m=65)), "mn"),
        "contract-rms": program(silu(normed), "mn", BF16),
        "contract-gated": program(gated, "mn", BF16),
        "contract-prologue": program(matmul(gelu(a), b), "mn"),
        "contract-skinny": program(matmul(array("a", BF16, m=3, k=256), array("b", BF16, k=256, n=130)), "mn", BF16),
        "contract-tall": program(matmul(array("a", F32, m=300, k=5), array("b", F32, k=5, n=2)), "mn"),
        "contract-k-one": program(matmul(array("a", F32, m=10, k=1), array("b", F32, k=1, n=12)), "mn"),
        "contract-empty-k": program(matmul(array("a", F32, m=4, k=0), array("b", F32, k=0, n=6)), "mn"),
        "contract-empty-m": program(matmul(array("a", F32, m=0, k=4), array("b", F32, k=4, n=6)), "mn"),
    }  # fmt: skip


PROBLEMS: dict[str, Program] = {**_point(), **_functions(), **_reduce(), **_contract()}
