"""One inference call, from admission to the engine's answers; what every such call has in common.

The order is the contract: what the head decides comes first, then whether there is room, then the body, then one slot
an image, decoding straight into the slots, and the engine. It may be cancelled anywhere (`calls.in_flight`): then what
waits for a decoding thread or the device is not begun, and what runs goes nowhere.

What carries the call reads its body, between `check_room` and `infer_images`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.calls.context import RequestContext
from service.calls.recall import Digestible, Lookup, look_up
from service.calls.upload import Upload
from service.engine.reservation import Reservation
from service.engine.types import Answer, Priority, Shape
from service.errors import BadImages, ImageFault, NotReady, Overloaded
from service.images.limits import UnusableImage
from service.images.pool import DecodePool
from service.images.preprocessing import ImageTimings, Preprocessing
from service.samples.records import SampledImage
from service.samples.sampler import Sampler
from service.serving.served import Served

Check: TypeAlias = Callable[[int, Mapping[int, ImageTimings]], None]
"""Looks at how many images a request has, and by their index at those that could be decoded; may raise."""


class ImageSource(Digestible, Protocol):
    """One image of a request, in whatever form it was sent."""

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

    What a cache of answers has is neither decoded nor inferred, where there is one. Raises BadImages where any cannot
    be used, unless `skip_bad` is set: then the others are inferred.
    """
    context.images = len(images)
    infer = partial(
        _infer, context, pool, served, priority=priority, preprocessing=preprocessing, skip_bad=skip_bad
    )  # of these images or some of them, for these outputs or more
    if served.cache is None:
        inferred = await infer(images, outputs=outputs, check=check)
    else:
        asker = context.key.name if context.key is not None else ""
        lookup = await look_up(
            served.cache, images, asker=asker, manifest=served.manifest, outputs=outputs, preprocessing=preprocessing
        )
        inferred = await _infer_what_is_missing(infer, served, lookup, images, check)
    class_output = served.manifest.class_output
    if class_output in outputs:
        context.logits = [answer.outputs[class_output] for answer in inferred.answers.values()]
    if context.sampler is not None:
        context.sampled = _sampled(context.sampler, served, images, inferred.answers)
    return inferred


async def _infer_what_is_missing(
    infer: Callable[..., Awaitable[Inferred[ImageT]]],
    served: Served,
    lookup: Lookup,
    images: Sequence[ImageT],
    check: Check | None,
) -> Inferred[ImageT]:
    """Have those inferred that a lookup has not found, and keep their answers."""
    found, missing = lookup.answers, [image for image in images if image.index not in lookup.answers]
    served.metrics.looked_up(hits=len(found), misses=len(missing))

    def check_all(_: int, decoded: Mapping[int, ImageTimings]) -> None:
        if check is not None:
            check(len(images), lookup.decoding | dict(decoded))

    if missing:
        fresh = await infer(missing, outputs=lookup.outputs, check=check_all)
    else:
        fresh = Inferred((), {}, {}, {})
        check_all(0, {})
    answers = found | lookup.keep(fresh.answers, fresh.decoding)
    if found:
        served.metrics.images_ended("ok", len(found))
    return Inferred(
        images,
        {image.index: answers[image.index] for image in images if image.index in answers},
        fresh.faults,
        lookup.decoding | dict(fresh.decoding),
    )


async def _infer(
    context: RequestContext,
    pool: DecodePool,
    served: Served,
    images: Sequence[ImageT],
    *,
    outputs: frozenset[str],
    priority: Priority,
    preprocessing: Preprocessing,
    skip_bad: bool,
    check: Check | None,
) -> Inferred[ImageT]:
    """Decode and infer images, one at least, of one request; raises as `infer_images`."""
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
        good = [place for place, image in enumerate(images) if image.index in decoding]
        answers = await reservation.infer(good, outputs)
        context.stages.inferred(answers)
    served.metrics.images_ended("ok", len(answers))
    indices = [images[place].index for place in good]
    return Inferred(images, dict(zip(indices, answers, strict=True)), faults, decoding)


def _sampled(
    sampler: Sampler, served: Served, images: Sequence[ImageSource], answers: Mapping[int, Answer]
) -> list[SampledImage]:
    """Return what is to be kept of the images of a request that is sampled."""
    uploads = {image.index: image for image in images if isinstance(image, Upload)}
    kept = []
    for index, answer in answers.items():
        upload = uploads.get(index)
        file, name = (None, None) if upload is None else (upload.data, upload.filename)
        kept.append(sampler.image(index, served.model, answer, file, name))
    return kept


async def _decode(
    pool: DecodePool,
    reservation: Reservation,
    images: Sequence[ImageSource],
    priority: Priority,
    preprocessing: Preprocessing,
) -> tuple[dict[int, ImageTimings], dict[int, ImageFault]]:
    """Decode every image into its slot, as many at once as the pool has threads."""
    running = [
        pool.run(priority, _decode_one, image, place, reservation, preprocessing) for place, image in enumerate(images)
    ]
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
    image: ImageSource, place: int, reservation: Reservation, preprocessing: Preprocessing
) -> ImageTimings | ImageFault:
    """Decode one image into its slot, by its place in the reservation; runs in a thread of the decoding pool."""
    try:
        with reservation.writing(place) as pixels:
            return image.write(pixels, preprocessing)
    except UnusableImage as error:
        return error.fault
