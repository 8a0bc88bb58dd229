"""The statistics beside others' of the same name, and how often they call chance a change."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from service.drift import measures
from service.drift.measures import kolmogorov_smirnov, mean_discrepancy, population_stability


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("sizes", [(50, 70), (400, 300)])
def test_kolmogorov_smirnov_is_scipys(sizes: tuple[int, int], shift: float) -> None:
    rng = np.random.default_rng(1)
    reference, current = rng.normal(size=sizes[0]).astype(np.float32), rng.normal(size=sizes[1]).astype(np.float32)
    measured = kolmogorov_smirnov(reference, current + np.float32(shift))
    theirs = stats.ks_2samp(reference, current + np.float32(shift), method="exact")
    assert measured.value == pytest.approx(theirs.statistic)
    assert measured.p_value == pytest.approx(theirs.pvalue, abs=0.03)


def test_equal_samples_are_no_different() -> None:
    rng = np.random.default_rng(0)
    scores, vectors = np.full(50, 0.5, np.float32), rng.normal(size=(50, 4)).astype(np.float32)
    counts = np.array([20, 30, 0])
    assert kolmogorov_smirnov(scores, scores) == measures.Measured(0.0, 1.0)
    assert mean_discrepancy(vectors, vectors, rng).value == 0.0
    assert mean_discrepancy(np.ones((9, 4), np.float32), np.ones((9, 4), np.float32), rng) == measures.Measured(
        0.0, 1.0
    )
    same = population_stability(counts, counts, rng)
    assert (same.value < 0, same.p_value) == (True, 1.0)


def test_population_stability_is_what_its_formula_says_less_chance() -> None:
    before, now = np.array([5000, 3000, 2000]), np.array([3000, 3000, 4000])
    measured = population_stability(before, now, np.random.default_rng(0))
    expected = sum((p - q) * math.log(p / q) for p, q in zip((0.5, 0.3, 0.2), (0.3, 0.3, 0.4), strict=True))
    assert measured.value == pytest.approx(expected, abs=2e-3)
    assert measured.p_value == pytest.approx(0.001)


def test_many_classes_of_few_images_are_no_change_by_themselves() -> None:
    rng = np.random.default_rng(3)
    shares = rng.dirichlet(np.ones(500))
    measured = population_stability(rng.multinomial(300, shares), rng.multinomial(300, shares), rng)
    assert abs(measured.value) < 0.2
    assert measured.p_value > 0.01


def test_discrepancy_is_that_of_its_sums_and_sees_more_than_means() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(30, 3)), rng.normal(size=(40, 3)) * 2.5
    measured = mean_discrepancy(first.astype(np.float32), second.astype(np.float32), rng)
    pooled = np.concatenate([first, second])
    squares = ((pooled[:, None] - pooled[None]) ** 2).sum(-1)
    kernel = np.exp(-squares / np.median(squares[np.triu_indices(70, 1)]))
    within = [(part.sum() - len(part)) / (len(part) * (len(part) - 1)) for part in (kernel[:30, :30], kernel[30:, 30:])]
    assert measured.value == pytest.approx(math.sqrt(sum(within) - 2 * kernel[:30, 30:].mean()), rel=1e-4)
    assert measured.p_value < 0.01


def test_chance_is_called_a_change_as_rarely_as_its_probability_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "PERMUTATIONS", 99)
    rng = np.random.default_rng(5)
    found = np.array([
        (
            population_stability(rng.multinomial(80, [0.25] * 4), rng.multinomial(60, [0.25] * 4), rng).p_value,
            kolmogorov_smirnov(rng.random(80).astype(np.float32), rng.random(60).astype(np.float32)).p_value,
            mean_discrepancy(
                rng.normal(size=(20, 3)).astype(np.float32), rng.normal(size=(25, 3)).astype(np.float32), rng
            ).p_value,
        )
        for _ in range(300)
    ])  # fmt: skip
    often = (found <= 0.1).mean(axis=0)
    assert (often < 0.16).all(), often  # of 300, more than three standard deviations
    assert (often > 0.04).all(), often
