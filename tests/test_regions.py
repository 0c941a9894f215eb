"""Splitting programs at narrow borders, names that carry no meaning, and plans of regions put together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eqsat import numpy_like as fn
from eqsat.access import AccessMap, Index
from eqsat.array import Array
from eqsat.canonical import Alpha, shared
from eqsat.errors import UsageError
from eqsat.ir import Expr, Input, Output, Program, access, apply, const, read, reduce
from eqsat.oracle import evaluate
from eqsat.region_borders import Order
from eqsat.regions import Partition, rejoin, split
from eqsat.trace import tensor, to_program
from eqsat.types import DType

WIDE, NARROW = 12, 6


def dense(x: Array, name: str, width: int) -> Array:
    """Return x + relu(x @ up) @ down over normalised x: one layer with weights of its own."""
    n = fn.rms_norm(x, tensor(f"g{name}", (x.shape[-1],), constant=True))
    up = tensor(f"up{name}", (x.shape[-1], width), constant=True)
    return x + fn.relu(n @ up) @ tensor(f"down{name}", (width, x.shape[-1]), constant=True)


def stack(count: int) -> Program:
    x = tensor("x", (5, NARROW))
    for i in range(count):
        x = dense(x, str(i), WIDE)
    return to_program(x)


def values(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {i.name: rng.standard_normal(i.shape) for i in program.inputs}


def assert_same(partition: Partition) -> None:
    given = values(partition.program)
    for a, b in zip(evaluate(partition.program, given), evaluate(rejoin(partition), given), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def operations(program: Program) -> int:
    return Order.of(program).size


# Borders


def test_a_program_under_the_limit_is_one_region() -> None:
    program = stack(2)
    partition = split(program, operations(program))
    assert len(partition.regions) == 1
    assert not partition.borders


def test_a_limit_below_one_operation_is_an_error() -> None:
    with pytest.raises(UsageError, match="at least one operation"):
        split(stack(1), 0)


def test_equal_layers_fall_into_equal_regions_at_the_residual_stream() -> None:
    partition = split(stack(5), operations(stack(1)) + 2)
    assert len(partition.regions) == 5
    assert len(partition.distinct) == 1
    assert partition.count(partition.distinct[0]) == 5
    assert {(b.shape, b.dtype) for b in partition.borders} == {((5, NARROW), "f32")}
    assert partition.border_bytes == 4 * 5 * NARROW * 4


@pytest.mark.parametrize("limit", [1, 3, 5, 8, 13, 21, 34])
def test_the_regions_together_compute_the_program(limit: int) -> None:
    assert_same(split(stack(3), limit))


def test_regions_hold_at_most_as_many_operations_as_the_limit_where_borders_allow_it() -> None:
    partition = split(stack(4), operations(stack(1)) + 2)
    assert all(r.operations <= operations(stack(1)) + 2 for r in partition.regions)


def test_a_stretch_without_a_narrow_place_stays_whole() -> None:
    parts = [fn.exp(fn.sum(tensor(f"a{i}", (4, 5)), axis=0)) for i in range(6)]
    wide = sum((fn.sum(parts[i] * parts[j]) for i in range(6) for j in range(i)), start=parts[0])
    partition = split(to_program(wide), 4)
    assert max(r.operations for r in partition.regions) > 4
    assert_same(partition)


def test_a_stretch_between_narrow_places_may_be_larger_than_what_several_make_together() -> None:
    one = operations(stack(1))
    loose, strict = split(stack(3), one // 2, one + 2), split(stack(3), one // 2)
    assert [r.operations for r in loose.regions] == [r.operations for r in split(stack(3), one + 2).regions]
    assert len(strict.regions) > 3


def test_an_input_that_every_layer_reads_leaves_the_borders_where_they_are() -> None:
    x, scale = tensor("x", (5, NARROW)), tensor("scale", (5, 1))
    for i in range(4):
        x = dense(x * scale, str(i), WIDE)
    partition = split(to_program(x), operations(stack(1)) + 4)
    assert len(partition.regions) == 4
    assert {b.shape for b in partition.borders} == {(5, NARROW)}
    assert_same(partition)


def test_the_products_under_a_sum_are_no_border() -> None:
    x = tensor("x", (7, 8))
    chain = x
    for i in range(4):
        chain = chain @ tensor(f"w{i}", (8, 8))
    for border in split(to_program(chain), 2).borders:
        assert border.shape == (7, 8)


def test_of_two_places_the_one_that_stores_less_is_the_border() -> None:
    x = tensor("x", (6, 4))
    narrow = fn.exp(fn.exp(x @ tensor("a", (4, 64))) @ tensor("b", (64, 2)))
    program = to_program(fn.tanh(narrow @ tensor("c", (2, 64))) @ tensor("d", (64, 4)))
    (border,) = split(program, operations(program) - 2).borders
    assert border.shape == (6, 2)


def test_a_mask_is_computed_again_and_not_stored() -> None:
    t = 6
    allowed = fn.iota(t)[:, None] >= fn.iota(t)[None, :]
    x = tensor("x", (t, t))
    for _ in range(3):
        x = fn.softmax(fn.where(allowed, x, -math.inf)) @ x
    partition = split(to_program(x), 8)
    assert len(partition.regions) >= 3
    assert {b.dtype for b in partition.borders} == {"f32"}
    assert_same(partition)


def test_an_output_on_the_way_is_no_border_but_is_read_by_what_follows() -> None:
    x = tensor("x", (5, NARROW))
    first = dense(x, "0", WIDE)
    program = to_program((first, dense(first, "1", WIDE)))
    partition = split(program, operations(stack(1)) + 2)
    assert len(partition.regions) == 2
    assert not partition.borders
    assert program.outputs[0].name in partition.regions[1].inputs
    assert_same(partition)


def test_a_border_that_constants_alone_give_is_declared_constant() -> None:
    w = tensor("w", (6, 6), constant=True)
    for _ in range(4):
        w = fn.tanh(w @ w)
    partition = split(to_program(tensor("x", (3, 6)) @ w), 6)
    assert partition.borders
    consumers = [(r, i) for r in partition.regions for i in r.program.inputs]
    names = {b.name for b in partition.borders}
    assert all(i.constant for r, i in consumers if r.inputs[r.program.inputs.index(i)] in names)


def test_a_value_that_an_output_holds_in_another_type_crosses_no_border() -> None:
    x = read("x", ("i", "j"), (4, 4), DType.F32)
    row = reduce("sum", "j", x)
    last = reduce("sum", "i", apply("exp", apply("exp", row)))
    outputs = (Output("low", row, ("i",), DType.BF16), Output("out", last, (), DType.F32))
    program = Program((Input("x", (4, 4), DType.F32),), outputs)
    for region in split(program, 1).regions:
        assert len({o.expr.digest for o in region.program.outputs}) == len(region.program.outputs)


def test_names_of_borders_meet_no_name_of_the_program() -> None:
    x = tensor("border0", (5, NARROW))
    program = to_program(dense(dense(x, "0", WIDE), "1", WIDE))
    partition = split(program, operations(stack(1)) + 2)
    assert not {b.name for b in partition.borders} & {i.name for i in program.inputs}
    assert_same(partition)


def test_a_split_is_the_same_in_every_run() -> None:
    first, second = (split(stack(4), 20) for _ in range(2))
    assert first == second


def test_the_report_names_regions_and_what_borders_store() -> None:
    text = str(split(stack(2), operations(stack(1)) + 2))
    assert "2 regions (1 different)" in text
    assert f"f32[5, {NARROW}], {5 * NARROW * 4} bytes stored" in text


# Names


def two_heads(first: str, second: str) -> Program:
    """Return max_k x_ik·w_k − max_j x_ij·w_j, the bound axes called as given."""

    def head(axis: str) -> Expr:
        x, w = read("x", ("i", axis), (4, 6), DType.F32), read("w", (axis,), (6,), DType.F32)
        return apply("exp", reduce("max", axis, apply("mul", x, w)))

    out = apply("sub", head(first), apply("mul", head(second), const(2.0, DType.F32)))
    inputs = (Input("x", (4, 6), DType.F32), Input("w", (6,), DType.F32))
    return Program(inputs, (Output("out", out, ("i",), DType.F32),))


def test_values_that_differ_in_bound_names_become_one() -> None:
    named = shared(two_heads("j", "k"))
    assert sum(e.op == "max" for e in two_heads("j", "k").walk()) == 2
    assert sum(e.op == "max" for e in named.walk()) == 1
    assert named.digest == two_heads("j", "j").digest


def test_values_that_differ_in_free_names_stay_apart() -> None:
    x = read("x", ("i", "j"), (4, 4), DType.F32)
    y = read("x", ("j", "i"), (4, 4), DType.F32)
    numbers = Alpha()
    assert numbers.number(reduce("sum", "j", x)) != numbers.number(reduce("sum", "j", y))
    assert numbers.number(reduce("sum", "j", x)) == numbers.number(reduce("sum", "q", read("x", ("i", "q"), (4, 4), DType.F32)))


def test_nested_bound_axes_are_told_apart_by_their_place() -> None:
    def nest(outer: str, inner: str, of: tuple[str, str]) -> Expr:
        return reduce("max", outer, reduce("sum", inner, read("x", of, (4, 4), DType.F32)))

    numbers = Alpha()
    assert numbers.number(nest("a", "b", ("a", "b"))) == numbers.number(nest("b", "a", ("b", "a")))
    assert numbers.number(nest("a", "b", ("a", "b"))) != numbers.number(nest("a", "b", ("b", "a")))


def test_a_renamed_contraction_is_written_under_the_new_name() -> None:
    product = reduce("sum", "k", apply("mul", read("x", ("i", "k"), (4, 4), DType.F32), read("w", ("k", "n"), (4, 4), DType.F32)))
    moved = access(product, AccessMap((("n", Index.axis("k")),), (("k", 4),)))
    out = apply("add", moved, read("x", ("i", "k"), (4, 4), DType.F32))
    inputs = (Input("x", (4, 4), DType.F32), Input("w", (4, 4), DType.F32))
    program = Program(inputs, (Output("out", out, ("i", "k"), DType.F32),))
    named = shared(program)
    assert not any(e.op == "access" for e in named.walk())
    given = values(program)
    np.testing.assert_allclose(evaluate(named, given)[0], evaluate(program, given)[0])


def test_a_renaming_stays_where_pushing_it_would_compute_something_twice() -> None:
    x = tensor("x", (5, 4))
    h = fn.exp(x @ tensor("w", (4, 4)))
    program = to_program(h @ h.mT)
    assert shared(program) == program
