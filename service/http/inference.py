"""One inference call, from admission to the engine's answers; what every such call has in common.

The order is the contract: what the headers decide comes first, then whether there is room, then the body, then one
slot an image, decoding straight into the slots, and the engine. It may be cancelled anywhere (`http.in_flight`): then
what waits for a decoding thread or the device is not begun, and what runs goes nowhere.

`infer` is the whole of it for `/v1`; `/v2` reads bodies of its own between `check_room` and `infer_images`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from service.engine.reservation import Reservation
from service.engine.types import Answer, Priority, Shape
from service.errors import BadImages, ImageFault, NotReady, Overloaded
from service.http.bodies.uploads import Upload, plan_body
from service.http.context import RequestContext, context_of
from service.http.parameters import InferenceParameters
from service.http.service import Service
from service.images.limits import UnusableImage
from service.images.pool import DecodePool
from service.images.preprocessing import ImageTimings, Preprocessing
from service.serving.served import Served

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
class Inferred(Generic[ImageT]):
    """What became of a request's images: each has an answer or a fault, by its index."""

    images: Sequence[ImageT]
    answers: Mapping[int, Answer]
    faults: Mapping[int, ImageFault]
    decoding: Mapping[int, ImageTimings]


async def infer(
    request: Request,
    service: Service,
    served: Served,
    parameters: InferenceParameters,
    *,
    outputs: frozenset[str],
    preprocessing: Preprocessing,
    check: Check | None = None,
    images: Sequence[Upload] | None = None,
) -> Inferred[Upload]:
    """Admit, read, decode and infer the images of a request to `served`, which it keeps.

    `preprocessing` is for the size of input that it asks for. `images` are those of a body that was read already, as
    one has to be that says itself what is asked. Raises what `service.errors` has for each way to fail.

    `check` sees what was decoded before anything is inferred, and may raise.
    """
    context, priority = context_of(request), parameters.engine_priority
    if images is None:
        plan = plan_body(context.headers, service.body_limits)
        check_room(context, served, priority, preprocessing.crop)
        images = await plan.read(request.receive, context.work)
    skip_bad = parameters.on_error == "skip"
    return await infer_images(
        context,
        service.decode_pool,
        served,
        images,
        outputs=outputs,
        priority=priority,
        preprocessing=preprocessing,
        skip_bad=skip_bad,
        check=check,
    )


def check_room(context: RequestContext, served: Served, priority: Priority, shape: Shape | None = None) -> None:
    """Raise Overloaded or NotReady where a request's body is not worth reading; `shape` is as in `reserve`."""
    served.engine.check_room(priority=priority, deadline_s=context.work.deadline_s, shape=shape)


def check_any_room(context: RequestContext, served: Sequence[Served], priority: Priority) -> None:
    """Raise Overloaded or NotReady where none of several has room: for a body that will say which of them is asked."""
    refusal: Overloaded | NotReady | None = None
    for each in served:
        try:
            check_room(context, each, priority)
        except (Overloaded, NotReady) as error:
            refusal = error
        else:
            return
    if refusal is not None:
        raise refusal


async def infer_images(
    context: RequestContext,
    pool: DecodePool,
    served: Served,
    images: Sequence[ImageT],
    *,
    outputs: frozenset[str],
    priority: Priority,
    preprocessing: Preprocessing,
    skip_bad: bool = False,
    check: Check | None = None,
) -> Inferred[ImageT]:
    """Decode and infer the images of a request whose body was read, within its deadline.

    Raises BadImages where any cannot be used, unless `skip_bad` is set: then the others are inferred.
    """
    context.images = len(images)
    deadline_s = context.work.deadline_s
    shape = preprocessing.crop
    with served.engine.reserve(len(images), priority=priority, deadline_s=deadline_s, shape=shape) as reservation:
        decoding, faults = await _decode(pool, reservation, images, priority, preprocessing)
        context.stages.decoding = decoding.values()
        for fault in faults.values():
            served.metrics.images_ended(fault.code)
        if faults and not skip_bad:
            raise BadImages(faults)
        if check is not None:
            check(len(images), decoding)
        good = sorted(decoding)
        answers = await reservation.infer(good, outputs)
        context.stages.inferred(answers)
    served.metrics.images_ended("ok", len(answers))
    return Inferred(images, dict(zip(good, answers, strict=True)), faults, decoding)


async def _decode(
    pool: DecodePool,
    reservation: Reservation,
    images: Sequence[ImageSource],
    priority: Priority,
    preprocessing: Preprocessing,
) -> tuple[dict[int, ImageTimings], dict[int, ImageFault]]:
    """Decode every image into its slot, as many at once as the pool has threads."""
    running = [pool.run(priority, _decode_one, image, reservation, preprocessing) for image in images]
    ends = [await running[0]] if len(running) == 1 else await asyncio.gather(*running)
    decoding: dict[int, ImageTimings] = {}
    faults: dict[int, ImageFault] = {}
    for image, end in zip(images, ends, strict=True):
        if isinstance(end, ImageFault):
            faults[image.index] = end
        else:
            decoding[image.index] = end
    return decoding, faults


def _decode_one(
    image: ImageSource, reservation: Reservation, preprocessing: Preprocessing
) -> ImageTimings | ImageFault:
    """Decode one image into its slot; runs in a thread of the decoding pool."""
    try:
        with reservation.writing(image.index) as pixels:
            return image.write(pixels, preprocessing)
    except UnusableImage as error:
        return error.fault
