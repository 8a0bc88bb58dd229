"""What answers of several inference calls have in common."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from service.errors import ImageFault
from service.http.answers.schemas import FailedImage, Fault, ModelReference, Timings
from service.http.bodies.uploads import Upload
from service.http.inference import Inferred
from service.http.middleware import context_of, in_ms
from service.http.service import Service

JSON = "application/json"
LARGE_BYTES = 64 * 1024
"""An answer from about this size on is made in a thread, so that the event loop goes on serving others."""

T = TypeVar("T")


async def in_thread_if_large(size_bytes: int, make: Callable[[], T]) -> T:
    """Return `make()`, called in a thread where it has about `size_bytes` of values to render."""
    return make() if size_bytes < LARGE_BYTES else await asyncio.to_thread(make)


def failed_image(upload: Upload, fault: ImageFault) -> FailedImage:
    """Return the result of an image that could not be used."""
    return FailedImage(index=upload.index, filename=upload.filename, error=Fault(code=fault.code, detail=fault.detail))


def rendered_answer(request: Request, service: Service, results: Iterable[str], timings: Timings) -> Response:
    """Return the JSON answer whose results, one an image, are rendered by the caller: they hold too many numbers."""
    body = (
        f'{{"model":{ModelReference.of(service.model.manifest).model_dump_json()},"results":[{",".join(results)}],'
        f'"request_id":{json.dumps(context_of(request).request_id)},"timings_ms":{timings.model_dump_json()}}}'
    )
    return Response(body, media_type=JSON, headers=answer_headers(service, timings))


def timings_ms(request: Request, inferred: Inferred[Any], *, postprocess_s: float) -> Timings:
    """Return where the time went, postprocessing until now, and note it for the access line, metrics and trace.

    It is counted with the request's end: a thread may be making an answer that nobody waits for any more.
    """
    context = context_of(request)
    now_s = time.monotonic()
    if context.stages is not None:
        context.stages.postprocessed_s = (now_s - postprocess_s, now_s)
    context.stages_s = {
        **inferred.stage_seconds(),
        "postprocess": postprocess_s,
        "total": now_s - context.started_s,
    }
    return Timings(**in_ms(context.stages_s))


def answer_headers(service: Service, timings: Timings) -> dict[str, str]:
    """Return the headers of every answer: the model, and the timings (in milliseconds) for those without a body."""
    manifest = service.model.manifest
    return {
        "X-Model-Name": manifest.name,
        "X-Model-Version": str(manifest.version),
        "Server-Timing": ", ".join(f"{stage};dur={value:g}" for stage, value in timings.model_dump().items()),
    }
