"""What a request notes of its way for its trace, and the door to tracing; knows nothing of OpenTelemetry.

The packages of `service.telemetry.tracing` are an optional extra, and are imported only where the setting asks for
them. A request that is not traced has no `Stages`, and pays for that with one comparison a stage.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.engine.types import Answer
from service.errors import SettingsError
from service.images.preprocessing import ImageTimings
from service.settings import Settings, option_of

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracer


@dataclass(slots=True)
class Stages:
    """When a request's images passed which stage, as far as they came; times on time.monotonic."""

    decoding: Collection[ImageTimings] = ()
    answers: Collection[Answer] = ()
    postprocessed_s: tuple[float, float] | None = None
    """From when to when the answer was made."""


def load_tracer(settings: Settings) -> Tracer | None:
    """Return what traces go to, None where they are off; raises SettingsError where its packages are absent."""
    if not settings.tracing:
        return None
    require_tracing(settings)
    from service.telemetry.tracing import exporting_tracer

    return exporting_tracer()


def require_tracing(settings: Settings) -> None:
    """Raise SettingsError where traces are asked for and their packages are absent."""
    if not settings.tracing:
        return
    try:
        import service.telemetry.tracing  # noqa: F401
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{option_of('tracing')}: {error.name} is not installed; requirements/tracing.txt has what traces need"
        ) from error
