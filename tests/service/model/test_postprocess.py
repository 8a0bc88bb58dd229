from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.errors import InferenceFailed
from service.model.postprocess import Choice, best_classes, l2_normalized, softmax, top_k

FLOATS = st.floats(-1e6, 1e6, width=32)


@settings(derandomize=True, deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=FLOATS))
def test_softmax_is_a_distribution_in_the_order_of_the_logits(logits: np.ndarray) -> None:
    probabilities = softmax(logits)
    assert probabilities.dtype == np.float64
    assert probabilities.sum() == pytest.approx(1.0)
    assert (np.diff(probabilities[np.argsort(logits, kind="stable")]) >= 0).all()


def test_softmax_equals_its_definition_and_ignores_a_common_offset() -> None:
    logits = np.array([[0.0, 1.0, 2.0], [-1.0, 0.5, 0.0]], np.float32)
    powers = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(softmax(logits), powers / powers.sum(1, keepdims=True))
    np.testing.assert_allclose(softmax(logits + np.float32(4096)), softmax(logits))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_softmax_of_what_is_not_finite_is_a_failure(bad: float) -> None:
    with pytest.raises(InferenceFailed):
        softmax(np.array([0.0, bad], np.float32))


def test_top_k_is_highest_first_and_equal_scores_by_class() -> None:
    scores = np.array([0.1, 0.4, 0.1, 0.4])
    assert top_k(scores, 3) == [(1, 0.4), (3, 0.4), (0, 0.1)]
    assert [class_id for class_id, _ in top_k(np.tile([0.0, 0.5], 500), 500)] == list(range(1, 1000, 2))


def test_top_k_above_the_number_of_classes_gives_all() -> None:
    assert [class_id for class_id, _ in top_k(np.array([0.2, 0.8]), 50)] == [1, 0]


def test_l2_normalized_has_length_one_and_leaves_zero_alone() -> None:
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]], np.float32)
    normalized = l2_normalized(vectors)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, [[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]], rtol=1e-6)


def test_a_temperature_divides_the_logits_and_changes_no_order() -> None:
    logits = np.array([[0.0, 1.0, 2.5], [-1.0, 0.5, 0.0]], np.float32)
    np.testing.assert_allclose(softmax(logits, 2.5), softmax(logits / np.float32(2.5)), rtol=1e-6)
    assert (softmax(logits, 100.0).argsort() == softmax(logits).argsort()).all()
    np.testing.assert_array_equal(softmax(logits, 1.0), softmax(logits))
    np.testing.assert_array_equal(softmax(np.array([3e38, -3e38], np.float32), 0.01), [1.0, 0.0])


SCORES = np.array([0.1, 0.3, 0.05, 0.3, 0.25])


@pytest.mark.parametrize(
    ("choice", "classes"),
    [
        (Choice(), [1, 3, 4, 0, 2]),
        (Choice(2), [1, 3]),
        (Choice(2, min_score=0.3), [1, 3]),
        (Choice(9, min_score=0.1), [1, 3, 4, 0]),
        (Choice(min_score=0.5), []),
        (Choice(classes=(0, 2, 3)), [3, 0, 2]),
        (Choice(2, classes=(0, 2, 3)), [3, 0]),
        (Choice(2, min_score=0.2, classes=(0, 2, 3)), [3]),
        (Choice().or_top_k(1), [1]),
        (Choice(3).or_top_k(1), [1, 3, 4]),
        (Choice(classes=(2, 4)).or_top_k(1), [4, 2]),
    ],
)
def test_a_choice_names_the_best_of_its_classes_and_leaves_their_scores(choice: Choice, classes: list[int]) -> None:
    assert best_classes(SCORES, choice) == [(class_id, SCORES[class_id]) for class_id in classes]
