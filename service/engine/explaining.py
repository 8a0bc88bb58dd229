"""A model and the graph that says where it looked, as one session on one device."""

from __future__ import annotations

from service.engine.types import Outputs, Pixels, StagingSession


class ModelWithExplain:
    """Two sessions of the same images; which of them runs is told by the outputs. Fulfils ExplainingSession.

    A run is of one graph: its outputs are all the model's or all the other's.
    """

    def __init__(self, model: StagingSession, explain: StagingSession) -> None:
        self._model = model
        self._explain = explain
        self._explain_names = explain.output_names

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and 3."""
        return self._model.input_shape

    @property
    def output_names(self) -> tuple[str, ...]:
        """Every output of the model's own graph."""
        return self._model.output_names

    @property
    def explain_names(self) -> tuple[str, ...]:
        """Every output of the other graph."""
        return self._explain_names

    def staging(self, images: int) -> Pixels:
        """Return memory that both read fastest from: uint8 (images, height, width, 3)."""
        return self._model.staging(images)

    def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
        """Run the graph that the outputs are of; as `Session.run`."""
        session = self._explain if outputs[0] in self._explain_names else self._model
        return session.run(images, outputs)
