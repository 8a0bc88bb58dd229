"""What another way to prepare the same images does to a model's answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.evaluation.tally import TOP, Tally
from service.model.postprocess import top_k


class ScoreDifference(NamedTuple):
    """How far a class's score is from the one that it had, of an image."""

    difference: float
    class_id: int
    image: str


@dataclass(slots=True)
class Comparison:
    """The other way's own tally, and what differs from the first's; images that cannot be used differ in nothing."""

    resize: str
    """The other way's name."""
    tally: Tally = field(default_factory=Tally)
    moved: int = 0
    """Images whose pixels are other ones."""
    changed: int = 0
    """Images of which another class comes first."""
    righted: int = 0
    """Those of them whose first class became the right one."""
    wronged: int = 0
    """Those of them whose first class was the right one."""
    largest: ScoreDifference | None = None
    """In any class of any image; None until one has moved."""

    def add_unusable(self, class_id: int) -> None:
        """Count an image of a class that cannot be used."""
        self.tally.add(class_id, [])

    def add(self, image: str, class_id: int, first: NDArray[np.float64], other: NDArray[np.float64] | None) -> None:
        """Count an image of a class, given the scores (classes,) by both ways; `other` is None for the same pixels."""
        ranked = [each for each, _ in top_k(first if other is None else other, TOP)]
        self.tally.add(class_id, ranked)
        if other is None:
            return
        self.moved += 1
        ((before, _),) = top_k(first, 1)
        if ranked[0] != before:
            self.changed += 1
            self.righted += ranked[0] == class_id
            self.wronged += before == class_id
        differences = np.abs(other - first)
        worst = int(differences.argmax())
        if self.largest is None or differences[worst] > self.largest.difference:
            self.largest = ScoreDifference(float(differences[worst]), worst, image)
