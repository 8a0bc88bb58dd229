"""What an engine process is: the engines of all versions on one device, run for all workers.

Nothing of HTTP is imported here: an engine that was lost is back the sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from service.engine.board import engine_name
from service.engine.control import ControlSocket
from service.engine.device_turns import DeviceTurns
from service.engine.linked import LinkedEngine
from service.engine.process import EngineProcess
from service.model.loading import SessionLoader
from service.processes.plan import Plan, VersionPlan
from service.telemetry.metrics import Metrics


def run_engine(control: ControlSocket, descriptors: Sequence[int], plan: Plan, number: int) -> int:  # noqa: ARG001
    """Be engine process `number`."""
    plan.configure_logging(engine_name(number))
    return EngineProcess(_Engines(number, plan.metrics()), control=control).run()


class _Engines:
    """Makes the engines of versions; they take turns on the one device that they share."""

    def __init__(self, number: int, metrics: Metrics) -> None:
        self._number = number
        self._metrics = metrics
        self._turns = DeviceTurns()

    def __call__(
        self,
        plan: VersionPlan,
        board: int,
        *,
        on_loaded: Callable[[Any], object],
        on_failed: Callable[[str], object],
        on_end: Callable[[BaseException | None], object],
    ) -> LinkedEngine:
        """Return the engine of a version; see `engine.process.MakeEngine`."""
        place = plan.engines.index(self._number)
        manifest, settings, device = plan.model.manifest, plan.settings, plan.devices[place]
        loader = SessionLoader(plan.model, device=device, settings=settings, threads=plan.threads)
        return LinkedEngine(
            loader,
            row=plan.board(board).engines[place],
            geometry=plan.geometry,
            contender=self._turns.join(),
            on_loaded=lambda: on_loaded(loader.facts),
            on_failed=on_failed,
            on_end=on_end,
            max_delay_s=settings.max_delay_ms / 1000,
            observer=self._metrics.of_model(manifest.name, manifest.version),
        )
