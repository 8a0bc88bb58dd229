"""What answers of several inference calls have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TypeAlias, TypeVar

import orjson
from fastapi import Request
from starlette.responses import Response

from service.calls.inference import Inferred
from service.calls.large import in_thread_if_large
from service.calls.upload import Upload
from service.http.answers.schemas import FailedImage, ModelReference, Timings
from service.http.context import context_of
from service.serving.served import Served
from service.telemetry.stages import Stages

JSON = "application/json"
ResultT = TypeVar("ResultT")
MakeAnswer: TypeAlias = Callable[[ModelReference, list[ResultT | FailedImage], str, Timings], object]
"""Makes the record of an answer of the model, the results in order, the request's id, and where its time went."""


async def json_answer(
    request: Request,
    served: Served,
    inferred: Inferred[Upload],
    make_result: Callable[[Upload], ResultT],
    make_answer: MakeAnswer[ResultT],
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
        return ModelAnswer(orjson.dumps(answer), media_type=JSON, served=served, stages=stages)

    return await in_thread_if_large(size_bytes, render)


class ModelAnswer(Response):
    """An answer of a model: its head names the model, and the timings (in milliseconds) for those without a JSON body.

    The head is made here as it is sent: the framework's own way to it costs as much as all the JSON of a
    classification.
    """

    def __init__(
        self, body: bytes, *, media_type: str, served: Served, stages: Stages, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status_code = HTTPStatus.OK
        self.background = None
        self.body = body
        timings = ", ".join([f"{stage};dur={value:g}" for stage, value in stages.durations_ms.items()])
        self.raw_headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", media_type.encode()),
            (b"x-model-name", served.name.encode("latin-1")),
            (b"x-model-version", b"%d" % served.version),
            (b"server-timing", timings.encode()),
        ]
        if headers:
            self.raw_headers += [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()
            ]
