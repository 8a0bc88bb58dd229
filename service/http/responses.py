"""What answers of several inference calls have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import orjson
from fastapi import Request
from starlette.responses import Response

from service.http.answers.schemas import FailedImage, ModelReference, Timings
from service.http.bodies.uploads import Upload
from service.http.context import context_of
from service.http.inference import Inferred
from service.serving.served import Served
from service.telemetry.stages import Stages

JSON = "application/json"
THREAD_FROM_BYTES = 64 * 1024
"""Values of about this size or more are worked on in a thread, so that the event loop goes on serving others."""

T = TypeVar("T")
ResultT = TypeVar("ResultT")


async def in_thread_if_large(size_bytes: int, make: Callable[[], T]) -> T:
    """Return `make()`, called in a thread where it has about `size_bytes` of values to work on."""
    return make() if size_bytes < THREAD_FROM_BYTES else await asyncio.to_thread(make)


async def json_answer(
    request: Request,
    served: Served,
    inferred: Inferred[Upload],
    make_result: Callable[[Upload], ResultT],
    make_answer: Callable[[ModelReference, list[ResultT | FailedImage], str, Timings], object],
    *,
    size_bytes: int,
) -> Response:
    """Return the JSON of the record that `make_answer` gives, with a result for each image, in order.

    `make_result` is called for each image that has an answer; in a thread, if `size_bytes` of values are many.
    """
    context = context_of(request)

    def render() -> Response:
        began_s = time.monotonic()
        results = [
            FailedImage.of(inferred.faults[image.index], index=image.index, filename=image.filename)
            if image.index in inferred.faults
            else make_result(image)
            for image in inferred.images
        ]
        stages = context.stages
        stages.postprocessed(began_s)
        reference = ModelReference(served.name, served.version)
        answer = make_answer(reference, results, context.request_id, Timings(**stages.durations_ms))
        return Response(orjson.dumps(answer), media_type=JSON, headers=answer_headers(served, stages))

    return await in_thread_if_large(size_bytes, render)


def answer_headers(served: Served, stages: Stages) -> dict[str, str]:
    """Return the headers of every answer: the model, and the timings (in milliseconds) for those without a body."""
    return {
        "X-Model-Name": served.name,
        "X-Model-Version": str(served.version),
        "Server-Timing": ", ".join(f"{stage};dur={value:g}" for stage, value in stages.durations_ms.items()),
    }
