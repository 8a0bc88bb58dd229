"""One inference call, from admission to the engine's answers; what classify and features have in common.

The order is the contract: what the headers decide comes first, then whether there is room, then the body, then one
slot an image, decoding straight into the slots, and the engine. Meanwhile the client's connection is watched: when it
closes, the work is cancelled, and what waits in the queue leaves it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from fastapi import Request

from service.engine.reservation import Reservation
from service.engine.types import Answer, Priority
from service.errors import BadImages, Cancelled, DeadlineExceeded, ImageFault
from service.imaging import ImageTimings, Preprocessing, UnusableImage, decode_into
from service.middleware import context_of
from service.routes.bodies import Limits, Upload, plan_body
from service.routes.context import Service
from service.routes.parameters import InferenceParameters

T = TypeVar("T")
Check: TypeAlias = Callable[[Sequence[Upload], Mapping[int, ImageTimings]], None]
"""Looks at a request's uploads, and by their index at those that could be decoded."""


@dataclass(frozen=True, slots=True)
class Inferred:
    """What became of a request's images: each has an answer or a fault, by its index."""

    uploads: Sequence[Upload]
    answers: Mapping[int, Answer]
    faults: Mapping[int, ImageFault]
    decoding: Mapping[int, ImageTimings]

    def stage_seconds(self) -> dict[str, float]:
        """Return the longest time that any image spent in each stage; images pass through them side by side."""
        decoding, answers = self.decoding.values(), self.answers.values()
        return {
            "decode": max((timings.decode_s for timings in decoding), default=0.0),
            "preprocess": max((timings.preprocess_s for timings in decoding), default=0.0),
            "queue": max((answer.queue_s for answer in answers), default=0.0),
            "inference": max((answer.inference_s for answer in answers), default=0.0),
        }


async def infer(
    request: Request,
    service: Service,
    parameters: InferenceParameters,
    *,
    outputs: frozenset[str],
    check: Check | None = None,
) -> Inferred:
    """Admit, read, decode and infer a request's images; raises what `service.errors` has for each way to fail.

    `check` sees what was decoded before anything is inferred, and may raise.
    """
    context = context_of(request)
    timeout_ms = min(service.settings.timeout_ms, parameters.timeout_ms or service.settings.timeout_ms)
    deadline_s = context.started_s + timeout_ms / 1000
    service.check_model(parameters.model)
    plan = plan_body(request, Limits.of(service.settings))
    service.engine.check_room(priority=parameters.engine_priority, deadline_s=deadline_s)
    uploads = await plan.read(request)
    context.images = len(uploads)
    inferred = await _unless_disconnected(
        request, _decode_and_infer(service, parameters, uploads, outputs=outputs, deadline_s=deadline_s, check=check)
    )
    service.metrics.images_ended("ok", len(inferred.answers))
    return inferred


async def _decode_and_infer(
    service: Service,
    parameters: InferenceParameters,
    uploads: Sequence[Upload],
    *,
    outputs: frozenset[str],
    deadline_s: float,
    check: Check | None,
) -> Inferred:
    priority = parameters.engine_priority
    with service.engine.reserve(len(uploads), priority=priority, deadline_s=deadline_s) as reservation:
        decoding, faults = await _decode(service, reservation, uploads, priority=priority, deadline_s=deadline_s)
        for fault in faults.values():
            service.metrics.images_ended(fault.code)
        if faults and parameters.on_error == "fail":
            raise BadImages([faults[index] for index in sorted(faults)])
        if check is not None:
            check(uploads, decoding)
        good = sorted(decoding)
        answers = (
            await reservation.infer(good, outputs=outputs, deadline_s=deadline_s, priority=priority) if good else []
        )
    return Inferred(uploads, dict(zip(good, answers, strict=True)), faults, decoding)


async def _decode(
    service: Service, reservation: Reservation, uploads: Sequence[Upload], *, priority: Priority, deadline_s: float
) -> tuple[dict[int, ImageTimings], dict[int, ImageFault]]:
    """Decode every image into its slot, as many at once as the pool has threads."""
    run, preprocessing = service.decode_pool.run, service.preprocessing
    ends = await asyncio.gather(
        *(run(priority, _decode_one, upload, reservation, preprocessing, deadline_s) for upload in uploads)
    )
    decoding = {upload.index: end for upload, end in zip(uploads, ends, strict=True) if isinstance(end, ImageTimings)}
    faults = {end.index: end for end in ends if isinstance(end, ImageFault)}
    for timings in decoding.values():
        service.metrics.stage_took("decode", timings.decode_s)
        service.metrics.stage_took("preprocess", timings.preprocess_s)
    return decoding, faults


def _decode_one(
    upload: Upload, reservation: Reservation, preprocessing: Preprocessing, deadline_s: float
) -> ImageTimings | ImageFault:
    """Decode one image into its slot; runs in a thread of the decoding pool."""
    if time.monotonic() >= deadline_s:
        raise DeadlineExceeded("The deadline passed before the images were decoded.")
    try:
        with reservation.writing(upload.index) as pixels:
            return decode_into(upload.data, pixels, preprocessing)
    except UnusableImage as error:
        return ImageFault(upload.index, error.code, str(error))


async def _unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Return what `work` gives, or cancel it and raise Cancelled when the client closes its connection first.

    The body must have been read. The work goes on in the present task, and a second one watches; it says by its
    result that it was the one that cancelled, and whoever else cancels is left to.
    """
    working = asyncio.current_task()
    assert working is not None

    async def watch() -> bool:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return working.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if watching.done() and not watching.cancelled() and watching.result() and working.uncancel() == 0:
            raise Cancelled("The client went away before its answer.") from None
        raise
    finally:
        watching.cancel()
