"""scikit-learn's bundled handwritten digits, split for good into what the demo model sees and what it never does.

The images are 8 x 8 with 17 grey levels, light strokes on dark; source: UCI "Optical Recognition of Handwritten
Digits". The held-out fifth is drawn once, by class and by a fixed seed, so that every test asks about the same images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLIT_SEED = 2022
HELD_OUT_FRACTION = 0.2


class Digits(NamedTuple):
    """Images, uint8 (count, 8, 8) from 0 to 255, and their classes, int64 (count,)."""

    images: NDArray[np.uint8]
    classes: NDArray[np.int64]


def training_and_held_out() -> tuple[Digits, Digits]:
    """Return the four fifths to train on and the fifth to test on."""
    images, classes = load_digits(return_X_y=True)
    levels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    seen, unseen, seen_classes, unseen_classes = train_test_split(
        levels, classes.astype(np.int64), test_size=HELD_OUT_FRACTION, random_state=SPLIT_SEED, stratify=classes
    )
    return Digits(seen, seen_classes), Digits(unseen, unseen_classes)
