"""The door to tracing: what a tracer is to the rest of the service, and how one is had.

Knows nothing of OpenTelemetry: the packages of `telemetry.opentelemetry` are an optional extra, and are imported only
where the setting asks for them.
"""

from __future__ import annotations

from types import ModuleType
from typing import Protocol

from starlette.types import Scope

from service.errors import SettingsError
from service.settings import Settings, option_of
from service.telemetry.stages import Stages


class Tracer(Protocol):
    """Makes the traces of requests; belongs to one event loop."""

    def record(
        self,
        scope: Scope,
        stages: Stages,
        *,
        route: str | None,
        status: int | None,
        code: str,
        ended_s: float,
        model: tuple[str, str] | None = None,
    ) -> None:
        """Make the trace of a request that ended at `ended_s`, on time.monotonic.

        `route` is its path's template, None where it took no route; `status` is None where no answer began; `model` is
        the name and version that it came to, None where it came to none.
        """
        ...

    async def shutdown(self) -> None:
        """Send all that was not yet sent, and end."""
        ...


def load_tracer(settings: Settings) -> Tracer | None:
    """Return what traces go to, None where they are off; raises SettingsError where its packages are absent."""
    tracing = require_tracing(settings)
    if tracing is None:
        return None
    tracer: Tracer = tracing.exporting_tracer()
    return tracer


def require_tracing(settings: Settings) -> ModuleType | None:
    """Return what makes traces, None where they are off; raises SettingsError where its packages are absent."""
    if not settings.tracing:
        return None
    try:
        import service.telemetry.opentelemetry as opentelemetry
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{option_of('tracing')}: {error.name} is not installed; requirements/tracing.txt has what traces need"
        ) from error
    return opentelemetry
