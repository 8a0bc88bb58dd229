"""What is kept stays within its bounds, is of one version, and cannot be changed."""

from __future__ import annotations

import numpy as np
import pytest

from service.engine.types import Answer, Run
from service.images.preprocessing import Preprocessing
from service.serving.answer_cache import ENTRY_BYTES, AnswerCache, Kept, Key, VersionCache

PREPROCESSING = Preprocessing((64, 64), (56, 56))
RUN = Run(0.0, 0.1, 1, 1, 5.0)


class Observed:
    def __init__(self) -> None:
        self.images = self.size_bytes = self.evicted = 0

    def cache_holds(self, *, images: int, size_bytes: int) -> None:
        self.images, self.size_bytes = images, size_bytes

    def cache_evicted(self, images: int) -> None:
        self.evicted += images


def key(image: int, **other: object) -> Key:
    return Key("", bytes([image]), PREPROCESSING, frozenset({"logits"}))._replace(**other)


def kept(values: int = 7) -> Kept:
    return Kept(Answer({"logits": np.arange(values, dtype=np.float32)}, RUN), 480, 640)


def made(*, images: int = 3, max_bytes: int = 1 << 20) -> tuple[VersionCache, Observed]:
    observed = Observed()
    return VersionCache(AnswerCache(images=images, max_bytes=max_bytes, observer=observed)), observed


def test_what_was_found_least_recently_leaves_first() -> None:
    version, observed = made(images=3)
    for image in range(3):
        version.keep(key(image), kept())
    assert version.find(key(0)) is not None
    version.keep(key(3), kept())
    assert [version.find(key(image)) is not None for image in range(4)] == [True, False, True, True]
    assert (observed.images, observed.evicted) == (3, 1)


def test_bytes_are_bounded_and_what_is_larger_than_all_room_is_not_kept() -> None:
    one = ENTRY_BYTES + 4 * 100
    version, observed = made(images=100, max_bytes=3 * one)
    for image in range(3):
        version.keep(key(image), kept(100))
    assert (observed.size_bytes, observed.evicted) == (3 * one, 0)
    version.keep(key(9), kept(2000))
    assert (version.find(key(9)), observed.evicted) == (None, 0)
    version.keep(key(4), kept(101))
    assert (observed.images, observed.evicted) == (2, 2)
    assert observed.size_bytes == 2 * one + 4
    version.keep(key(4), kept(100))  # two requests may have had one image in hand at once
    assert (observed.images, observed.size_bytes) == (2, 2 * one)


@pytest.mark.parametrize(
    "other",
    [
        {"asker": "b"},
        {"digest": b"other"},
        {"preprocessing": Preprocessing((64, 64), (56, 56), exif_orientation=True)},
        {"preprocessing": PREPROCESSING.at("56x56")},
        {"outputs": frozenset({"logits", "embedding"})},
    ],
    ids=lambda other: next(iter(other)),
)
def test_whatever_outputs_depend_on_and_who_asks_tells_keys_apart(other: dict[str, object]) -> None:
    version, _ = made()
    version.keep(key(1), kept())
    assert version.find(key(1)) is not None
    assert version.find(key(1, **other)) is None


def test_a_version_leaves_with_all_that_is_its_own_and_nothing_else() -> None:
    observed = Observed()
    cache = AnswerCache(images=9, max_bytes=1 << 20, observer=observed)
    first, second = VersionCache(cache), VersionCache(cache)
    for image in range(3):
        first.keep(key(image), kept())
    second.keep(key(0), kept())
    first.close()
    assert [first.find(key(image)) for image in range(3)] == [None] * 3
    assert second.find(key(0)) is not None
    assert (observed.images, observed.evicted) == (1, 0)
    assert observed.size_bytes == kept().size_bytes
    first.keep(key(0), kept())
    assert (first.find(key(0)), observed.images) == (None, 1)


def test_nobody_can_change_what_is_kept() -> None:
    version, _ = made()
    version.keep(key(1), kept())
    found = version.find(key(1))
    assert found is not None
    with pytest.raises(ValueError, match="read-only"):
        found.answer.outputs["logits"][0] = 1
