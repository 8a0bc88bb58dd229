"""What answers of several inference calls have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request

from service.errors import ImageFault
from service.middleware import context_of
from service.routes.context import Service
from service.routes.inference import Inferred
from service.schemas import Fault, Timings

JSON = "application/json"
LARGE_BYTES = 64 * 1024
"""An answer from about this size on is made in a thread, so that the event loop goes on serving others."""

T = TypeVar("T")


async def in_thread_if_large(size_bytes: int, make: Callable[[], T]) -> T:
    """Return `make()`, called in a thread where it has about `size_bytes` of values to render."""
    return make() if size_bytes < LARGE_BYTES else await asyncio.to_thread(make)


def fault_of(fault: ImageFault) -> Fault:
    """Return a fault as an answer shows it, beside the index."""
    return Fault(code=fault.code, detail=fault.detail)


def timings_ms(request: Request, service: Service, inferred: Inferred[Any], *, postprocess_s: float) -> Timings:
    """Return where the time went, postprocessing until now, and note it for the access line, metrics and trace."""
    context = context_of(request)
    now_s = time.monotonic()
    if context.stages is not None:
        context.stages.postprocessed_s = (now_s - postprocess_s, now_s)
    stages_s = {
        **inferred.stage_seconds(),
        "postprocess": postprocess_s,
        "total": now_s - context.started_s,
    }
    for stage in ("postprocess", "total"):
        service.metrics.stage_took(stage, stages_s[stage])
    service.metrics.request_inferred(stages_s)
    context.timings_ms = {stage: round(duration_s * 1000, 3) for stage, duration_s in stages_s.items()}
    return Timings(**context.timings_ms)


def answer_headers(service: Service, timings: Timings) -> dict[str, str]:
    """Return the headers of every answer: the model, and the timings (in milliseconds) for those without a body."""
    manifest = service.model.manifest
    return {
        "X-Model-Name": manifest.name,
        "X-Model-Version": str(manifest.version),
        "Server-Timing": ", ".join(f"{stage};dur={value:g}" for stage, value in timings.model_dump().items()),
    }
