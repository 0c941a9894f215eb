"""Programs for the dependent fold: every form of score, mask, value and output, with even and ragged extents.

`FOLDS` maps a name to a program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from eqsat.access import AccessMap, Index
from eqsat.ir import Expr, Input, Output, Program, access, apply, const, iota, reduce
from eqsat.types import DType
from tests.codegen.problems import array, real

F64, F32, F16, BF16, I64, I32, BOOL = DType.F64, DType.F32, DType.F16, DType.BF16, DType.I64, DType.I32, DType.BOOL
INF = math.inf

Score = Callable[[Expr], Expr]


def several(**outputs: tuple[Expr, Sequence[str], DType | None]) -> Program:
    """Return the program with these outputs: name = (expression, axes, dtype); its inputs are what they read."""
    inputs: dict[str, Input] = {}
    for expr, _, _ in outputs.values():
        for e in expr.walk():
            if e.op == "read":
                name, names = e.attrs
                inputs[name] = Input(name, tuple(e.type.extents[a] if a else 1 for a in names), e.dtype)
    made = tuple(Output(n, e, tuple(axes), d or e.dtype) for n, (e, axes, d) in outputs.items())
    return Program(tuple(inputs.values()), made)


def nested(op: str, axes: str, body: Expr) -> Expr:
    """Return the nest of reductions over `axes`, the last innermost."""
    for a in reversed(axes):
        body = reduce(op, a, body)
    return body


def fold(s: Expr, v: Expr | None, over: str = "k", floor: float | None = None) -> Expr:
    """Return Σ e^(s − M)·v, or Σ e^(s − M) without `v`; M is at least `floor`."""
    top = nested("max", over, s)
    if floor is not None:
        top = apply("maximum", top, const(floor, s.dtype))
    weight = apply("exp", apply("sub", s, top))
    return nested("sum", over, weight if v is None else apply("mul", weight, v))


def scores(q: Expr, k: Expr, over: str = "d") -> Expr:
    """Return Σ_d q·k / √|d|."""
    size = math.prod(q.type.extents[a] for a in over)
    return apply("mul", nested("sum", over, apply("mul", q, k)), const(size**-0.5, q.dtype))


def masked(s: Expr, keep: Expr) -> Expr:
    """Return s where `keep`, else −inf."""
    return apply("where", keep, s, const(-INF, s.dtype))


def causal(s: Expr, rows: str = "m", keys: str = "k", shift: int = 0) -> Expr:
    """Return s for the keys up to the row's own position plus `shift`, else −inf."""
    ext = s.type.extents
    return masked(s, apply("le", iota(keys, ext[keys]), apply("add", iota(rows, ext[rows]), const(shift, I64))))


def window(s: Expr, width: int) -> Expr:
    """Return s for the `width` keys that end at the row's own position, else −inf."""
    ext = s.type.extents
    m, k = iota("m", ext["m"]), iota("k", ext["k"])
    near = apply("lt", apply("sub", m, k), const(width, I64))
    return masked(s, apply("and", apply("le", k, m), near))


def attend(s: Expr, v: Expr, over: str = "k") -> Expr:
    """Return the weighted mean of v: Σ e^(s − M)·v / Σ e^(s − M)."""
    return apply("div", fold(s, v, over), fold(s, None, over))


def attention(
    dtype: DType, m: int, k: int, d: int, n: int, *, h: int = 0, mask: Score | None = None, stored: DType | None = None
) -> Program:
    """Return attention of `h` heads (none: without the axis) with an optional change of the scores."""
    head = {"h": h} if h else {}
    s = scores(array("q", dtype, **head, m=m, d=d), array("K", dtype, **head, k=k, d=d))
    o = attend(mask(s) if mask else s, array("V", dtype, **head, k=k, n=n))
    return several(o=(o, "hmn" if h else "mn", stored or dtype))


def across(dtype: DType, m: int, k: int, d: int, n: int, h: int) -> Program:
    """Return attention whose keys lie side by side for each contracted position."""
    q, keys, v = array("q", dtype, h=h, m=m, d=d), array("K", dtype, h=h, d=d, k=k), array("V", dtype, h=h, k=k, n=n)
    return several(o=(attend(scores(q, keys), v), "hmn", dtype))


def grouped(dtype: DType, h: int, group: int, m: int, k: int, d: int) -> Program:
    """Return causal attention whose heads share keys and values in groups, read through h // group."""
    share = AccessMap((("g", Index.axis("h") // group),), (("h", h),))
    key, value = array("K", dtype, g=h // group, k=k, d=d), array("V", dtype, g=h // group, k=k, n=d)
    s = causal(scores(array("q", dtype, h=h, m=m, d=d), access(key, share)))
    return several(o=(attend(s, access(value, share)), "hmn", dtype))


def _statistics() -> dict[str, Program]:
    x = array("x", F32, m=5, k=301)
    b = array("x", BF16, m=33, k=70)
    split = array("x", F32, m=6, o=4, k=37)
    label = apply("eq", iota("k", 301), array("y", I64, m=5))
    total = apply("add", nested("max", "k", x), apply("log", fold(x, None)))
    picked = fold(x, apply("where", label, real(1.0), real(0.0)))
    return {
        "log-sum-exp": several(o=(total, "m", None)),
        "log-sum-exp-bf16": several(o=(apply("add", apply("log", fold(b, None)), nested("max", "k", b)), "m", F32)),
        "log-sum-exp-two-axes": several(o=(apply("log", fold(split, None, "ok")), "m", None)),
        "statistics": several(top=(nested("max", "k", x), "m", None), total=(fold(x, None), "m", None)),
        "label": several(p=(apply("div", picked, fold(x, None)), "m", None), total=(total, "m", None)),
        "mean-score": several(o=(apply("div", fold(x, x), fold(x, None)), "m", None)),
        "parts": several(
            top=(nested("max", "k", split), "mo", None),
            total=(fold(split, None, floor=-3e38), "mo", None),
            o=(fold(split, array("v", F32, o=4, k=37, n=9), floor=-3e38), "mon", None),
        ),
        "pooling": several(o=(attend(array("s", F32, k=77), array("v", F32, k=77, n=19)), "n", None)),
        "one-key": several(o=(attend(array("s", F32, m=3, k=1), array("v", F32, k=1, n=5)), "mn", None)),
        "columns": several(o=(fold(array("x", F32, k=50, m=40), None), "m", None)),
        "f64": several(o=(attend(array("s", F64, m=7, k=40), array("v", F64, k=40, n=6)), "nm", None)),
    }


def _attentions() -> dict[str, Program]:
    bias = array("b", F32, m=37, k=53)
    key_mask = array("c", BOOL, h=2, k=40)
    q, k, v = array("q", F32, m=20, d=16), array("K", F32, k=45, d=16), array("V", F32, k=45, n=24)
    s = scores(q, k)
    gate = apply("sigmoid", array("g", F32, m=20, n=24))
    wide = scores(array("q", F32, b=2, h=3, m=9, d=8), array("K", F32, b=2, k=21, h=3, d=8))
    twice = scores(array("q", F32, m=9, d=4, e=5), array("K", F32, k=21, d=4, e=5), "de")
    square = array("V", F32, b=2, k=21, h=3, n=8)
    cast = apply("cast", apply("exp", apply("sub", s, nested("max", "k", s))), dtype=F32)
    return {
        "plain": attention(F32, 64, 96, 32, 48),
        "ragged": attention(F32, 37, 53, 19, 29, h=3),
        "one-row": attention(F32, 1, 75, 16, 16, h=4),
        "bf16": attention(BF16, 65, 130, 64, 64, h=2, stored=BF16),
        "f16-narrow": attention(F16, 18, 35, 16, 24, h=2),
        "f64": attention(F64, 12, 20, 8, 8),
        "causal": attention(F32, 70, 70, 16, 16, h=2, mask=causal),
        "causal-late": attention(F32, 20, 70, 16, 16, mask=lambda s: causal(s, shift=50)),
        "window": attention(F32, 150, 150, 16, 16, mask=lambda s: window(s, 40)),
        "masked-rows": attention(F32, 40, 30, 8, 8, mask=lambda s: causal(s, shift=-9)),
        "bias": attention(F32, 37, 53, 16, 16, mask=lambda s: apply("add", s, bias)),
        "key-mask": attention(F32, 17, 40, 16, 16, h=2, mask=lambda s: masked(s, key_mask)),
        "soft-cap": attention(F32, 17, 40, 16, 16, mask=lambda s: apply("mul", apply("tanh", s), real(3.0))),
        "grouped": grouped(F32, 6, 3, 33, 33, 16),
        "grouped-bf16": grouped(BF16, 4, 2, 40, 40, 32),
        "several": several(
            o=(attend(s, v), "nm", None),
            lse=(apply("add", nested("max", "k", s), apply("log", fold(s, None))), "m", None),
            gated=(apply("mul", attend(s, v), gate), "mn", BF16),
        ),
        "two-values": several(
            o=(attend(s, v), "mn", None), p=(attend(s, array("W", F32, k=45, p=7)), "mp", None), e=(fold(s, s), "m", None)
        ),
        "cast": several(o=(nested("sum", "k", apply("mul", v, cast)), "mn", None), top=(nested("max", "k", s), "m", None)),
        "batch-and-heads": several(o=(attend(wide, square), "bmhn", None)),
        "two-contracted": several(o=(attend(twice, array("V", F32, k=21, n=8)), "mn", None)),
        "lengths": attention(F32, 24, 64, 8, 8, h=3, mask=lambda s: masked(s, apply("lt", iota("k", 64), array("L", I64, h=3)))),
        "scaled-operands": several(
            o=(attend(scores(apply("mul", q, array("r", F32, m=20)), apply("mul", k, array("c", F32, k=45))), v), "mn", None)
        ),
    }  # fmt: skip


def _short() -> dict[str, Program]:
    """Return folds of 16-bit operands, in every layout that the matrix units take."""
    q, k, v = (
        array(n, BF16, b=2, **{x: size}, h=3, **{y: 8 * w})
        for n, x, size, y, w in (("q", "m", 66, "d", 2), ("K", "k", 50, "d", 2), ("V", "k", 50, "n", 3))
    )
    s = causal(scores(q, k))
    lse = apply("add", nested("max", "k", s), apply("log", fold(s, None)))
    gate = apply("sigmoid", array("g", BF16, m=66, h=3, n=24))
    parts = scores(array("q", BF16, m=40, d=16), array("K", BF16, o=4, k=32, d=16))
    bias, scale = array("b", BF16, h=2, m=70, k=90), array("r", BF16, m=70)
    return {
        "short-causal": attention(BF16, 150, 150, 64, 64, h=2, mask=causal),
        "short-ragged": attention(F16, 130, 100, 80, 72, h=2),
        "short-window": attention(BF16, 150, 150, 24, 16, mask=lambda s: window(s, 40)),
        "short-masked-rows": attention(BF16, 100, 70, 16, 16, mask=lambda s: causal(s, shift=-9)),
        "short-bias": attention(BF16, 70, 90, 32, 40, h=2, mask=lambda s: apply("add", s, bias)),
        "short-lengths": attention(BF16, 24, 64, 16, 16, h=3, mask=lambda s: masked(s, apply("lt", iota("k", 64), array("L", I64, h=3)))),
        "short-cap": attention(BF16, 70, 90, 32, 40, mask=lambda s: apply("mul", apply("tanh", s), const(3.0, BF16))),
        "short-row-scale": attention(BF16, 70, 90, 32, 40, mask=lambda s: apply("mul", s, scale)),
        "short-several": several(
            o=(attend(s, v), "bmhn", BF16), lse=(lse, "bhm", F32), gated=(apply("mul", attend(s, v), gate), "bmhn", F32)
        ),
        "short-parts": several(
            top=(nested("max", "k", parts), "mo", F32),
            total=(fold(parts, None, floor=-3e38), "mo", F32),
            o=(fold(parts, array("V", BF16, o=4, k=32, n=16), floor=-3e38), "mon", F32),
        ),
        "short-finite-mask": attention(
            BF16, 70, 70, 16, 16, mask=lambda s: apply("where", apply("le", iota("k", 70), iota("m", 70)), s, const(-3e38, BF16))
        ),
    }  # fmt: skip


FOLDS: dict[str, Program] = _statistics() | _attentions() | _short()
