"""How sure a version of a model is of its answers, and of which classes: counted for many images at once.

What is counted needs no labels of the truth: a model that meets other images than it was made for mostly shows it in
lower scores, higher entropies and other shares of its classes. Classes are counted only where the settings want them,
since whoever reads the metrics then learns what images are of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.telemetry.series import Predictions

OTHER = "other"
"""The `class_id` of all classes without a series of their own."""
_AT_ONCE_VALUES = 32_000
"""Logits that are worked on at once: of more, each array would be memory that is new, which costs twice as much."""


class Certainty(NamedTuple):
    """What some images' logits say, an entry each."""

    classes: NDArray[np.intp]
    """The class that was put first."""
    scores: NDArray[np.float32]
    """Its softmax probability."""
    entropies: NDArray[np.float32]
    """Entropy of all probabilities, divided by its maximum, the logarithm of the number of classes: from 0 to 1."""


def certainty_of(logits: NDArray[np.float32], temperature: float | None = None) -> Certainty:
    """Return what logits (images, classes) say, over the temperature where the model has one.

    Without the images that have one that is no finite number.

    With z = x - max(x), the entropy is log(sum(exp(z))) - sum(z exp(z)) / sum(exp(z)). In float32, which buckets do
    not tell from float64.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        below = logits - logits.max(axis=1, keepdims=True)
        if temperature is not None:
            below /= temperature
        weights = np.exp(below)
        total = weights.sum(axis=1)
        entropies = np.log(total) - np.einsum("ij,ij->i", weights, below) / total
    entropies = np.maximum(entropies, 0.0) / (math.log(logits.shape[1]) or 1.0)  # of one class it is 0
    certainty = Certainty(logits.argmax(axis=1), np.reciprocal(total), entropies)
    good = np.isfinite(entropies)
    return certainty if good.all() else Certainty(*(each[good] for each in certainty))


class PredictionSeries:
    """The series of one version's predictions.

    Of its classes, `class_names` by their ids, the first `most_classes` that are predicted in this process have a
    series each, of those that are first predicted together the most frequent; all others are counted as OTHER.
    """

    def __init__(
        self,
        predictions: Predictions,
        labels: tuple[str, str],
        *,
        class_names: Sequence[str],
        most_classes: int,
        temperature: float | None,
    ) -> None:
        self._score = predictions.score.metric.labels(*labels)
        self._entropy = predictions.entropy.metric.labels(*labels)
        self._classes = predictions.classes.under(*labels)
        self._names = class_names
        self._most = most_classes
        self._temperature = temperature
        self._own: set[int] = set()

    def count(self, logits: Sequence[NDArray[np.float32]]) -> None:
        """Count images by their logits (classes,); one thread at a time."""
        step = max(_AT_ONCE_VALUES // logits[0].size, 1)
        for begin in range(0, len(logits), step):
            images = logits[begin : begin + step]
            self._count(certainty_of(np.concatenate(images).reshape(len(images), -1), self._temperature))

    def _count(self, found: Certainty) -> None:
        self._score.observe_all(found.scores.tolist())
        self._entropy.observe_all(found.entropies.tolist())
        if self._most:
            self._count_classes(found.classes.tolist())

    def _count_classes(self, classes: Sequence[int]) -> None:
        for class_id, images in Counter(classes).most_common():
            if class_id not in self._own and len(self._own) < self._most:
                self._own.add(class_id)
            if class_id in self._own:
                self._classes.of(str(class_id), self._names[class_id]).inc(images)
            else:
                self._classes.of(OTHER, "").inc(images)
