"""The closure against its definition, and proofs that replay."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from eqsat.congruence import Closure, Terms
from eqsat.prooflines import parts_of
from eqsat.sexpr import read_forms


def never() -> None:
    return


def random_terms(rng: random.Random, terms: Terms) -> list[int]:
    out = [terms.add(c, ()) for c in ("A", "B", "C", "D")]
    for _ in range(12):
        if rng.random() < 0.5:
            out.append(terms.add("F", (rng.choice(out),)))
        else:
            out.append(terms.add("G", (rng.choice(out), rng.choice(out))))
    return list(dict.fromkeys(out))


def equal_by_definition(terms: Terms, every: list[int], equations: list[tuple[int, int]]) -> dict[int, int]:
    """Smallest congruence on `every`, by repetition until nothing changes: a class number for each term."""
    group = {t: t for t in every}

    def join(a: int, b: int) -> bool:
        x, y = group[a], group[b]
        for t in every:
            if group[t] == y:
                group[t] = x
        return x != y

    changed = True
    while changed:
        changed = sum(join(a, b) for a, b in equations) > 0  # every one is to be joined
        for a in every:
            for b in every:
                same = terms.op(a) == terms.op(b) and len(terms.args(a)) == len(terms.args(b))
                if same and all(group[x] == group[y] for x, y in zip(terms.operands(a), terms.operands(b), strict=True)):
                    changed |= join(a, b)
    return group


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_the_closure_is_the_smallest_congruence_and_every_proof_replays(seed):
    rng = random.Random(seed)
    terms = Terms()
    every = random_terms(rng, terms)
    equations = [(rng.choice(every), rng.choice(every)) for _ in range(6)]
    closure = Closure(terms)
    for t in every:
        closure.cover(t)
    for n, (a, b) in enumerate(equations):
        closure.equate(a, b, f"e{n}")
    group = equal_by_definition(terms, every, equations)
    for a in every:
        for b in every:
            assert closure.equal(a, b) == (group[a] == group[b])
            if group[a] != group[b]:
                continue
            parts = parts_of(terms, closure, [(a, b)], never)
            for n, part in enumerate(parts):
                whole = part.before
                for r in part.lines:
                    sides = (r.before, r.after) if r.forward else (r.after, r.before)
                    if r.rule is not None:
                        assert sides == equations[int(r.rule[1:])]
                    else:
                        assert r.part < n
                        assert sides == (parts[r.part].before, parts[r.part].after)
                    assert terms.at(whole, r.position) == r.before
                    whole = terms.replace(whole, r.position, r.after)
                assert whole == part.after
            assert (parts[-1].before, parts[-1].after) == (a, b)


def test_a_long_chain_of_equations_is_explained_without_recursion():
    terms = Terms()
    closure = Closure(terms)
    atoms = [terms.add(f"A{i}", ()) for i in range(3000)]
    for n, (a, b) in enumerate(itertools.pairwise(atoms)):
        closure.equate(a, b, f"e{n}")
    (part,) = parts_of(terms, closure, [(atoms[0], atoms[-1])], never)
    assert len(part.lines) == 2999


def test_an_equality_that_is_needed_at_many_places_is_shown_once():
    terms = Terms()
    closure = Closure(terms)
    a, b, c = (terms.add(n, ()) for n in "ABC")
    left, right = a, c
    for _ in range(60):
        left, right = (terms.add("G", (x, terms.add("F", (x,)))) for x in (left, right))
    closure.cover(left)
    closure.cover(right)
    closure.equate(a, b, "e0")
    closure.equate(b, c, "e1")
    parts = parts_of(terms, closure, [(left, right)], never)
    assert sum(r.rule is not None for p in parts for r in p.lines) == 2
    assert sum(len(p.lines) for p in parts) < 200


def test_equal_terms_have_one_number_however_their_numbers_are_spelled():
    terms = Terms()
    one, other = (
        terms.read(read_forms(text)[0], {})
        for text in ('(Mul (Const 1e-06) (Read "x" "i"))', '(Mul (Const 0.000001)\n (Read "x" "i"))')
    )
    assert one == other
    assert terms.text(one) == '(Mul (Const 1e-06) (Read "x" "i"))'
    assert terms.size(one) == 3


def test_a_shared_name_stands_for_its_term():
    terms = Terms()
    x = terms.read(read_forms('(Read "x" "i")')[0], {})
    squared = terms.read(read_forms("(Mul $x $x)")[0], {"$x": x})
    assert terms.operands(squared) == [x, x]
    assert terms.text(terms.replace(squared, (1,), squared)) == ('(Mul (Read "x" "i") (Mul (Read "x" "i") (Read "x" "i")))')
