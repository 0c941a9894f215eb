"""Evaluation on few blocks of each axis: the same numbers as the oracle's on the inputs written out."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from eqsat.access import AccessMap, Index
from eqsat.ir import Expr, Input, Output, Program, access, apply, const, iota, read, reduce
from eqsat.oracle import evaluate
from eqsat.proof.compressed import BLOCKS, Evaluation, Positions
from eqsat.proof.floats import Floats
from eqsat.types import DType
from tests.strategies import programs

F32 = DType.F32


def written_out(program: Program, evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Return the inputs of an evaluation as arrays: every position of every dimension."""
    out = {}
    for source in program.inputs:
        axes = tuple(f"{source.name}{d:02}" if n != 1 else "" for d, n in enumerate(source.shape))
        whole = {a: Positions(tuple(range(n))) for a, n in zip(axes, source.shape, strict=True) if a}
        value, _ = evaluation.value_at(read(source.name, axes, source.shape, source.dtype), whole)
        out[source.name] = np.asarray(value).reshape(source.shape).astype(bool if source.dtype is DType.BOOL else np.float64)
    return out


def oracle_at_samples(program: Program, evaluation: Evaluation, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Evaluate each output at the positions that the evaluation looks at, over its axes in sorted order."""
    sorted_outputs = tuple(Output(o.name, o.expr, tuple(sorted(o.expr.axes)), o.dtype) for o in program.outputs)
    wide = Program(program.inputs, sorted_outputs)
    found = []
    for o, whole in zip(sorted_outputs, evaluate(wide, arrays), strict=True):
        at = np.ix_(*(evaluation.sampled(o.expr.type.extents[a]).at for a in o.axes))
        found.append(np.asarray(whole)[at])
    return found


def agrees_with_the_oracle(program: Program, seed: int, *, positive: bool) -> None:
    evaluation = Evaluation(Floats(positive=positive), seed)
    mine = [evaluation.value(o.expr) for o in program.outputs]
    with np.errstate(all="ignore"):
        theirs = oracle_at_samples(program, evaluation, written_out(program, evaluation))
    for (value, error), other in zip(mine, theirs, strict=True):
        value, other = np.asarray(value, np.float64), np.asarray(other, np.float64)
        assert value.shape == other.shape
        known = np.isfinite(error) & np.isfinite(other) & np.isfinite(value)
        assert (abs(value[known] - other[known]) <= 4 * error[known] + 1e-9 * abs(other[known])).all()
        assert np.array_equal(np.isfinite(value[error == 0]), np.isfinite(other[error == 0]))


@settings(max_examples=60, deadline=None)
@given(programs(depth=4, dtypes=(DType.F64,), without=("argmax", "argmin", "floor")))
def test_random_programs_have_the_oracles_values(program: Program) -> None:
    agrees_with_the_oracle(program, 3, positive=False)


def long_program(body: Expr, *inputs: Input) -> Program:
    return Program(inputs, (Output("y", body, tuple(sorted(body.axes)), F32),))


def test_a_contraction_over_long_axes_counts_every_position() -> None:
    x, w = read("x", ("i", "k"), (200, 1000), F32), read("w", ("k", "j"), (1000, 300), F32)
    program = long_program(reduce("sum", "k", apply("mul", x, w)), Input("x", (200, 1000), F32), Input("w", (1000, 300), F32))
    agrees_with_the_oracle(program, 5, positive=False)


def test_masks_and_windows_look_at_every_position() -> None:
    x = read("x", ("i", "k"), (50, 50), F32)
    causal = apply("where", apply("le", iota("k", 50), iota("i", 50)), x, const(0.0, F32))
    window = access(x, AccessMap((("k", Index.axis("j") * 2 + Index.const(-1)),), (("j", 20),)))
    for body in (reduce("sum", "k", causal), reduce("max", "j", window), reduce("prod", "k", causal)):
        agrees_with_the_oracle(long_program(body, Input("x", (50, 50), F32)), 7, positive=True)


def test_a_long_axis_is_split_into_few_blocks_that_make_it_up() -> None:
    evaluation = Evaluation(Floats(positive=True), 1)
    blocks = evaluation.blocks(np.arange(4096), 4096)
    assert sorted(set(blocks.tolist())) == list(range(BLOCKS))
    total, _ = evaluation.value(reduce("sum", "k", apply("mul", read("x", ("k",), (4096,), F32), const(0.0, F32))))
    count, _ = evaluation.value(
        reduce("sum", "k", apply("add", apply("mul", read("x", ("k",), (4096,), F32), const(0.0, F32)), const(1.0, F32)))
    )
    assert (float(total), float(count)) == (0.0, 4096.0)
