"""What a predictor takes and gives. Knows nothing of HTTP, and of the engine only what its outputs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.engine.types import Outputs
from service.errors import ImageFault, StartupError
from service.model.directory import Label
from service.model.postprocess import BEST, Choice, best_classes, softmax

Fault: TypeAlias = ImageFault
"""Why one image has no answer; other images are not affected."""


class Prediction(NamedTuple):
    """One class of an image; `score` is its softmax probability."""

    class_id: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class PredictorModel:
    """The model that answers."""

    name: str
    version: int
    labels: tuple[Label, ...]
    outputs: Mapping[str, tuple[int | None, ...]]
    """Every output that can be asked for, with its shape for one image; None where a server leaves that open."""
    class_output: str
    """The one of them whose values are one a class."""
    precision: str
    created: str
    """When it was exported, ISO 8601, UTC."""
    weights_sha256: str
    resize: str = "exact"
    """How images get its size, as the setting says; those that do not tell, do it exactly."""
    temperature: float | None = None
    """What its class output is divided by before softmax; None for nothing."""


class PredictorFailed(StartupError):
    """No image can be answered any more: the server or the engine is gone, or refuses what is asked of it."""

    code = "predictor_failed"


Ranking: TypeAlias = Sequence[Prediction]


@dataclass(frozen=True, slots=True)
class ScoresByBoth:
    """An image's scores (classes,), by the exact resize and by the fast one."""

    exact: NDArray[np.float64]
    fast: NDArray[np.float64] | None
    """None where the fast resize gives the same pixels."""


def ranked(outputs: Outputs, model: PredictorModel, choice: Choice) -> Ranking:
    """Return the predictions of a choice by the class output among `outputs`; raises InferenceFailed."""
    best = best_classes(softmax(outputs[model.class_output], model.temperature), choice)
    return [Prediction(class_id, model.labels[class_id].name, score) for class_id, score in best]


class Predictor(Protocol):
    """Answers about encoded images, many at a time; used on the event loop that opened it.

    Both questions give a Fault for an image that cannot be answered, whoever is to blame, and raise PredictorFailed
    where no other could be answered either. They may be cancelled.
    """

    @property
    def model(self) -> PredictorModel:
        """The model that answers."""
        ...

    @property
    def concurrency(self) -> int:
        """How many images should be under way at once to keep the model busy."""
        ...

    async def confirm(self) -> None:
        """Raise PredictorFailed unless the model is still the one that `model` says.

        Answers that were had before are then all of that model.
        """
        ...

    async def classify(self, image: bytes, choice: Choice = BEST) -> Ranking | Fault:
        """Return the predictions of a choice for one image file, highest first.

        Where the choice does not say how many, the setting of whoever answers does.
        """
        ...

    async def features(self, image: bytes, outputs: Sequence[str]) -> Outputs | Fault:
        """Return outputs of the model for one image file, by name: float32, without a batch axis."""
        ...
