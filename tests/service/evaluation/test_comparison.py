"""What another resize changes, counted from scores."""

from __future__ import annotations

import numpy as np
import pytest

from service.evaluation.comparison import Comparison, ScoreDifference


def test_changes_of_the_first_class_are_counted_by_what_they_do() -> None:
    comparison = Comparison("fast")
    right_first, wrong_first = np.array([0.6, 0.3, 0.1]), np.array([0.3, 0.6, 0.1])
    comparison.add("same.jpg", 0, right_first, None)
    comparison.add("moved.jpg", 0, right_first, np.array([0.55, 0.35, 0.1]))
    comparison.add("righted.jpg", 0, wrong_first, right_first)
    comparison.add("wronged.jpg", 0, right_first, wrong_first)
    comparison.add("wrong either way.jpg", 2, right_first, wrong_first)
    comparison.add_unusable(1)
    assert (comparison.tally.all.images, comparison.tally.all.top1, comparison.tally.all.top5) == (6, 3, 5)
    assert (comparison.moved, comparison.changed, comparison.righted, comparison.wronged) == (4, 3, 1, 1)


def test_largest_difference_is_that_of_any_class_and_says_where() -> None:
    comparison = Comparison("fast")
    comparison.add("same.jpg", 0, np.array([0.5, 0.5]), None)
    assert comparison.largest is None
    comparison.add("little.jpg", 0, np.array([0.5, 0.3, 0.2]), np.array([0.5, 0.28, 0.22]))
    comparison.add("much.jpg", 0, np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.25, 0.15]))
    comparison.add("less.jpg", 0, np.array([0.5, 0.3, 0.2]), np.array([0.5, 0.25, 0.25]))
    assert comparison.largest == ScoreDifference(pytest.approx(0.1), 0, "much.jpg")
