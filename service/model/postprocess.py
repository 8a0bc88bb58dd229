"""From the model's outputs to what an answer holds; pure functions on NumPy arrays."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from service.errors import InferenceFailed


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probabilities (..., classes) of logits (..., classes), computed in float64 without overflow.

    Raises InferenceFailed where a logit is not a finite number: no probability could be honest then.
    """
    wide = np.array(logits, dtype=np.float64)
    if not math.isfinite(wide.sum()):  # the sum of float32 or narrower numbers cannot overflow a float64
        raise InferenceFailed("The model's answer holds values that are not finite numbers.")
    wide -= wide.max(axis=-1, keepdims=True)
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


def l2_normalized(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return vectors (..., channels) scaled to length 1 over the last axis; a zero vector stays as it is."""
    wide = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(wide, axis=-1, keepdims=True)
    return (wide / np.where(lengths == 0.0, 1.0, lengths)).astype(np.float32)
