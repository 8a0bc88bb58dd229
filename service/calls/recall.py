"""Looking for a request's images in the cache of answers before any is decoded.

A version's outputs that are vectors cost nearly nothing beside each other: where a cache is, a run gives all of them,
so that features find what a classification has computed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from service.engine.types import Answer
from service.images.preprocessing import ImageTimings, Preprocessing
from service.model.manifest import Manifest
from service.serving.answer_cache import Kept, Key, VersionCache

_THREAD_FROM_BYTES = 128 * 1024
"""Images of this many bytes together or more are hashed in a thread."""


class Digestible(Protocol):
    """An image as it was sent."""

    @property
    def index(self) -> int:
        """The image's place in the request, from 0."""
        ...

    @property
    def size_bytes(self) -> int:
        """How many bytes `digest` reads."""
        ...

    def digest(self) -> bytes:
        """Return what stands for all that was sent of it: equal only for what gives equal pixels. In any thread."""
        ...


class Lookup:
    """What was found of a request's images, and where to keep the rest."""

    def __init__(
        self, cache: VersionCache, keys: Mapping[int, Key], *, asked: frozenset[str], outputs: frozenset[str]
    ) -> None:
        self._cache = cache
        self._keys = keys
        self._asked = asked
        self.outputs = outputs
        """What a run of the images that are missing should give."""
        found = {index: cache.find(key) for index, key in keys.items()}
        kept = {index: each for index, each in found.items() if each is not None}
        now_s = time.monotonic()
        self.answers = {index: self._as_asked(each.answer) for index, each in kept.items()}
        """Of the images that were found, by their indices: the outputs asked for."""
        self.decoding = {index: ImageTimings(0.0, 0.0, each.height, each.width, now_s) for index, each in kept.items()}
        """Their sizes; they were not decoded, and took no time."""

    def keep(self, answers: Mapping[int, Answer], decoding: Mapping[int, ImageTimings]) -> dict[int, Answer]:
        """Keep the answers of images that were missing, by their indices, and return them as they are asked for."""
        for index, answer in answers.items():
            self._cache.keep(self._keys[index], Kept(answer, decoding[index].height, decoding[index].width))
        return {index: self._as_asked(answer) for index, answer in answers.items()}

    def _as_asked(self, answer: Answer) -> Answer:
        return Answer({name: answer.outputs[name] for name in self._asked}, answer.run)


async def look_up(
    cache: VersionCache,
    images: Sequence[Digestible],
    *,
    asker: str,
    manifest: Manifest,
    outputs: frozenset[str],
    preprocessing: Preprocessing,
) -> Lookup:
    """Look for images of which `outputs` are asked for, by `asker`, after `preprocessing`."""
    if sum(image.size_bytes for image in images) < _THREAD_FROM_BYTES:
        digests = _digests(images)
    else:
        digests = await asyncio.to_thread(_digests, images)
    together = outputs.union(manifest.vectors) if outputs.issubset(manifest.output_names) else outputs
    keys = {index: Key(asker, digest, preprocessing, together) for index, digest in digests.items()}
    return Lookup(cache, keys, asked=outputs, outputs=together)


def _digests(images: Sequence[Digestible]) -> dict[int, bytes]:
    return {image.index: image.digest() for image in images}
