"""One inference call, from admission to the engine's answers; what every such call has in common.

The order is the contract: what the headers decide comes first, then whether there is room, then the body, then one
slot an image, decoding straight into the slots, and the engine. It may be cancelled anywhere (`http.in_flight`): then
what waits for a decoding thread or the device is not begun, and what runs goes nowhere.

`infer` is the whole of it for `/v1`; `/v2` reads bodies of its own between `admit` and `infer_images`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from service.engine.reservation import Reservation
from service.engine.types import Answer, Priority
from service.errors import BadImages, ImageFault
from service.http.bodies.uploads import Limits, Upload, plan_body
from service.http.context import Service, set_deadline
from service.http.middleware import context_of
from service.http.parameters import CallParameters, InferenceParameters
from service.images.limits import UnusableImage
from service.images.preprocessing import ImageTimings, Preprocessing

Check: TypeAlias = Callable[[int, Mapping[int, ImageTimings]], None]
"""Looks at how many images a request has, and by their index at those that could be decoded; may raise."""


class ImageSource(Protocol):
    """One image of a request, in whatever form it was sent."""

    @property
    def index(self) -> int:
        """The image's place in the request, from 0."""
        ...

    def write(self, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> ImageTimings:
        """Write the model's input, uint8 (height, width, 3), in any thread; raises UnusableImage."""
        ...


ImageT = TypeVar("ImageT", bound=ImageSource)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a request's images are inferred; the deadline is a time on time.monotonic."""

    priority: Priority
    deadline_s: float
    skip_bad: bool = False
    """Answer the good images where others are bad."""

    @classmethod
    def of(cls, request: Request, parameters: CallParameters) -> Terms:
        """Return what the query asks for, by the deadline that was set for the request."""
        return cls(
            priority=parameters.engine_priority,
            deadline_s=context_of(request).work.deadline_s,
            skip_bad=parameters.skips_bad_images,
        )

    def narrowed(
        self, request: Request, service: Service, *, timeout_s: float | None, priority: Priority | None
    ) -> Terms:
        """Return the terms with a deadline that may be earlier, and another priority where one is given.

        The deadline becomes the request's.
        """
        if timeout_s is not None:
            set_deadline(request, service, timeout_s * 1000)
        return replace(
            self,
            deadline_s=context_of(request).work.deadline_s,
            priority=self.priority if priority is None else priority,
        )


@dataclass(frozen=True, slots=True)
class Inferred(Generic[ImageT]):
    """What became of a request's images: each has an answer or a fault, by its index."""

    images: Sequence[ImageT]
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
) -> Inferred[Upload]:
    """Admit, read, decode and infer a request's images; raises what `service.errors` has for each way to fail.

    `check` sees what was decoded before anything is inferred, and may raise.
    """
    terms = Terms.of(request, parameters)
    service.check_model(parameters.model)
    plan = plan_body(request, Limits.of(service.settings))
    admit(service, terms)
    images = await plan.read(request)
    return await infer_images(request, service, images, terms=terms, outputs=outputs, check=check)


def admit(service: Service, terms: Terms) -> None:
    """Raise Overloaded or NotReady where a request's body is not worth reading."""
    service.engine.check_room(priority=terms.priority, deadline_s=terms.deadline_s)


async def infer_images(
    request: Request,
    service: Service,
    images: Sequence[ImageT],
    *,
    terms: Terms,
    outputs: frozenset[str],
    check: Check | None = None,
) -> Inferred[ImageT]:
    """Decode and infer the images of a request whose body was read."""
    context = context_of(request)
    context.images = len(images)
    stages = context.stages
    priority, deadline_s = terms.priority, terms.deadline_s
    with service.engine.reserve(len(images), priority=priority, deadline_s=deadline_s) as reservation:
        decoding, faults = await _decode(service, reservation, images, terms=terms)
        if stages is not None:
            stages.decoding = decoding.values()
        for fault in faults.values():
            service.metrics.images_ended(fault.code)
        if faults and not terms.skip_bad:
            raise BadImages([faults[index] for index in sorted(faults)])
        if check is not None:
            check(len(images), decoding)
        good = sorted(decoding)
        answers = await reservation.infer(good, outputs)
        if stages is not None:
            stages.answers = answers
    service.metrics.images_ended("ok", len(answers))
    return Inferred(images, dict(zip(good, answers, strict=True)), faults, decoding)


async def _decode(
    service: Service, reservation: Reservation, images: Sequence[ImageSource], *, terms: Terms
) -> tuple[dict[int, ImageTimings], dict[int, ImageFault]]:
    """Decode every image into its slot, as many at once as the pool has threads."""
    run, preprocessing = service.decode_pool.run, service.preprocessing
    ends = await asyncio.gather(
        *(run(terms.priority, _decode_one, image, reservation, preprocessing) for image in images)
    )
    decoding = {image.index: end for image, end in zip(images, ends, strict=True) if isinstance(end, ImageTimings)}
    faults = {end.index: end for end in ends if isinstance(end, ImageFault)}
    for timings in decoding.values():
        service.metrics.stage_took("decode", timings.decode_s)
        service.metrics.stage_took("preprocess", timings.preprocess_s)
    return decoding, faults


def _decode_one(
    image: ImageSource, reservation: Reservation, preprocessing: Preprocessing
) -> ImageTimings | ImageFault:
    """Decode one image into its slot; runs in a thread of the decoding pool."""
    try:
        with reservation.writing(image.index) as pixels:
            return image.write(pixels, preprocessing)
    except UnusableImage as error:
        return ImageFault(image.index, error.code, str(error))
