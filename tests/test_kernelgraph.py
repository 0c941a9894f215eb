"""The kernel graph of small programs under the built-in rules."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from eqsat import numpy_like as np_
from eqsat.array import Array
from eqsat.canonical import canonical_key
from eqsat.codegen.online import OnlineProblem, online_problem
from eqsat.codegen.problem import GroupedContractProblem, contract_problem, reduce_problem
from eqsat.errors import UsageError
from eqsat.ir import Program, rename
from eqsat.kernelgraph import KernelGraph, axis_order
from eqsat.oracle import evaluate
from eqsat.rulefile import builtin_rules
from eqsat.search.bundle import find_problem
from eqsat.session import Session
from eqsat.trace import tensor, to_program
from eqsat.types import DType


@pytest.fixture(scope="module")
def graph_of() -> Iterator[Callable[[Array], KernelGraph]]:
    rules = builtin_rules().admit(("exact", "reassociates"))
    declarations = "\n".join(map(str, (*rules.declarations, *rules.facts)))
    with Session() as session:

        def make(expr: Array) -> KernelGraph:
            program = to_program(expr)
            _, frozen = session.saturate(program, rules.rules, declarations=declarations)
            return KernelGraph(program, frozen)

        yield make


def rms_matmul() -> Array:
    x, g, w = tensor("x", (6, 8)), tensor("g", (8,)), tensor("w", (8, 5))
    return (x * np_.rsqrt(np_.mean(x * x, axis=-1, keepdims=True) + 1e-6) * g) @ w


def test_normalisation_before_a_matmul_can_be_one_kernel_with_a_row_statistic(graph_of: Callable[[Array], KernelGraph]) -> None:
    graph = graph_of(rms_matmul())
    problems = [contract_problem(k.program) for k in graph.kernels if k.family == "contract" and not k.needs]
    assert any(not isinstance(p, str) and p.statistics for p in problems)


def test_softmax_is_one_reduce_kernel_with_two_statistics(graph_of: Callable[[Array], KernelGraph]) -> None:
    graph = graph_of(np_.softmax(tensor("x", (6, 8))))
    found = [
        reduce_problem(k.program) for k in graph.kernels if k.family == "reduce" and set(k.writes) <= graph.goals and not k.needs
    ]
    assert any(not isinstance(p, str) and len(p.reductions) == 2 and p.keeps for p in found)


def test_a_chain_with_a_vector_has_a_plan_without_a_matrix_product(graph_of: Callable[[Array], KernelGraph]) -> None:
    a, b, v = tensor("a", (6, 7)), tensor("b", (7, 8)), tensor("v", (8,))
    graph = graph_of((a @ b) @ v)
    assert any(k.family == "reduce" and k.program.outputs[0].expr.type.elements == 7 for k in graph.kernels)


def test_every_plan_of_single_use_kernels_computes_what_the_program_does(graph_of: Callable[[Array], KernelGraph]) -> None:
    graph = graph_of(rms_matmul())
    rng = np.random.default_rng(0)
    inputs = {i.name: rng.standard_normal(i.shape) for i in graph.program.inputs}
    (expected,) = evaluate(graph.program, inputs)
    known = dict(inputs)
    for _ in range(len(graph.kernels)):  # buffers are filled as soon as their kernel's needs are
        for k in graph.kernels:
            if all(i.name in known for i in k.program.inputs):
                (value,) = evaluate(k.program, known)
                name = k.program.outputs[0].name
                if name in known:
                    np.testing.assert_allclose(known[name], value, rtol=1e-9, atol=1e-9)
                known[name] = value
    np.testing.assert_allclose(known[graph.program.outputs[0].name], expected, rtol=1e-9, atol=1e-9)


def test_every_kernel_is_either_a_problem_of_its_family_or_refused_in_words(graph_of: Callable[[Array], KernelGraph]) -> None:
    graph = graph_of(rms_matmul())
    refusals = []
    for k in graph.kernels:
        try:
            find_problem(k.program, k.family)
        except UsageError as e:
            refusals.append(str(e))
    assert [r for r in refusals if "is no" not in r] == []
    assert len(refusals) < len(graph.kernels) // 2


def test_axis_order_respects_layouts() -> None:
    order = axis_order(to_program(tensor("a", (3, 4)) @ tensor("b", (4, 5))))
    program: Program = to_program(tensor("a", (3, 4)) @ tensor("b", (4, 5)))
    for e in program.outputs[0].expr.walk():
        if e.op == "read":
            axes = e.attrs[1]
            assert sorted(axes, key=order.__getitem__) == list(axes)


def test_kernels_equal_up_to_names_share_their_key_and_others_do_not() -> None:
    one = to_program(tensor("a", (3, 4)) @ tensor("b", (4, 5)))
    two = to_program(tensor("q", (3, 4)) @ tensor("k", (4, 5)))
    other = to_program(tensor("a", (3, 4)) @ tensor("b", (5, 4)).mT)
    assert canonical_key(one) == canonical_key(two)
    assert canonical_key(one) != canonical_key(other)


def test_programs_with_casts_have_keys_that_tell_their_types_apart() -> None:
    x = tensor("x", (3, 4), "bf16")
    assert canonical_key(to_program(x.astype("f32") * 2)) != canonical_key(to_program(x.astype("f64") * 2))


def test_renaming_a_free_axis_to_a_bound_ones_name_keeps_the_value() -> None:
    program = to_program(tensor("a", (3, 4)) @ tensor("b", (4, 5)))
    expr = program.outputs[0].expr
    bound = expr.attrs[0]
    free = min(expr.axes)
    renamed = rename(expr, {free: bound})
    assert renamed.axes == (expr.axes - {free}) | {bound}


def test_values_of_one_shape_over_the_same_arrays_can_be_written_by_one_kernel(graph_of: Callable[[Array], KernelGraph]) -> None:
    x, y, w = tensor("x", (6, 8)), tensor("y", (6, 8)), tensor("w", (6, 8))
    graph = graph_of([np_.exp(x * y), np_.maximum(x * y, 0.0), x - y])  # type: ignore[arg-type]
    assert [k for k in graph.kernels if set(k.writes) == graph.goals and k.family == "point"]
    apart = graph_of([np_.exp(x * y), np_.abs(w)])  # type: ignore[arg-type]
    assert not [k for k in apart.kernels if len(k.writes) > 1]


def grouped(graph: KernelGraph) -> list[GroupedContractProblem]:
    found = [contract_problem(k.program) for k in graph.kernels if k.family == "contract" and len(k.writes) > 1]
    return [p for p in found if isinstance(p, GroupedContractProblem)]


def test_products_of_one_operand_can_be_written_by_one_kernel(graph_of: Callable[[Array], KernelGraph]) -> None:
    x, y = tensor("x", (6, 8)), tensor("y", (6, 8))
    a, b, c = tensor("a", (8, 5)), tensor("b", (8, 3)), tensor("c", (8, 3))
    together = grouped(graph_of([x @ a, np_.exp(x @ b), x @ c]))  # type: ignore[arg-type]
    assert [p.shape for p in together] == [(1, 6, 11, 8)]
    assert not grouped(graph_of([x @ a, y @ b]))  # type: ignore[arg-type]
    assert not grouped(graph_of([x @ a, (x @ b).mT]))  # type: ignore[arg-type]


def test_a_product_that_two_results_need_is_in_a_kernel_with_others_once(graph_of: Callable[[Array], KernelGraph]) -> None:
    x, a, b = tensor("x", (6, 8)), tensor("a", (8, 5)), tensor("b", (8, 3))
    graph = graph_of([x @ a, np_.exp(x @ a), x @ b])  # type: ignore[arg-type]
    assert {(p.shape[2], len(p.parts)) for p in grouped(graph)} == {(8, 2)}


def test_queries_keys_and_values_that_one_kernel_needs_can_be_written_by_one(graph_of: Callable[[Array], KernelGraph]) -> None:
    x = tensor("x", (6, 8))
    q, k, v = (x @ tensor(f"w{name}", (8, 4)) for name in "qkv")
    graph = graph_of(np_.softmax(q @ k.mT) @ v)
    needed = {k.needs for k in graph.kernels if k.family == "online"}
    made = [frozenset(k.writes) for k in graph.kernels if k.family == "contract" and len(k.writes) == 3]
    assert needed & set(made)


def test_the_weights_of_a_fold_are_of_their_own_type_beside_statistics_that_are_stored_wider(
    graph_of: Callable[[Array], KernelGraph],
) -> None:
    def unit(x: Array) -> Array:
        return x * np_.rsqrt(np_.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    q, k, v = (tensor(n, (48, 64), "bf16") for n in "qkv")
    graph = graph_of(np_.softmax(unit(q) @ unit(k).mT) @ v)
    folds = [online_problem(n.program) for n in graph.kernels if n.family == "online"]
    found = [p for p in folds if isinstance(p, OnlineProblem) and p.wide and p.score.dtype is DType.F32]
    assert {a.weight.dtype for p in found for a in p.wide} == {DType.BF16}
    rng = np.random.default_rng(0)
    for p in found:
        inputs = {i.name: rng.random(i.shape) for i in p.program.inputs}
        assert all(np.isfinite(x).all() for x in evaluate(p.program, inputs))


def test_the_norm_of_a_folds_rows_can_be_a_statistic_of_its_kernel(graph_of: Callable[[Array], KernelGraph]) -> None:
    q, k, v = (tensor(n, (48, 64), "bf16") for n in "qkv")
    unit = q * np_.rsqrt(np_.mean(q * q, axis=-1, keepdims=True) + 1e-6)
    graph = graph_of(np_.softmax(unit @ k.mT) @ v)
    folds = [online_problem(n.program) for n in graph.kernels if n.family == "online" and not n.needs]
    assert any(isinstance(p, OnlineProblem) and len(p.statistics) == 1 and p.wide for p in folds)
