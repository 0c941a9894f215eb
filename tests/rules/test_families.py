"""What falls out of the shipped rules: hand-made forms are found, small programs saturate, softmax stays safe."""

from __future__ import annotations

import functools
import itertools
import math
import random

import pytest

from eqsat.frozen import Frozen
from eqsat.ir import Expr, Input, Output, Program, apply, const, read, reduce
from eqsat.rulefile import builtin_rules
from eqsat.saturation import PHASES
from eqsat.search.rulebase import declarations
from eqsat.session import Session
from eqsat.sexpr import Node, read_forms
from eqsat.types import DType

F32 = DType.F32
EXTENTS = {"i": 64, "k": 32, "n": 48, "l": 40, "m": 24, "r": 4, "j": 50, "d": 16, "e": 16, "o": 5}


@pytest.fixture(scope="module")
def session():
    with Session() as open_session:
        yield open_session


def leaf(name: str, axes: str, dtype: DType = F32) -> Expr:
    return read(name, tuple(axes), tuple(EXTENTS[a] for a in axes), dtype)


def add(a: Expr, b: Expr) -> Expr:
    return apply("add", a, b)


def sub(a: Expr, b: Expr) -> Expr:
    return apply("sub", a, b)


def mul(a: Expr, b: Expr) -> Expr:
    return apply("mul", a, b)


def div(a: Expr, b: Expr) -> Expr:
    return apply("div", a, b)


def number(value: float, dtype: DType = F32) -> Expr:
    return const(value, dtype)


def contract(axis: str, a: Expr, b: Expr) -> Expr:
    return reduce("sum", axis, mul(a, b))


def program(expr: Expr) -> Program:
    reads = {e.attrs[0]: e for e in expr.walk() if e.op == "read"}
    inputs = tuple(Input(n, tuple(e.type.extents[a] for a in e.attrs[1]), e.dtype) for n, e in reads.items())
    return Program(inputs, (Output("y", expr, tuple(sorted(expr.axes)), expr.dtype),))


def saturated(session: Session, expr: Expr, rounds: int = 1) -> Frozen:
    """Return the frozen e-graph after all phases, distribution and what follows it `rounds` times."""
    distribute, after = PHASES[2:4]
    phases = (*PHASES[:2], *(distribute, after) * rounds, *PHASES[4:])
    rules = builtin_rules()
    report, frozen = session.saturate(program(expr), rules.rules, declarations=declarations(rules), phases=phases)
    assert report.stop == "saturated"
    return frozen


def class_of(frozen: Frozen, term: str) -> int | None:
    """Return the class in which a term lies, or None if the term was never found."""
    index = {(n.op, n.children, n.literals): c for c, nodes in frozen.nodes.items() for n in nodes}

    def find(node: Node) -> int | None:
        children, literals = [], []
        for a in node.args:
            if a.kind == "list":
                children.append(find(a))
            else:
                literals.append(a.text if a.kind == "string" else a.number)
        return None if None in children else index.get((node.head, tuple(children), tuple(literals)))

    return find(read_forms(term)[0])


def finds(frozen: Frozen, term: str) -> bool:
    return class_of(frozen, term) == frozen.roots[0]


X, W, G = '(Read "x" "i k")', '(Read "w" "k n")', '(Read "g" "k")'


def rms_norm(x: Expr) -> Expr:
    mean = div(reduce("sum", "k", mul(x, x)), number(32.0))
    return div(x, apply("sqrt", add(mean, number(1e-5))))


def layer_norm(x: Expr) -> Expr:
    centred = sub(x, div(reduce("sum", "k", x), number(32.0)))
    variance = div(reduce("sum", "k", mul(centred, centred)), number(32.0))
    scaled = mul(div(centred, apply("sqrt", add(variance, number(1e-5)))), leaf("g", "k"))
    return add(scaled, leaf("b", "k"))


def softmax(scores: Expr, axis: str) -> Expr:
    e = apply("exp", sub(scores, reduce("max", axis, scores)))
    return div(e, reduce("sum", axis, e))


def gelu(x: Expr) -> Expr:
    inner = mul(number(0.7978845608), add(x, mul(number(0.044715), mul(x, mul(x, x)))))
    return mul(mul(number(0.5), x), add(number(1.0), apply("tanh", inner)))


def test_the_norm_scale_leaves_the_contraction_and_the_gain_meets_the_weights(session):
    frozen = saturated(session, contract("k", mul(rms_norm(leaf("x", "ik")), leaf("g", "k")), leaf("w", "kn")))
    scale = f'(Rsqrt (Add (Mul (Const 0.03125) (Sum "k" (Mul {X} {X}))) (Const 1e-05)))'
    assert finds(frozen, f'(Mul {scale} (Sum "k" (Mul {X} (Mul {G} {W}))))')


def test_layer_norm_before_a_contraction_becomes_a_contraction_and_two_column_sums(session):
    frozen = saturated(session, contract("k", layer_norm(leaf("x", "ik")), leaf("w", "kn")))
    mean = f'(Mul (Const 0.03125) (Sum "k" {X}))'
    variance = f'(Sum "k" (Mul (Sub {X} {mean}) (Sub {X} {mean})))'
    scale = f"(Rsqrt (Add (Mul (Const 0.03125) {variance}) (Const 1e-05)))"
    gained = f"(Mul {G} {W})"
    centred = f'(Sub (Sum "k" (Mul {X} {gained})) (Mul {mean} (Sum "k" {gained})))'
    assert finds(frozen, f'(Add (Mul {scale} {centred}) (Sum "k" (Mul (Read "b" "k") {W})))')


def test_a_chain_times_a_vector_multiplies_the_vector_first(session):
    product = contract("k", leaf("x", "ik"), leaf("w", "kn"))
    frozen = saturated(session, contract("n", product, leaf("v", "n")))
    assert finds(frozen, f'(Sum "k" (Mul {X} (Sum "n" (Mul {W} (Read "v" "n")))))')


def test_the_sum_of_a_product_uses_the_column_sum(session):
    linear = add(contract("k", leaf("x", "ik"), leaf("w", "kn")), leaf("c", "n"))
    frozen = saturated(session, reduce("sum", "n", linear))
    assert finds(frozen, f'(Add (Sum "k" (Mul {X} (Sum "n" {W}))) (Sum "n" (Read "c" "n")))')


def test_low_rank_updates_merge_into_the_weights(session):
    update = contract("r", contract("k", leaf("x", "ik"), leaf("a", "kr")), leaf("b", "rn"))
    frozen = saturated(session, add(contract("k", leaf("x", "ik"), leaf("w", "kn")), mul(number(0.25), update)))
    low = '(Sum "r" (Mul (Read "a" "k r") (Read "b" "r n")))'
    assert finds(frozen, f'(Sum "k" (Mul {X} (Add {W} (Mul (Const 0.25) {low}))))')


def test_updated_weights_split_into_two_thin_contractions(session):
    weights = add(leaf("w", "kn"), contract("r", leaf("a", "kr"), leaf("b", "rn")))
    frozen = saturated(session, contract("k", leaf("x", "ik"), weights))
    thin = f'(Sum "r" (Mul (Sum "k" (Mul {X} (Read "a" "k r"))) (Read "b" "r n")))'
    assert finds(frozen, f'(Add (Sum "k" (Mul {X} {W})) {thin})')


def test_a_common_factor_is_taken_out(session):
    a, b, c = (leaf(n, "ik") for n in "abc")
    frozen = saturated(session, add(mul(a, b), mul(a, c)))
    assert finds(frozen, '(Mul (Read "a" "i k") (Add (Read "b" "i k") (Read "c" "i k")))')


def test_tanh_gelu_becomes_a_sigmoid_without_constants_around_it(session):
    frozen = saturated(session, gelu(leaf("x", "ik")))
    x = class_of(frozen, X)
    sigmoids = {c for c, nodes in frozen.nodes.items() if any(n.op == "Sigmoid" for n in nodes)}
    assert any(n.op == "Mul" and n.children[0] == x and n.children[1] in sigmoids for n in frozen.nodes[frozen.roots[0]])


def test_the_softmax_denominator_is_applied_after_the_contraction(session):
    scores = mul(number(0.25), contract("d", leaf("q", "id"), leaf("h", "jd")))
    frozen = saturated(session, contract("j", softmax(scores, "j"), leaf("v", "je")))
    exps = [c for c, nodes in frozen.nodes.items() if any(n.op == "Exp" for n in nodes)]
    totals = {n.children[0] for nodes in frozen.nodes.values() for n in nodes if n.op == "Recip"}
    assert len(exps) == 1
    assert any(n.op == "Mul" and any(m.op == "Recip" for m in frozen.nodes[n.children[0]]) for n in frozen.nodes[frozen.roots[0]])
    assert totals


def test_every_exponent_of_a_softmax_keeps_its_maximum(session):
    scores = add(leaf("s", "ij"), leaf("c", "i"))
    frozen = saturated(session, softmax(scores, "j"), rounds=2)
    exponents = {n.children[0] for nodes in frozen.nodes.values() for n in nodes if n.op == "Exp"}
    assert exponents
    assert all(any(n.op == "Sub" for n in frozen.nodes[c]) for c in exponents)


def test_a_softmax_over_two_axes_folds_into_parts_with_maxima_of_their_own(session):
    scores, v = leaf("s", "ioj"), leaf("v", "oje")
    top = reduce("max", "o", reduce("max", "j", scores))
    weighted = contract("j", apply("exp", sub(scores, top)), v)
    frozen = saturated(session, reduce("sum", "o", weighted))
    s, inner = '(Read "s" "i o j")', '(Max "j" (Read "s" "i o j"))'
    pivot = f"(Maximum {inner} (Const -3e38))"
    part = f'(Sum "j" (Mul (Exp (Sub {s} {pivot})) (Read "v" "o j e")))'
    assert finds(frozen, f'(Sum "o" (Mul (Exp (Sub {pivot} (Max "o" {inner}))) {part}))')


def test_a_variance_stays_a_sum_of_squares(session):
    x = leaf("x", "ik")
    centred = sub(x, div(reduce("sum", "k", x), number(32.0)))
    frozen = saturated(session, reduce("sum", "k", mul(centred, centred)), rounds=2)
    assert class_of(frozen, f'(Sum "k" (Mul {X} {X}))') is None


def test_a_shift_of_all_scores_cancels(session):
    shifted = add(leaf("s", "ij"), leaf("c", "i"))
    frozen = saturated(session, apply("exp", sub(shifted, reduce("max", "j", shifted))))
    assert finds(frozen, '(Exp (Sub (Read "s" "i j") (Max "j" (Read "s" "i j"))))')


def weighted_variance(x: Expr) -> Expr:
    mean = div(reduce("sum", "k", x), number(32.0))
    return reduce("sum", "k", mul(mul(sub(x, mean), leaf("g", "k")), sub(x, mean)))


def test_a_weighted_variance_stays_a_sum_of_squares(session):
    frozen = saturated(session, weighted_variance(leaf("x", "ik")))
    assert class_of(frozen, f'(Sum "k" (Mul {X} (Mul {G} {X})))') is None
    assert class_of(frozen, f'(Sum "k" (Mul (Mul {G} {X}) {X}))') is None


def test_a_variance_over_two_axes_folds_into_deviations_from_means_of_parts(session):
    x = leaf("s", "ioj")
    mean = div(reduce("sum", "o", reduce("sum", "j", x)), number(250.0))
    centred = sub(x, mean)
    frozen = saturated(session, reduce("sum", "o", reduce("sum", "j", mul(centred, centred))))
    s = '(Read "s" "i o j")'
    part = f'(Mul (Const 0.02) (Sum "j" {s}))'
    whole = f'(Mul (Const 0.004) (Sum "o" (Sum "j" {s})))'
    inner = f'(Sum "j" (Mul (Sub {s} {part}) (Sub {s} {part})))'
    outer = f"(Mul (Sub {part} {whole}) (Sub {part} {whole}))"
    assert finds(frozen, f'(Sum "o" (Add {inner} (Mul (Const 50.0) {outer})))')
    assert finds(frozen, f'(Add (Sum "o" {inner}) (Mul (Const 50.0) (Sum "o" {outer})))')


def matrix_chain(extents: list[int]) -> Expr:
    axes = [f"x{n}" for n in range(len(extents))]
    leaves = [read(f"m{n}", (a, b), (extents[n], extents[n + 1]), F32) for n, (a, b) in enumerate(itertools.pairwise(axes))]
    return functools.reduce(lambda left, right: contract(next(iter(left.axes & right.axes)), left, right), leaves)


def fewest_multiplications(extents: tuple[int, ...]) -> int:
    """Return the multiplications of the best order of a chain, by dynamic programming."""

    @functools.cache
    def best(i: int, j: int) -> int:
        splits = (best(i, m) + best(m, j) + extents[i] * extents[m] * extents[j] for m in range(i + 1, j))
        return min(splits, default=0)

    return best(0, len(extents) - 1)


def multiplications_found(frozen: Frozen) -> int:
    """Return the multiplications of the best order in the e-graph: those under each sum, the least over each class."""
    best: dict[int, int] = {}
    changed = True
    while changed:
        changed = False
        for c in frozen.axes:
            for n in frozen.nodes[c]:
                if not all(x in best for x in n.children):
                    continue
                total = sum(best[x] for x in n.children)
                total += math.prod(frozen.extents[a] for a in frozen.axes[n.children[0]]) if n.op == "Sum" else 0
                if total < best.get(c, total + 1):
                    best[c], changed = total, True
    return best[frozen.roots[0]]


@pytest.mark.parametrize("seed", range(12))
def test_the_best_order_of_a_chain_is_found_in_few_nodes(session, seed):
    rng = random.Random(seed)
    extents = [rng.choice((2, 16, 64, 100, 256, 1000)) for _ in range(rng.randint(4, 11))]
    frozen = saturated(session, matrix_chain(extents))
    assert multiplications_found(frozen) == fewest_multiplications(tuple(extents))
    assert frozen.node_count <= 2 * len(extents) ** 3


@pytest.mark.parametrize("count", range(2, 7))
def test_a_common_factor_of_many_products_is_taken_out(session, count):
    terms = [contract("k", leaf("x", "ik"), leaf(f"w{n}", "kn")) for n in range(count)]
    frozen = saturated(session, functools.reduce(add, terms))
    reads = [f'(Read "w{n}" "k n")' for n in range(count)]
    total = functools.reduce(lambda a, b: f"(Add {a} {b})", reads)
    assert finds(frozen, f'(Sum "k" (Mul {X} {total}))')


def test_the_squares_of_a_product_sum_to_those_of_two_small_matrices(session):
    tall, thin = read("x", ("i", "k"), (512, 8), F32), read("w", ("k", "n"), (8, 512), F32)
    product = contract("k", tall, thin)
    frozen = saturated(session, reduce("sum", "n", reduce("sum", "i", mul(product, product))))
    assert multiplications_found(frozen) == 2 * 8 * 8 * 512 + 8 * 8 + 8


def test_linear_attention_multiplies_keys_with_values_first(session):
    scores = contract("d", leaf("q", "id"), leaf("h", "jd"))
    frozen = saturated(session, contract("j", scores, leaf("v", "je")))
    states = '(Sum "j" (Mul (Read "h" "j d") (Read "v" "j e")))'
    assert finds(frozen, f'(Sum "d" (Mul (Read "q" "i d") {states}))')


def test_scales_of_rows_and_columns_leave_a_contraction(session):
    rows, columns = leaf("x", "ik", DType.BF16), leaf("w", "kn", DType.BF16)
    product = contract("k", mul(rows, leaf("s", "i", DType.BF16)), mul(columns, leaf("t", "n", DType.BF16)))
    assert finds(saturated(session, product), f'(Mul (Read "s" "i") (Mul (Read "t" "n") (Sum "k" (Mul {X} {W}))))')


def squared_distances() -> Expr:
    apart = sub(leaf("x", "ik"), leaf("y", "jk"))
    return reduce("sum", "k", mul(apart, apart))


def test_squared_distances_become_a_contraction_where_approximation_is_admitted(session):
    rules = builtin_rules(unstable=True).admit(("exact", "reassociates", "unstable"))
    report, frozen = session.saturate(program(squared_distances()), rules.rules, declarations=declarations(rules))
    y = '(Read "y" "j k")'
    squares = f'(Add (Sum "k" (Mul {X} {X})) (Sum "k" (Mul {y} {y})))'
    assert report.stop == "saturated"
    assert finds(frozen, f'(Sub {squares} (Mul (Const 2.0) (Sum "k" (Mul {X} {y}))))')


def test_squared_distances_keep_their_form_by_default(session):
    rules = builtin_rules().admit()
    _, frozen = session.saturate(program(squared_distances()), rules.rules, declarations=declarations(rules))
    assert class_of(frozen, f'(Sum "k" (Mul {X} {X}))') is None


def test_sums_over_complementary_masks_are_the_sum_over_all(session):
    x, mask = leaf("x", "ik"), leaf("t", "ik", DType.BOOL)
    inside, outside = (apply("where", m, x, number(0.0)) for m in (mask, apply("not", mask)))
    frozen = saturated(session, add(reduce("sum", "k", inside), reduce("sum", "k", outside)))
    assert finds(frozen, f'(Sum "k" {X})')


@pytest.mark.parametrize("times", [1, 2])
def test_what_is_its_own_multiple_does_not_grow_without_end(session, times):
    x = leaf("x", "ik")
    zero = functools.reduce(add, [mul(x, number(0.0))] * times)
    frozen = saturated(session, add(zero, x))
    assert frozen.node_count < 100


def test_a_logarithm_of_a_softmax_subtracts_once_per_element(session):
    x = leaf("x", "ik")
    shifted = sub(x, reduce("max", "k", x))
    frozen = saturated(session, sub(shifted, apply("log", reduce("sum", "k", apply("exp", shifted)))))
    rows = f'(Add (Max "k" {X}) (Log (Sum "k" (Exp (Sub {X} (Max "k" {X}))))))'
    assert finds(frozen, f"(Sub {X} {rows})")


def test_a_factor_known_to_be_positive_leaves_a_maximum(session):
    scaled = mul(apply("exp", leaf("c", "i")), leaf("s", "ij"))
    frozen = saturated(session, reduce("max", "j", scaled))
    assert finds(frozen, '(Mul (Exp (Read "c" "i")) (Max "j" (Read "s" "i j")))')


def test_a_factor_of_unknown_sign_stays_under_a_maximum(session):
    frozen = saturated(session, reduce("max", "j", mul(leaf("c", "i"), leaf("s", "ij"))))
    assert class_of(frozen, '(Max "j" (Read "s" "i j"))') is None


def test_a_root_of_scaled_squares_gives_the_absolute_scale(session):
    scaled = mul(leaf("c", "i"), leaf("s", "ij"))
    frozen = saturated(session, apply("sqrt", reduce("sum", "j", mul(scaled, scaled))))
    s = '(Read "s" "i j")'
    assert finds(frozen, f'(Mul (Abs (Read "c" "i")) (Sqrt (Sum "j" (Mul {s} {s}))))')


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F64, DType.I32, DType.I64])
def test_no_rule_gives_a_class_two_dtypes(session, dtype):
    x, y, z = leaf("x", "ik", dtype), leaf("y", "ik", dtype), leaf("z", "k", DType.F32)
    mask = leaf("t", "ik", DType.BOOL)
    three = number(3.0, dtype)
    total = reduce("sum", "k", sub(mul(mask, x), mul(mask, add(y, three))))
    mixed = reduce("sum", "k", mul(add(mul(x, z), mul(y, z)), mul(three, x)))
    count = reduce("sum", "k", mask)
    frozen = saturated(session, add(add(total, mixed), div(count, three)))
    assert set(frozen.dtype) == set(frozen.axes)


def many_programs() -> dict[str, Expr]:
    x, w = leaf("x", "ik"), leaf("w", "kn")
    gate, up = contract("k", rms_norm(x), w), contract("k", rms_norm(x), leaf("u", "kn"))
    chain = contract("k", x, w)
    for a, b in ("nl", "lm", "mr", "rj"):
        chain = contract(a, chain, leaf(f"c{a}", a + b))
    return {
        "layer norm, linear": contract("k", layer_norm(x), w),
        "gelu, gate, residual": add(mul(gelu(x), leaf("y", "ik")), leaf("z", "ik")),
        "layer norm, gelu, residual": add(gelu(layer_norm(x)), leaf("z", "ik")),
        "norm, gated mlp": contract("n", mul(mul(gate, apply("sigmoid", gate)), up), leaf("v", "nm")),
        "chain of six": chain,
    }


@pytest.mark.parametrize("name", many_programs())
def test_kernel_sized_programs_saturate_below_ten_thousand_nodes(session, name):
    assert saturated(session, many_programs()[name]).node_count < 10_000
