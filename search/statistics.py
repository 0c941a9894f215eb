"""Statistics of times: medians with bootstrap intervals, the outlier policy, interleaved rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from eqsat.search.device import Measurement

_RESAMPLES = 1000
_LEVEL = 0.95
# One-sided, as noise only ever adds time: beyond this many normalised median deviations (and 10 %) above the median.
_OUTLIER_DEVIATIONS = 8.0
_OUTLIER_SHARE = 0.10


def median(samples: Sequence[float]) -> float:
    """Return the median; nan of nothing.

    Examples
    --------
    >>> median([3.0, 1.0, 2.0])
    2.0
    """
    return float(np.median(samples)) if len(samples) else float("nan")


def median_interval(samples: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median (percentile method, deterministic for a seed).

    Examples
    --------
    >>> median_interval([5.0])
    (5.0, 5.0)
    """
    if not len(samples):
        return float("nan"), float("nan")
    low, high = np.quantile(_resampled_medians(samples, seed), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _resampled_medians(samples: Sequence[float], seed: int) -> np.ndarray:
    values = np.asarray(samples, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(values), size=(_RESAMPLES, len(values)))
    return np.asarray(np.median(values[drawn], axis=1))


def drop_outliers(samples: Sequence[float]) -> list[float]:
    """Return the samples without those far above the median (an interrupt, a neighbour on a shared machine).

    With fewer than five samples all are kept.

    Examples
    --------
    >>> drop_outliers([1.0, 1.01, 0.99, 1.0, 1.02, 9.0])
    [1.0, 1.01, 0.99, 1.0, 1.02]
    """
    if len(samples) < 5:
        return list(samples)
    middle = median(samples)
    deviation = 1.4826 * median([abs(s - middle) for s in samples])  # the factor makes it the sigma of a normal distribution
    limit = middle + max(_OUTLIER_DEVIATIONS * deviation, _OUTLIER_SHARE * middle)
    return [s for s in samples if s <= limit]


def summarize(samples: Sequence[float], *, rejected: int = 0, clock_mhz: float = 0.0, seed: int = 0) -> Measurement:
    """Make a Measurement of samples in ns; outliers are dropped and counted as rejected."""
    kept = drop_outliers(samples)
    low, high = median_interval(kept, seed)
    return Measurement(median(kept), low, high, tuple(kept), rejected + len(samples) - len(kept), clock_mhz)


def interleaved(count: int, rounds: int, seed: int = 0) -> Iterator[int]:
    """Yield indices of contestants: `rounds` times all of them, in a fresh random order each time."""
    order = np.random.default_rng(seed)
    for _ in range(rounds):
        yield from (int(i) for i in order.permutation(count))
