"""What every route works with: the parts of one application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.access.key_limits import KeyLimits
from service.engine.client import EngineClient
from service.engine.types import EngineState
from service.errors import NotReady, UnknownModel
from service.http.bodies.uploads import Limits
from service.http.in_flight import InFlight
from service.images.pool import DecodePool
from service.images.preprocessing import Preprocessing
from service.model.directory import ModelDirectory
from service.model.manifest import ExplainRecord
from service.settings import Settings
from service.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of one application, made in `service.http.app` and shared by its routes."""

    settings: Settings
    model: ModelDirectory
    engine: EngineClient
    metrics: Metrics
    preprocessing: Preprocessing
    decode_pool: DecodePool
    inference_routes: frozenset[str]
    """Paths of the routes that run the model."""
    body_limits: Limits
    key_limits: KeyLimits
    in_flight: InFlight

    @property
    def explain(self) -> ExplainRecord | None:
        """What the model can say of where it looked; None where it cannot, or the settings do not want it to."""
        return self.model.manifest.explain if self.settings.explain else None

    def check_model(self, name: str | None, version: str | None = None) -> None:
        """Raise UnknownModel unless `name` and `version` are the served model's, or None."""
        served = self.model.manifest
        if name is not None and name != served.name:
            raise UnknownModel(f"There is no model {name!r} here; {served.name!r} is served.")
        if version is not None and version != str(served.version):
            raise UnknownModel(f"There is no version {version!r} of {served.name!r} here; {served.version} is served.")

    def check_ready(self) -> None:
        """Raise NotReady while the engine loads, hangs, fails on every batch or is dead."""
        if self.engine.healthy:
            return
        if self.engine.state is EngineState.READY:
            raise NotReady("The engine hangs, or fails on every batch.")
        raise NotReady(f"The engine is {self.engine.state.value}.")


def service_of(request: Request) -> Service:
    """Return the application's parts."""
    service: Service = request.app.state.service
    return service


async def _service(request: Request) -> Service:
    return service_of(request)  # FastAPI would call a function that is not async in a thread


ServiceDependency = Annotated[Service, Depends(_service)]
