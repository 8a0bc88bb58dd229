"""Temperatures that are known beforehand are found again, and reliability is what its definition says."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from service.evaluation.calibration import (
    BINS,
    BadCalibration,
    fitted_temperature,
    held_out_of,
    reliability,
)
from service.model.postprocess import softmax


def drawn(temperature: float, *, images: int = 4000, classes: int = 6) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits of images whose classes are drawn with just the probabilities that the temperature gives them."""
    random = np.random.default_rng(1)
    logits = random.normal(0, 2, (images, classes)).astype(np.float32)
    cumulated = softmax(logits, temperature).cumsum(axis=1)
    return logits, (random.random((images, 1)) > cumulated).sum(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_classes_were_drawn_by_is_found(temperature: float) -> None:
    logits, classes = drawn(temperature)
    found = fitted_temperature(logits, classes)
    assert found == pytest.approx(temperature, rel=0.1)
    least = reliability(logits, classes, found)
    for other in (found * 0.98, found * 1.02):
        assert reliability(logits, classes, other).nll > least.nll
    assert least.ece < 0.03
    # Where the logits are larger, so is the temperature.
    assert fitted_temperature(logits * np.float32(8), classes) == pytest.approx(8 * found, rel=1e-4)


def test_reliability_is_what_its_definition_says() -> None:
    logits, classes = drawn(2.0, images=1500)
    scores = softmax(logits, 0.7)
    highest, right = scores.max(axis=1), scores.argmax(axis=1) == classes
    found = reliability(logits, classes, 0.7)
    assert (found.images, found.accuracy) == (1500, right.mean())
    assert found.nll == pytest.approx(-np.log(scores[np.arange(1500), classes]).mean())
    ece = 0.0
    for place, each in enumerate(found.bins):
        inside = (highest > place / BINS) & (highest <= (place + 1) / BINS)
        assert (each.lower, each.upper, each.images) == (place / BINS, (place + 1) / BINS, inside.sum())
        if each.images:
            assert (each.confidence, each.accuracy) == pytest.approx((highest[inside].mean(), right[inside].mean()))
            ece += inside.mean() * abs(highest[inside].mean() - right[inside].mean())
        else:
            assert (each.confidence, each.accuracy) == (None, None)
    assert found.ece == pytest.approx(ece)
    assert sum(each.images for each in found.bins) == 1500


def test_scores_that_underflow_still_have_a_likelihood() -> None:
    found = reliability(np.array([[0.0, -2000.0]], np.float32), np.array([1]), None)
    assert found.nll == pytest.approx(2000.0)


@pytest.mark.parametrize(("right", "said"), [(True, "nearly all of these images are right"), (False, "say nothing")])
def test_images_that_fix_no_temperature_are_refused(right: bool, said: str) -> None:
    logits = np.eye(4, dtype=np.float32) * 50
    classes = np.arange(4) if right else (np.arange(4) + 1) % 4
    with pytest.raises(BadCalibration, match=said):
        fitted_temperature(logits, classes)


def test_a_part_of_each_class_is_held_out_and_always_the_same() -> None:
    classes = [number % 5 for number in range(100)]
    held_out = held_out_of(classes, 0.3)
    assert held_out.sum() == 30
    assert {sum(held_out[np.array(classes) == each]) for each in range(5)} == {6}
    assert (held_out_of(classes, 0.3) == held_out).all()
    assert held_out_of(list(range(10)), 0.5).sum() == 5  # one image a class


@pytest.mark.parametrize("images", [0, 1])
def test_too_few_images_for_two_parts_are_refused(images: int) -> None:
    with pytest.raises(BadCalibration, match="too few"):
        held_out_of([0] * images, 0.5)
