"""What the processes of a service are made from, and what they serve. Nothing of HTTP is imported here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from service.engine.board import Board
from service.engine.shared import Geometry
from service.errors import RepositoryError
from service.model.directory import ModelDirectory
from service.model.loading import graphs_of, input_shape
from service.serving.states import VersionStatus
from service.settings import Settings
from service.telemetry.logs import configure_logging
from service.telemetry.metrics import LoadOutcome, Metrics


@dataclass(frozen=True, slots=True)
class Plan:
    """What all processes of a service are made from."""

    settings: Settings
    default_model: str
    """The model that is asked where a request names none."""
    metrics_directory: Path
    grpc_address: str | None = None
    """Where every worker listens for gRPC; the supervisor has reserved the port."""

    def metrics(self) -> Metrics:
        """Return a process's part of the metrics."""
        return Metrics(directory=self.metrics_directory)

    def configure_logging(self, process: str) -> None:
        """Send this process's log lines where all go, under its name."""
        configure_logging(level=self.settings.log_level, form=self.settings.log_format, process=process)


@dataclass(frozen=True, slots=True)
class VersionPlan:
    """What a version of a model is to every process that serves it."""

    model: ModelDirectory
    settings: Settings
    """The service's, with the model's own over them."""
    devices: tuple[str, ...]
    """One for each of its engines, in the order of their rows on its board."""
    engines: tuple[int, ...]
    """The numbers of the processes that these are in."""

    @property
    def buckets(self) -> tuple[int, ...]:
        """The batch sizes that all of its engines run, whichever device they are on."""
        return self.settings.buckets_for(self.devices[0])

    @property
    def threads(self) -> int:
        """Threads of one run: engines on the CPU share the cores out among them, unless a number was asked for."""
        engines = len(self.devices)
        return self.settings.threads or (max((os.cpu_count() or 1) // engines, 1) if engines > 1 else 0)

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

    def create_board(self) -> tuple[Board, int]:
        """Return a new board for the version's engines and all workers, and its descriptor."""
        return Board.create(workers=self.settings.workers, engines=len(self.engines))

    def board(self, descriptor: int) -> Board:
        """Return the board that all processes share; takes over its descriptor."""
        board = Board(workers=self.settings.workers, engines=len(self.engines), descriptor=descriptor)
        os.close(descriptor)
        return board


# What passes between the supervisor and its workers, beside the messages of `engine.control`.


@dataclass(frozen=True, slots=True)
class Publish:
    """To a worker: give requests to the versions of these serials alone; answered by Published."""

    revision: int
    statuses: tuple[VersionStatus, ...]
    serials: tuple[int, ...]
    is_started: bool
    """Whether all that was to be served from the start takes work."""


@dataclass(frozen=True, slots=True)
class Published:
    """From a worker: no request that comes from now on is given to a version that the revision does not name."""

    revision: int


@dataclass(frozen=True, slots=True)
class Processes:
    """To a worker: which processes there are now, by their names."""

    pids: dict[str, int]


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """To a worker: count how a load ended."""

    model: str
    outcome: LoadOutcome
    duration_s: float


@dataclass(frozen=True, slots=True)
class Restarted:
    """To a worker: count that a process was started again."""

    name: str


@dataclass(frozen=True, slots=True)
class Change:
    """From a worker: load or unload a model; answered by Changed."""

    number: int
    action: str
    name: str


@dataclass(frozen=True, slots=True)
class Changed:
    """To a worker: what it asked for is done, or why it is not: the error to raise."""

    number: int
    error: Exception | None
