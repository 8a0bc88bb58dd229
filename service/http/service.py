"""What every route works with, and the one question that comes before all others: may the caller ask?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.access.key_limits import KeyLimits
from service.access.keys import find_key
from service.engine.client import EngineClient
from service.engine.types import EngineState
from service.errors import NotReady, UnknownModel
from service.http.in_flight import InFlight
from service.http.middleware import context_of
from service.images.pool import DecodePool
from service.images.preprocessing import Preprocessing
from service.model.directory import ExplainRecord, ModelDirectory
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


def authorize(request: Request, service: Service) -> None:
    """Let a request pass where no API keys are configured, or it bears one that may ask now; once, before its body.

    From here to the request's end it counts among the key's. Raises Unauthorized, RateLimited or ConcurrencyLimited.
    """
    keys = service.settings.api_keys
    if not keys:
        return
    place = find_key(keys, request.headers.get("authorization", ""))
    context = context_of(request)
    context.key = keys[place].name
    context.at_end = service.key_limits.begin(place)


async def authorized(request: Request, service: ServiceDependency) -> None:
    """Authorize as a dependency."""
    authorize(request, service)


def set_deadline(request: Request, service: Service, timeout_ms: float | None) -> None:
    """Have a request answered within a time from its arrival; the service's own where that, or an earlier, is less."""
    context = context_of(request)
    longest_ms = service.settings.timeout_ms
    context.work.due_by(context.started_s + min(timeout_ms or longest_ms, longest_ms) / 1000)
