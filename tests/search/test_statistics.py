"""Statistics of times."""

from __future__ import annotations

import math

import numpy as np

from eqsat.search.statistics import drop_outliers, interleaved, median_interval, summarize


def test_the_interval_holds_the_median_and_narrows_with_samples() -> None:
    rng = np.random.default_rng(0)
    few, many = (list(100 + rng.standard_normal(n)) for n in (10, 1000))
    widths = []
    for samples in (few, many):
        low, high = median_interval(samples)
        assert low <= float(np.median(samples)) <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3
    assert median_interval(few) == median_interval(few)


def test_outliers_above_are_counted_as_rejected_and_fast_samples_are_kept() -> None:
    found = summarize([10.0, 10.1, 9.9, 10.0, 10.05, 7.0, 55.0], rejected=2)
    assert 55.0 not in found.samples_ns
    assert 7.0 in found.samples_ns
    assert found.rejected == 3
    assert found.low_ns <= found.median_ns <= found.high_ns


def test_a_handful_of_samples_is_left_alone() -> None:
    assert drop_outliers([1.0, 1.0, 1.0, 50.0]) == [1.0, 1.0, 1.0, 50.0]
    assert math.isnan(summarize([]).median_ns)


def test_every_round_has_every_contestant_once_in_changing_order() -> None:
    order = list(interleaved(5, 20, seed=3))
    rounds = [tuple(order[i : i + 5]) for i in range(0, 100, 5)]
    assert all(sorted(r) == [0, 1, 2, 3, 4] for r in rounds)
    assert len(set(rounds)) > 10
