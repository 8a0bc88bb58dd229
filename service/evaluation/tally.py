"""Counting what a model gets right, and how sure that makes one of its accuracy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

TOP = 5
_Z95 = 1.959963984540054
"""The normal distribution's 97.5th percentile."""


@dataclass(slots=True)
class Score:
    """Images, and how many of them were right at the first and among the first five."""

    images: int = 0
    top1: int = 0
    top5: int = 0


@dataclass(slots=True)
class Tally:
    """What became of all images so far. One that cannot be used is wrong, but confused with nothing."""

    all: Score = field(default_factory=Score)
    by_class: dict[int, Score] = field(default_factory=dict)
    confusions: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Images by (their class, the class that was put first in its place)."""

    def add(self, class_id: int, ranked: Sequence[int]) -> None:
        """Count an image of a class, given the classes put first, or none for an image that cannot be used."""
        for score in (self.all, self.by_class.setdefault(class_id, Score())):
            score.images += 1
            score.top1 += ranked[:1] == [class_id]
            score.top5 += class_id in ranked[:TOP]
        if ranked and ranked[0] != class_id:
            self.confusions[class_id, ranked[0]] += 1

    def most_confused(self, count: int) -> list[tuple[tuple[int, int], int]]:
        """Return the most frequent confusions with their numbers, most first, equal ones by class."""
        return sorted(self.confusions.items(), key=lambda item: (-item[1], item[0]))[:count]


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a probability, by Wilson's score; (0, 1) without a trial.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, _Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    # At either end the exact interval touches it, which rounding would miss by a hair.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high
