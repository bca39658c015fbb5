"""Means with intervals, and paired differences with a test, of values that come in groups.

Videos of one prompt resemble each other, so prompts with all their videos, not single videos, are resampled or have
their sign flipped. Everything is seeded: the same rows give the same table.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its bootstrap interval."""

    mean: float
    low: float  # NaN with a single group, which says nothing of others
    high: float
    count: int  # of videos


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean of paired differences, and p of the two-sided sign-flip test that they lie around 0."""

    p: float


def estimate(values: Sequence[float], groups: Sequence[Hashable]) -> Estimate:
    """Mean, and its 95% interval by a percentile bootstrap over the groups."""
    sums, counts = _by_group(values, groups)
    if len(sums) == 1:
        return Estimate(float(sums.sum() / counts.sum()), math.nan, math.nan, len(values))
    drawn = np.random.default_rng(0).integers(len(sums), size=(NUM_RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high), len(values))


def difference(values: Sequence[float], baseline: Sequence[float], groups: Sequence[Hashable]) -> Difference:
    """Mean of `values` minus `baseline`, pair by pair, with its interval and test.

    p is the share of sign patterns of the groups, drawn at random, whose sum lies at least as far from 0.
    """
    differences = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    mean = estimate(differences, groups)
    sums, _ = _by_group(differences, groups)
    signs = np.random.default_rng(1).choice((-1.0, 1.0), size=(NUM_RESAMPLES, len(sums)))
    as_far = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9
    p = (as_far.sum() + 1) / (NUM_RESAMPLES + 1)  # the observed pattern is one of them
    return Difference(mean.mean, mean.low, mean.high, mean.count, float(p))


def holm(p_values: Sequence[float]) -> list[float]:
    """p of several tests, corrected so that the chance of any false one among them is kept (Holm 1979)."""
    order, corrected, highest = sorted(range(len(p_values)), key=p_values.__getitem__), [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def _by_group(values: Sequence[float], groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of every group."""
    order = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    rows = np.array([order[group] for group in groups])
    values = np.asarray(values, dtype=np.float64)
    return np.bincount(rows, weights=values), np.bincount(rows).astype(np.float64)
