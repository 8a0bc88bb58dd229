"""What runs of images of other shapes are reckoned to take, before and after they have run."""

from __future__ import annotations

import pytest

from service.engine.costs import MOST_SHAPES, BucketCosts, GraphCosts, buckets_at
from tests.service.engine.fakes import OWN


def costs_of(times_s: dict[int, float]) -> GraphCosts:
    costs = GraphCosts(list(times_s), OWN)
    for bucket, run_s in times_s.items():
        costs.own.observe(bucket, run_s)
    return costs


@pytest.mark.parametrize(
    ("shape", "buckets"),
    [(OWN, (1, 2, 4)), ((1, 1), (1, 2, 4)), ((2, 5), (1, 2)), ((4, 4), (1, 2)), ((4, 5), (1,)), ((99, 99), (1,))],
)
def test_a_batch_has_no_more_pixels_than_the_largest_of_the_models_own_images(
    shape: tuple[int, int], buckets: tuple[int, ...]
) -> None:
    assert buckets_at(shape, (1, 2, 4), OWN) == buckets
    assert GraphCosts((1, 2, 4), OWN).largest_at(shape) == buckets[-1]


def test_an_unknown_shape_is_reckoned_by_its_pixels() -> None:
    costs = costs_of({1: 1.0, 2: 1.5, 4: 9.0})
    assert costs.at((4, 4)).times_s == {1: 2.0, 2: 3.0}
    assert costs.at((1, 4)).times_s == {1: 0.5, 2: 0.75, 4: 4.5}
    assert costs.at((1, 4)).choose(4) == 2  # as with its own images, two runs of two are the cheapest


def test_what_a_shape_takes_is_learned_for_its_other_batches_too() -> None:
    costs = costs_of({1: 1.0, 2: 1.5, 4: 2.0}).at((1, 4))
    costs.observe(2, 7.5)
    assert costs.times_s == {1: 5.0, 2: 7.5, 4: 10.0}
    assert costs.run_s(2) == 7.5
    costs.observe(1, 1.0)
    assert costs.times_s[1] == 1.0
    assert costs.times_s[4] == pytest.approx(10.0 * (8.5 / 1.25) / 10)  # by what both have shown


def test_before_the_own_shape_is_measured_nothing_is_reckoned() -> None:
    assert GraphCosts((1, 2, 4), OWN).at((4, 4)).choose(2) == 2


def test_runs_of_one_shape_do_not_change_the_times_of_another() -> None:
    costs = costs_of({1: 1.0, 4: 2.0})
    costs.at((4, 4)).ran_out_of_memory(4)
    costs.at((4, 4)).observe(1, 50.0)
    assert costs.own.times_s == {1: 1.0, 4: 2.0}
    assert costs.at(OWN) is costs.own
    assert costs.own.choose(4) == 4


def test_any_number_of_shapes_keeps_the_costs_of_the_latest() -> None:
    costs = costs_of({1: 1.0})
    first = costs.at((1, 1))
    kept = [costs.at((1, side)) for side in range(2, MOST_SHAPES + 1)]
    assert costs.at((1, 1)) is first
    for side in range(MOST_SHAPES + 1, 1001):
        costs.at((1, side))
        assert costs.at((1, 1)) is first
    assert len(costs._others) == MOST_SHAPES
    assert costs.at((1, 2)) is not kept[0]


def test_costs_without_expectations_are_those_measured() -> None:
    costs = BucketCosts((1, 2))
    costs.observe(1, 1.0)
    assert costs.times_s == {1: 1.0}


def test_while_others_wait_no_run_is_longer_than_need_be() -> None:
    costs = BucketCosts((1, 2, 4, 8))
    for bucket, run_s in ((1, 0.03), (2, 0.05), (4, 0.09), (8, 0.17)):
        costs.observe(bucket, run_s)
    assert costs.choose(20) == 8
    assert [costs.choose(20, longest_s=longest_s) for longest_s in (1.0, 0.1, 0.06, 0.01)] == [8, 4, 2, 1]
    assert costs.choose(1, longest_s=0.1) == 1
