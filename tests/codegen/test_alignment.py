"""Expressions that are one up to the names of their axes."""

from __future__ import annotations

from eqsat.access import AccessMap, Index
from eqsat.codegen.alignment import alignment
from eqsat.ir import access, apply, iota, reduce
from tests.codegen.contract_problems import Shape

S = Shape(i=4, j=4, k=8, r=4)


def test_reads_under_two_names_align() -> None:
    one = apply("mul", S("x", "ik"), S("g", "k"))
    assert alignment(one, apply("mul", S("x", "jk"), S("g", "k"))) == {"j": "i", "k": "k"}
    assert alignment(one, one) == {"i": "i", "k": "k"}


def test_other_buffers_operations_or_orders_do_not_align() -> None:
    x = S("x", "ik")
    assert alignment(x, S("z", "ik")) is None
    assert alignment(apply("exp", x), apply("neg", x)) is None
    assert alignment(S("x", "ij"), S("x", "ji")) == {"j": "i", "i": "j"}
    assert alignment(apply("add", S("x", "ij"), S("g", "j")), apply("add", S("x", "rj"), S("g", "r"))) is None


def test_two_axes_never_stand_for_one() -> None:
    one = apply("mul", S("a", "i"), S("b", "i"))
    assert alignment(one, apply("mul", S("a", "i"), S("b", "j"))) is None
    assert alignment(apply("mul", S("a", "i"), S("b", "j")), one) is None


def test_positions_align_by_name_and_extent() -> None:
    assert alignment(iota("i", 4), iota("j", 4)) == {"j": "i"}
    assert alignment(iota("i", 4), iota("j", 5)) is None


def test_accesses_align_with_themselves_only_and_reductions_with_nothing() -> None:
    def moved(name: str) -> AccessMap:
        return AccessMap((("k", Index.axis(name) + Index.const(1)),), ((name, 4),))

    one = access(S("x", "ik"), moved("r"))
    assert alignment(one, one) == {"i": "i", "r": "r"}
    assert alignment(one, access(S("x", "jk"), moved("r"))) is None
    total = reduce("sum", "k", S("x", "ik"))
    assert alignment(total, total) is None
