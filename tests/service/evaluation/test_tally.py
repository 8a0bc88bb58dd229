from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.evaluation.tally import Score, Tally, wilson_interval


def test_first_and_five_are_counted_in_all_and_by_class() -> None:
    tally = Tally()
    tally.add(1, [1, 2, 3, 4, 5])
    tally.add(1, [2, 3, 4, 5, 1])
    tally.add(1, [2, 3, 4, 5, 6, 1])
    tally.add(2, [2])
    assert tally.all == Score(images=4, top1=2, top5=3)
    assert tally.by_class == {1: Score(3, 1, 2), 2: Score(1, 1, 1)}


def test_confusions_come_most_frequent_first_and_equal_ones_by_class() -> None:
    tally = Tally()
    for truth, predicted in [(3, 1), (2, 0), (3, 1), (1, 0), (5, 5)]:
        tally.add(truth, [predicted])
    assert tally.most_confused(10) == [((3, 1), 2), ((1, 0), 1), ((2, 0), 1)]
    assert tally.most_confused(1) == [((3, 1), 2)]


def test_an_image_that_cannot_be_used_is_wrong_and_confused_with_nothing() -> None:
    tally = Tally()
    tally.add(0, [])
    assert (tally.all, tally.most_confused(5)) == (Score(1, 0, 0), [])


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.277533),
        (5, 10, 0.236593, 0.763407),
        (10, 10, 0.722467, 1.0),
        (41_000, 50_000, 0.816606, 0.823342),
    ],
)
def test_the_interval_is_wilsons(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=2e-6)


def test_nothing_is_known_without_a_trial() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 100_000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_the_interval_solves_the_score_equation_and_holds_the_share(counts: tuple[int, int]) -> None:
    successes, trials = counts
    share = successes / trials
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= share <= high <= 1
    for end in {low, high} - {0.0, 1.0}:  # there the share is just as unlikely as is allowed
        assert abs(share - end) / math.sqrt(end * (1 - end) / trials) == pytest.approx(1.959964, rel=1e-4)
