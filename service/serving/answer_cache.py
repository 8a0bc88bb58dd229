"""What engines have answered, kept for images that come again; of one process, and off unless the settings ask for it.

Kept are the outputs that a run gave for an image, not what was made of them, so that a request with other parameters
finds them too. What finds them is all that they depend on: the version, the SHA-256 of the whole image as it was sent,
what is done to it first, and which outputs the run gave; and who asked, for nobody is to learn, by an answer or by the
time that it takes, what others have sent.

Invariants: images and bytes stay within their bounds, what was found least recently leaves first; an entry is of one
loaded version and leaves with it; what is found is what the run gave, and nobody can change it. Belongs to one event
loop.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple, Protocol

from service.engine.types import Answer
from service.images.preprocessing import Preprocessing
from service.settings import Settings

ENTRY_BYTES = 1024
"""What an entry takes beside its outputs, about."""


class Key(NamedTuple):
    """All that an image's outputs depend on, beside the version; and who may have them."""

    asker: str
    """Name of the API key, empty where there are none."""
    digest: bytes
    preprocessing: Preprocessing
    outputs: frozenset[str]
    """Those that the run gave, together."""


class Kept(NamedTuple):
    """What is kept of an image: its answer, and its own size in pixels."""

    answer: Answer
    height: int
    width: int

    @property
    def size_bytes(self) -> int:
        """The memory that it takes, about."""
        return ENTRY_BYTES + sum(array.nbytes for array in self.answer.outputs.values())


class CacheObserver(Protocol):
    """Is told what a cache holds."""

    def cache_holds(self, *, images: int, size_bytes: int) -> None:
        """Note how much there is now."""
        ...

    def cache_evicted(self, images: int) -> None:
        """Note that images had to leave for others."""
        ...


class AnswerCache:
    """The answers of all versions that this process serves, within one bound."""

    def __init__(self, *, images: int, max_bytes: int, observer: CacheObserver) -> None:
        self._images = images
        self._max_bytes = max_bytes
        self._observer = observer
        self._entries: OrderedDict[tuple[VersionCache, Key], Kept] = OrderedDict()
        self._bytes = 0

    @classmethod
    def of(cls, settings: Settings, observer: CacheObserver) -> AnswerCache | None:
        """Return the cache that the settings ask for; None where they ask for none."""
        if not settings.cache_images:
            return None
        return cls(images=settings.cache_images, max_bytes=settings.cache_bytes, observer=observer)

    def find(self, version: VersionCache, key: Key) -> Kept | None:
        """Return what is kept for a key of a version, which then is the last to leave."""
        kept = self._entries.get((version, key))
        if kept is not None:
            self._entries.move_to_end((version, key))
        return kept

    def keep(self, version: VersionCache, key: Key, kept: Kept) -> None:
        """Keep an answer, whose arrays nobody may change any more; one that is larger than all room is not kept."""
        if kept.size_bytes > self._max_bytes:
            return
        for array in kept.answer.outputs.values():
            array.flags.writeable = False
        before = self._entries.pop((version, key), None)
        self._bytes += kept.size_bytes - (before.size_bytes if before is not None else 0)
        self._entries[version, key] = kept
        evicted = 0
        while len(self._entries) > self._images or self._bytes > self._max_bytes:
            self._bytes -= self._entries.popitem(last=False)[1].size_bytes
            evicted += 1
        if evicted:
            self._observer.cache_evicted(evicted)
        self._tell()

    def forget(self, version: VersionCache) -> None:
        """Let go of all that is kept of a version."""
        for place in [place for place in self._entries if place[0] is version]:
            self._bytes -= self._entries.pop(place).size_bytes
        self._tell()

    def _tell(self) -> None:
        self._observer.cache_holds(images=len(self._entries), size_bytes=self._bytes)


class VersionCache:
    """The part of a cache that is of one loaded version."""

    def __init__(self, cache: AnswerCache) -> None:
        self._cache = cache
        self._closed = False

    def find(self, key: Key) -> Kept | None:
        """Return what is kept for a key; None where nothing is."""
        return self._cache.find(self, key)

    def keep(self, key: Key, kept: Kept) -> None:
        """Keep an answer, as `AnswerCache.keep` does, unless the version is gone."""
        if not self._closed:
            self._cache.keep(self, key, kept)

    def close(self) -> None:
        """Let go of everything, and keep nothing more: the version is gone."""
        self._closed = True
        self._cache.forget(self)


def of_version(cache: AnswerCache | None) -> VersionCache | None:
    """Return a part of the cache, where there is one, for a version that is being loaded."""
    return None if cache is None else VersionCache(cache)
