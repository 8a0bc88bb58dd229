"""From the model's outputs to what an answer holds; pure functions on NumPy arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import InferenceFailed


@dataclass(frozen=True, slots=True)
class Choice:
    """Which predictions an answer names."""

    top_k: int | None = None
    """How many at most; None for the default of whoever answers, or for every one of `classes`."""
    min_score: float = 0.0
    """The least score: those below are left out, which may leave none."""
    classes: tuple[int, ...] | None = None
    """The only classes to name, ascending; None for any. Scores stay those among all classes."""

    def or_top_k(self, default: int) -> Choice:
        """Return the choice of at most so many predictions where it does not say how many."""
        if self.top_k is not None or self.classes is not None:
            return self
        return Choice(default, self.min_score, self.classes)


BEST = Choice()
"""The most likely classes, as many as whoever answers has set."""


def softmax(logits: NDArray[np.float32], temperature: float | None = None) -> NDArray[np.float64]:
    """Return the probabilities (..., classes) of logits (..., classes), computed in float64 without overflow.

    They are those of the logits over the temperature, where one is given. Raises InferenceFailed where a logit is not a
    finite number: no probability could be honest then.
    """
    wide = np.array(logits, dtype=np.float64)
    if not math.isfinite(wide.sum()):  # the sum of float32 or narrower numbers cannot overflow a float64
        raise InferenceFailed("The model's answer holds values that are not finite numbers.")
    wide -= wide.max(axis=-1, keepdims=True)
    if temperature is not None:
        wide /= temperature
    np.exp(wide, out=wide)
    wide /= wide.sum(axis=-1, keepdims=True)
    return wide


def top_k(scores: NDArray[np.floating], k: int) -> list[tuple[int, float]]:
    """Return (class, score) of the `k` highest of scores (classes,), highest first, equal ones by class.

    A `k` above the number of classes gives them all.
    """
    if k >= len(scores):
        candidates = np.arange(len(scores))
    else:
        least = np.partition(scores, -k)[-k]
        candidates = np.flatnonzero(scores >= least)
    ranked = sorted(zip((-scores[candidates]).tolist(), candidates.tolist(), strict=True))
    return [(class_id, -negated) for negated, class_id in ranked[:k]]


def best_classes(scores: NDArray[np.floating], choice: Choice) -> list[tuple[int, float]]:
    """Return (class, score) of the classes that a choice names of scores (classes,), as `top_k` does."""
    if choice.classes is None:
        best = top_k(scores, len(scores) if choice.top_k is None else choice.top_k)
    else:
        chosen = top_k(scores[list(choice.classes)], choice.top_k or len(choice.classes))
        best = [(choice.classes[place], score) for place, score in chosen]
    return [each for each in best if each[1] >= choice.min_score] if choice.min_score else best


def l2_normalized(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return vectors (..., channels) scaled to length 1 over the last axis; a zero vector stays as it is."""
    wide = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(wide, axis=-1, keepdims=True)
    return (wide / np.where(lengths == 0.0, 1.0, lengths)).astype(np.float32)
