"""How likely a model's scores are to be right, and the temperature that makes them so.

A score is calibrated where, of the images that are classified with a score of 0.8, four fifths are right. Dividing the
logits by one number, the temperature, before softmax brings scores near to that, and changes the order of no image's
classes. It is the number for which the negative log-likelihood of the true classes is least.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, On calibration of modern neural networks, ICML (2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import StartupError
from service.model.manifest import MAX_TEMPERATURE, MIN_TEMPERATURE
from service.model.postprocess import softmax

BINS = 15
"""Of equal width, as published errors have them."""
_BLOCK_IMAGES = 1024
_MOST_STEPS = 200
_PRECISION = 1e-7
"""Of the temperature, relative."""
_SEED = 0


class BadCalibration(StartupError):
    """The images do not tell what the temperature should be."""

    code = "bad_calibration"


@dataclass(frozen=True, slots=True)
class Bin:
    """The images whose highest score is above `lower` and at most `upper`."""

    lower: float
    upper: float
    images: int
    confidence: float | None
    """Mean of their highest scores; None without an image."""
    accuracy: float | None
    """Share of them whose highest class is right; None without an image."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """How likely scores are, on some images."""

    images: int
    accuracy: float
    nll: float
    """Mean negative log-likelihood of the true classes, in nats."""
    ece: float
    """Expected calibration error: the mean difference between confidence and accuracy of the bins, by images."""
    bins: tuple[Bin, ...]


def held_out_of(classes: Sequence[int], share: float) -> NDArray[np.bool_]:
    """Return which images, given by their classes, are held out: that share of them, and of each class.

    The same images give the same parts every time. Raises BadCalibration where a part would be empty.
    """
    shuffled = np.random.default_rng(_SEED).permutation(len(classes)).tolist()
    order = sorted(shuffled, key=lambda place: classes[place])
    held_out = np.zeros(len(classes), bool)
    for number, place in enumerate(order):
        held_out[place] = math.floor((number + 1) * share) > math.floor(number * share)
    if held_out.all() or not held_out.any():
        raise BadCalibration(f"{len(classes)} images are too few to fit a temperature on some and try it on others")
    return held_out


def fitted_temperature(logits: NDArray[np.float32], classes: NDArray[np.int64]) -> float:
    """Return the temperature for which images (images, classes) of known classes (images,) are most likely.

    Raises BadCalibration where that is beyond what a manifest may say: where nearly all images are right, or the scores
    tell nothing of them.
    """
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE  # the likelihood is convex in the inverse of the temperature
    if _slopes(logits, classes, low)[0] >= 0:
        raise BadCalibration("no temperature fits: the scores of these images say nothing of their classes")
    if _slopes(logits, classes, high)[0] <= 0:
        raise BadCalibration(
            "no temperature fits: nearly all of these images are right; more and harder ones are wanted"
        )
    inverse = 1.0
    for _ in range(_MOST_STEPS):
        slope, curvature = _slopes(logits, classes, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else math.inf
        before, inverse = inverse, step if low < step < high else math.sqrt(low * high)
        if abs(inverse - before) <= _PRECISION * before:
            break
    return 1 / inverse


def reliability(logits: NDArray[np.float32], classes: NDArray[np.int64], temperature: float | None) -> Reliability:
    """Return how likely scores are of images with these logits (images, classes), over a temperature.

    Raises InferenceFailed where a logit is not finite.
    """
    images = len(classes)
    confidence, right = np.empty(images), np.empty(images, bool)
    nll = 0.0
    for block in _blocks(images):
        scores = softmax(logits[block], temperature)
        best = scores.argmax(axis=1)
        confidence[block] = scores[np.arange(len(best)), best]
        right[block] = best == classes[block]
        nll += float(_log_likelihood(logits[block], classes[block], 1 / (temperature or 1.0)).sum())
    bins = _bins(confidence, right)
    gaps = [
        each.images * abs(each.confidence - each.accuracy)
        for each in bins
        if each.confidence is not None and each.accuracy is not None
    ]
    ece = sum(gaps) / images
    return Reliability(images, float(right.mean()), -nll / images, ece, bins)


def _bins(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    places = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for place in range(BINS):
        inside = places == place
        images = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if images else (None, None)
        bins.append(Bin(place / BINS, (place + 1) / BINS, images, *means))
    return tuple(bins)


def _log_likelihood(logits: NDArray[np.float32], classes: NDArray[np.int64], inverse: float) -> NDArray[np.float64]:
    """Return the log-likelihood of each image's class, without the underflow that the logarithm of a score has."""
    scaled = _scaled(logits, inverse)
    return scaled[np.arange(len(classes)), classes] - np.log(np.exp(scaled).sum(axis=1))  # type: ignore[no-any-return]


def _slopes(logits: NDArray[np.float32], classes: NDArray[np.int64], inverse: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean negative log-likelihood by the temperature's inverse.

    They are the mean of the logits under the model's probabilities less the true class's logit, and their variance.
    """
    slope = curvature = 0.0
    for block in _blocks(len(classes)):
        relative = _scaled(logits[block], 1.0)
        scores = softmax(logits[block], 1 / inverse)
        mean = (scores * relative).sum(axis=1)
        slope += float((mean - relative[np.arange(len(mean)), classes[block]]).sum())
        curvature += float((scores * (relative - mean[:, None]) ** 2).sum())
    return slope / len(classes), curvature / len(classes)


def _scaled(logits: NDArray[np.float32], inverse: float) -> NDArray[np.float64]:
    """Return logits less each image's highest, times the temperature's inverse."""
    wide = logits.astype(np.float64)
    return (wide - wide.max(axis=1, keepdims=True)) * inverse  # type: ignore[no-any-return]


def _blocks(images: int) -> Iterator[slice]:
    """Yield parts of so many images, of which each takes little memory in float64."""
    for begin in range(0, images, _BLOCK_IMAGES):
        yield slice(begin, min(begin + _BLOCK_IMAGES, images))
