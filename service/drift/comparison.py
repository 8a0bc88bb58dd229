"""Two times' answers beside each other: what has changed, by how much, and whether that counts as drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.drift.measures import Measured, kolmogorov_smirnov, mean_discrepancy, population_stability
from service.drift.reading import Answers

_FEWEST = 2
"""Images of each time without which nothing can be said."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What counts as drift: more than these, with a smaller probability than `significance` that chance made it."""

    psi: float = 0.2
    ks: float = 0.1
    mmd: float = 0.1
    significance: float = 0.01


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison."""

    name: str
    """`labels`, `scores` or `embeddings`."""
    statistic: str
    value: float
    limit: float
    p_value: float
    is_drift: bool


@dataclass(frozen=True, slots=True)
class ClassShares:
    """A class, and which share of the images it was put first for, at both times."""

    class_id: int
    label: str
    reference: float
    current: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that was compared; what neither time has enough of is not among the findings."""

    reference: Answers
    current: Answers
    findings: Sequence[Finding]
    classes: Sequence[ClassShares]
    """Every class that was put first at either time; those whose shares changed most come first."""

    @property
    def is_drift(self) -> bool:
        """Whether anything counts as drift."""
        return any(finding.is_drift for finding in self.findings)


def compare(reference: Answers, current: Answers, limits: Limits, rng: np.random.Generator) -> Comparison:
    """Compare the answers of two times."""
    findings: list[Finding] = []

    def found(name: str, statistic: str, measured: Measured, limit: float) -> None:
        is_drift = measured.value > limit and measured.p_value < limits.significance
        findings.append(Finding(name, statistic, measured.value, limit, measured.p_value, is_drift))

    if min(reference.classified, current.classified) >= _FEWEST:
        class_ids = sorted(reference.classes | current.classes)
        before, now = (np.array([each.classes[id_] for id_ in class_ids], np.int64) for each in (reference, current))
        found("labels", "population stability index", population_stability(before, now, rng), limits.psi)
        found("scores", "Kolmogorov-Smirnov", kolmogorov_smirnov(reference.scores, current.scores), limits.ks)
    if (
        reference.vectors is not None
        and current.vectors is not None
        and reference.vectors.shape[1] == current.vectors.shape[1]
        and min(len(reference.vectors), len(current.vectors)) >= _FEWEST
    ):
        measured = mean_discrepancy(reference.vectors, current.vectors, rng)
        found("embeddings", "maximum mean discrepancy", measured, limits.mmd)
    return Comparison(reference, current, findings, _shares(reference, current))


def _shares(reference: Answers, current: Answers) -> list[ClassShares]:
    labels = reference.labels | current.labels
    shares = [
        ClassShares(
            class_id,
            label,
            reference.classes[class_id] / max(reference.classified, 1),
            current.classes[class_id] / max(current.classified, 1),
        )
        for class_id, label in labels.items()
    ]
    return sorted(shares, key=lambda each: (-abs(each.current - each.reference), each.class_id))
