"""What every call works with, whatever carries it: the parts of one process that answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from service.access.key_limits import KeyLimits
from service.calls.context import RequestContext
from service.calls.in_flight import InFlight
from service.errors import NotReady, UnknownModel
from service.images.pool import DecodePool
from service.samples.sampler import Sampler
from service.serving.control import ModelControl
from service.serving.served import Served, ServedModels
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracer


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts, made with the application and shared by all that carries calls to it."""

    settings: Settings
    """What holds for all models; what is of one is in the settings of its `Served`."""
    models: ServedModels
    control: ModelControl | None
    """What loads and unloads models; None where the settings do not allow that."""
    metrics: Metrics
    decode_pool: DecodePool
    inference_routes: frozenset[str]
    """Paths of the routes that run a model, of every transport."""
    key_limits: KeyLimits
    in_flight: InFlight
    tracer: Tracer | None = None
    sampler: Sampler | None = None
    """What keeps a sample of the answers, where the settings ask for one."""
    started: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when every model of the start takes work."""

    def resolve(self, context: RequestContext, name: str | None = None, version: str | None = None) -> Served:
        """Return what answers a request to its end, whatever is loaded meanwhile; once for a request.

        It is the default model where none is named, and its default version where none is. Raises UnknownModel where it
        is not there or not loaded, and NotReady where it is on its way.
        """
        served = self.models.resolve(name, version)
        context.keep(served)
        return served

    def check_ready(self) -> None:
        """Raise NotReady until all models of the start take work, and while one hangs, fails on every batch or is dead.

        A model that is loaded later counts once it takes work; one that could not be replaced is as ready as before.
        """
        if not self.started.is_set():
            raise NotReady("The service is loading what it is to serve.")
        for status in self.models.statuses:
            if status.is_default:
                self.check_model_ready(status.name)

    def check_model_ready(self, name: str, version: str | None = None) -> None:
        """Raise NotReady, with the reason, unless a model or a version takes work; UnknownModel where there is none."""
        try:
            served = self.models.resolve(name, version)
        except UnknownModel as error:
            if any(version in (None, str(status.version)) for status in self.models.statuses_of(name)):
                raise NotReady(str(error)) from None
            raise
        try:
            served.check_ready()
        except NotReady as error:
            raise NotReady(f"{name}: {error}") from None
