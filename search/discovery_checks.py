"""Checks of plans, out of which the rows of the discovery suite are made: each returns what a plan lacks, in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from eqsat.search.discovery_plan import Pass, Picture, buffers, is_read

Check = Callable[[Picture], list[str]]
HELD = 65536  # elements of a row that registers hold, so that sums which need each other read it once


def all_of(*checks: Check) -> Check:
    """Return the check that makes all of these."""
    return lambda p: [text for check in checks for text in check(p)]


def _lacks(*wanted: tuple[bool, str]) -> list[str]:
    return [text for holds, text in wanted if not holds]


def kernels(count: int) -> Check:
    """Check that so many kernels run at a call."""
    return lambda p: _lacks((len(p.passes) == count, f"expected {count} kernels a call; the plan has {len(p.passes)}"))


def nothing_as_large_as(elements: int, what: str) -> Check:
    """Check that no kernel writes an intermediate of so many elements."""
    return lambda p: _lacks((p.largest < elements, f"an intermediate has {p.largest} elements, as {what} ({elements})"))


def nothing_over(count: int, what: str) -> Check:
    """Check that no value in any kernel, stored or not, is the result of a sum and has so many elements."""

    def check(p: Picture) -> list[str]:
        made = max((e.type.elements for x in p.passes for e in x.reductions), default=0)
        return _lacks((made < count, f"a sum of {made} elements is computed: {what} ({count})"))

    return check


def products(count: int) -> Check:
    """Check that so many contractions are computed at a call."""
    return lambda p: _lacks((len(p.products) == count, f"expected {count} contractions a call; the plan has {len(p.products)}"))


def two_reads(p: Picture) -> list[str]:
    """Check that every contraction is of two operands as they lie in memory."""
    bad = [x for x in p.products if len(x.factors) != 2 or not all(map(is_read, x.factors))]
    return _lacks(
        (not bad, "; ".join(f"a contraction of {len(x.factors)} factors, not all reads, of {sorted(x.reads)}" for x in bad))
    )


def taken_as_it_is(name: str) -> Check:
    """Check that some contraction has the input as a factor, unscaled."""

    def check(p: Picture) -> list[str]:
        found = any(is_read(f) and buffers(f) == {name} for x in p.products for f in x.factors)
        return _lacks((found, f"no contraction takes {name} as it lies in memory"))

    return check


def contracted_alone(*names: str) -> Check:
    """Check that some contraction is of just these inputs, as they lie in memory."""

    def check(p: Picture) -> list[str]:
        found = any(len(x.factors) == len(names) and x.of_reads and x.reads == set(names) for x in p.products)
        return _lacks((found, f"no contraction is of {' and '.join(names)} themselves"))

    return check


def read_once(name: str) -> Check:
    """Check that one kernel of a call reads the input."""
    return lambda p: _lacks((len(p.readers(name)) == 1, f"{len(p.readers(name))} kernels read {name}"))


def statistics_ride(name: str) -> Check:
    """Check that a contraction's kernel also reduces the input that it contracts."""

    def rides(x: Pass) -> bool:
        sums = {e.node.digest for e in x.products}
        return bool(sums) and any(buffers(e) == {name} for e in x.reductions if e.digest not in sums)

    return lambda p: _lacks((any(map(rides, p.passes)), f"no kernel contracts {name} and sums it up in the same pass"))


def saves(factor: float) -> Check:
    """Check that the plan does so many times less arithmetic than the program as written."""
    return lambda p: _lacks(
        (p.saving >= factor, f"the plan saves a factor of {p.saving:.3g} of the arithmetic, not {factor:.3g}")
    )


def sums_over(count: int) -> Check:
    """Check that every contraction sums over so many axes at once."""
    return lambda p: _lacks((all(len(x.over) == count for x in p.products), f"a contraction is not over {count} axes"))


def on_matrix_units(p: Picture) -> list[str]:
    """Check that every contraction is in a kernel of the family for matrix products."""
    found = {x.family for x in p.passes if x.products}
    return _lacks((found == {"contract"}, f"contractions are in kernels of the families {sorted(found)}"))


def one_pass(name: str) -> Check:
    """Check that one kernel reads the input, and once: with a running maximum, or rows that registers hold."""

    def check(p: Picture) -> list[str]:
        readers = p.readers(name)
        longest = max((_length(e) for x in readers if x.family != "online" and x.depth > 1 for e in x.reductions), default=0)
        return _lacks(
            (len(readers) == 1, f"{len(readers)} kernels read {name}"),
            (longest <= HELD, f"a sum that needs another one runs over {longest} elements: {name} is read twice"),
        )

    return check


def multiplies_at_most(count: int) -> Check:
    """Check that the contractions of a call take so many multiplications, and there is one."""

    def check(p: Picture) -> list[str]:
        done = sum(x.volume for x in p.products)
        return _lacks((0 < done <= count, f"{done} multiplications, not {count}"))

    return check


def computes_at_most(count: int) -> Check:
    """Check that the plan does so many operations."""
    return lambda p: _lacks((p.flops <= count, f"{p.flops} operations, not {count}"))


def some_online(p: Picture) -> list[str]:
    """Check that some kernel of a call is of the family for dependent sums."""
    return _lacks((any(x.family == "online" for x in p.passes), "no kernel of the family online"))


def one_online(p: Picture) -> list[str]:
    """Check that one kernel of the family for dependent sums does it all."""
    found = [x.family for x in p.passes]
    return _lacks((found == ["online"], f"expected one kernel of the family online; the plan has {found}"))


def split_and_combined(p: Picture) -> list[str]:
    """Check that a long reduction is done in parts by independent blocks, and their results are combined."""
    own = set(p.plan.program.extents)
    first = [x for x in p.passes if x.reads & {"k", "v"}]
    parts = {
        a: n for x in first for o in x.program.outputs for a, n in o.expr.type.axes if a not in own and o.name in p.intermediates
    }
    long = p.extent("k", 1)
    few = p.largest * 64 <= math.prod(next(i.shape for i in p.plan.program.inputs if i.name == "k"))
    return _lacks(
        (len(p.passes) == 2, f"expected two kernels, parts and their combination; the plan has {len(p.passes)}"),
        (len(first) == 1, f"{len(first)} kernels read k or v"),
        (any(1 < n < long for n in parts.values()), "no kernel writes partial results along a new axis"),
        (few, f"the partial results have {p.largest} elements, more than a 64th of k"),
    )


def one_stable_pass(p: Picture) -> list[str]:
    """Check that x is read once, and that only differences are squared."""
    raw = [e for e in p.values() if e.op == "mul" and all(is_read(a) and buffers(a) == {"x"} for a in e.args)]
    return [*one_pass("x")(p), *_lacks((not raw, "squares of x itself are summed: unstable"))]


def _length(e: Any) -> int:
    body, extent = e, 1
    while body.op == e.op:
        extent *= dict(body.args[0].type.axes)[body.attrs[0]]
        body = body.args[0]
    return extent


def fewest_multiplications(dims: Sequence[int]) -> int:
    """Return the multiplications of the best order of a chain of matrices dims[0]×dims[1], dims[1]×dims[2] and so on."""
    count = len(dims) - 1
    best = {(i, i): 0 for i in range(count)}
    for length in range(1, count):
        for i in range(count - length):
            j = i + length
            best[i, j] = min(best[i, s] + best[s + 1, j] + dims[i] * dims[s + 1] * dims[j + 1] for s in range(i, j))
    return best[0, count - 1]


def in_the_best_order(dims: Sequence[int]) -> Check:
    """Check that the contractions together multiply no more than the best parenthesisation."""
    least = fewest_multiplications(dims)

    def check(p: Picture) -> list[str]:
        done = sum(x.volume for x in p.products)
        return _lacks((done <= least, f"{done} multiplications; the best order takes {least}"))

    return check
