"""What all processes of a service are made from. Nothing of HTTP is imported here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from service.engine.board import Board
from service.engine.shared import Geometry
from service.errors import RepositoryError
from service.model.directory import ModelDirectory
from service.model.loading import graphs_of, input_shape
from service.settings import Settings
from service.telemetry.logs import configure_logging
from service.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Plan:
    """What all processes of a service are made from."""

    settings: Settings
    model: ModelDirectory
    devices: tuple[str, ...]
    """One for each engine."""
    buckets: tuple[int, ...]
    metrics_directory: Path

    @property
    def geometry(self) -> Geometry:
        """The shape of each worker's memory; raises RepositoryError for a model that has none."""
        try:
            return Geometry(
                slots=self.settings.slots_of_a_worker,
                input_shape=input_shape(self.model.manifest),
                graphs=graphs_of(self.model, self.settings, buckets=self.buckets),
            )
        except ValueError as error:
            raise RepositoryError(f"{self.model.path} cannot be served by several processes: {error}") from error

    def metrics(self) -> Metrics:
        """Return a process's part of the metrics."""
        return Metrics(buckets=self.buckets, directory=self.metrics_directory)

    def board(self, descriptor: int) -> Board:
        """Return the board that all processes share."""
        board = Board(workers=self.settings.workers, engines=len(self.devices), descriptor=descriptor)
        os.close(descriptor)
        return board

    def configure_logging(self, process: str) -> None:
        """Send this process's log lines where all go, under its name."""
        configure_logging(level=self.settings.log_level, form=self.settings.log_format, process=process)
