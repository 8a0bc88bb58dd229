"""Statistics of two samples, each with the probability that chance alone makes it as large.

That probability is what says whether there is a difference, and the statistic how large it is: with enough images the
smallest difference is certain, and with few of them chance makes large ones. Where no formula is exact, answers of both
samples are mixed and parted again at random, many times: what that gives is what chance does (a permutation test).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 999
_DRAWN_VALUES = 1 << 21
"""Counts that are drawn at once."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A statistic, 0 or near it where nothing has changed, and how probable it is without a change."""

    value: float
    p_value: float


def population_stability(
    reference: NDArray[np.int64], current: NDArray[np.int64], rng: np.random.Generator
) -> Measured:
    """Return the population stability index of two histograms of the same classes, less what chance makes it.

    PSI is the sum over classes of (p - q) log(p / q). With many classes and few images it is far from 0 without any
    change, so that its mean over permutations is taken off. Half an image is added to each class, for the logarithm.
    """
    pooled = reference + current
    images = int(reference.sum())
    value = float(_psi(reference[None], current[None])[0])
    chance = np.empty(PERMUTATIONS)
    step = max(_DRAWN_VALUES // len(pooled), 1)
    for begin in range(0, PERMUTATIONS, step):
        count = min(step, PERMUTATIONS - begin)
        drawn = rng.multivariate_hypergeometric(pooled, images, size=count, method="marginals")
        chance[begin : begin + count] = _psi(drawn, pooled - drawn)
    return Measured(value - float(chance.mean()), _share_as_large(chance, value))


def _psi(reference: NDArray[np.int64], current: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the index of each row of two tables (rows, classes)."""
    shares = [(counts + 0.5) / (counts + 0.5).sum(axis=1, keepdims=True) for counts in (reference, current)]
    index: NDArray[np.float64] = ((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum(axis=1)
    return index


def kolmogorov_smirnov(reference: NDArray[np.float32], current: NDArray[np.float32]) -> Measured:
    """Return the largest distance of the distributions of two samples of numbers, from 0 to 1.

    Its probability is Kolmogorov's limit with the correction of Stephens (1970), which ties only make larger.
    """
    ordered = [np.sort(values) for values in (reference, current)]
    everywhere = np.concatenate(ordered)
    below = [np.searchsorted(values, everywhere, side="right") / len(values) for values in ordered]
    distance = float(np.abs(below[0] - below[1]).max())
    size = math.sqrt(len(reference) * len(current) / (len(reference) + len(current)))
    scaled = (size + 0.12 + 0.11 / size) * distance
    return Measured(distance, _kolmogorov(scaled))


def _kolmogorov(scaled: float) -> float:
    """Return the probability that Kolmogorov's statistic is as large."""
    if scaled < 0.2:  # from here on it is 1 to twelve digits, and the series slow
        return 1.0
    terms = np.arange(1, 101)
    return float(np.clip(2 * np.sum((-1.0) ** (terms - 1) * np.exp(-2 * (terms * scaled) ** 2)), 0.0, 1.0))


def mean_discrepancy(
    reference: NDArray[np.float32], current: NDArray[np.float32], rng: np.random.Generator
) -> Measured:
    """Return the maximum mean discrepancy of two samples of vectors (images, channels), of two at least each.

    Gretton et al., A kernel two-sample test, JMLR 13 (2012): the root of the unbiased estimate, 0 where that is below,
    with the kernel exp(-d^2 / m), m being the median of all squared distances d^2. It is 0 for the same distribution
    and at most the root of 2. Takes memory and time with the square of the images.
    """
    vectors = np.concatenate([reference, current]).astype(np.float64)
    vectors -= vectors.mean(axis=0)  # else large means cost the distances their digits
    lengths = (vectors**2).sum(axis=1)
    distances = np.maximum(lengths[:, None] + lengths[None] - 2 * vectors @ vectors.T, 0.0)
    apart = distances[np.triu_indices(len(vectors), 1)]
    kernel = np.exp(-distances / (float(np.median(apart)) or float(apart.mean()) or 1.0))
    np.fill_diagonal(kernel, 0.0)
    belongs = np.zeros((len(vectors), PERMUTATIONS + 1))
    belongs[: len(reference), 0] = 1.0
    for column in range(1, PERMUTATIONS + 1):
        belongs[rng.permutation(len(vectors))[: len(reference)], column] = 1.0
    squares = _squared_discrepancy(kernel, belongs)
    return Measured(math.sqrt(max(squares[0], 0.0)), _share_as_large(squares[1:], squares[0]))


def _squared_discrepancy(kernel: NDArray[np.float64], belongs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unbiased estimate for each column of `belongs`, which is 1 for the vectors of the first sample.

    The kernel's diagonal is 0.
    """
    first = int(belongs[:, 0].sum())
    second = len(kernel) - first
    to_first = kernel @ belongs
    within_first = np.einsum("ij,ij->j", belongs, to_first)
    between = to_first.sum(axis=0) - within_first
    within_second = kernel.sum() - within_first - 2 * between
    estimate: NDArray[np.float64] = (
        within_first / (first * (first - 1)) + within_second / (second * (second - 1)) - 2 * between / (first * second)
    )
    return estimate


def _share_as_large(chance: NDArray[np.float64], value: float) -> float:
    """Return the share of what chance made, and of the value itself, that is as large, within rounding."""
    return (1 + int(np.count_nonzero(chance >= value - 1e-12))) / (len(chance) + 1)
