"""Copies of versions: whole or not there, by several processes at once, on full disks, and removed when unused."""

from __future__ import annotations

import errno
import gc
import hashlib
import multiprocessing
import pickle
import shutil
import threading
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from service.errors import RepositoryError
from service.model.version_cache import VersionCache
from tests.service import tiny_model

PATIENCE_S = 60


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("source"), name="a", version=1, explain=False)


@pytest.fixture(scope="module")
def digest(source: Path) -> str:
    return hashlib.sha256((source / "manifest.json").read_bytes()).hexdigest()


def copy_of(source: Path, calls: list[Path] | None = None) -> Callable[[Path], None]:
    def copy(place: Path) -> None:
        if calls is not None:
            calls.append(place)
        shutil.copytree(source, place, dirs_exist_ok=True)

    return copy


def never(place: Path) -> None:
    raise AssertionError(f"{place} should not be made")


def test_a_copy_is_made_once(source: Path, digest: str, tmp_path: Path) -> None:
    model = VersionCache(tmp_path).bring("a", 1, digest, copy_of(source))
    assert model.path == tmp_path / "versions" / digest / "a" / "1"
    assert VersionCache(tmp_path).bring("a", 1, digest, never).path == model.path


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), RepositoryError("no"), KeyboardInterrupt()])
def test_a_copy_that_is_broken_off_is_not_there_and_goes_on(
    source: Path, digest: str, tmp_path: Path, error: BaseException
) -> None:
    def break_off(place: Path) -> None:
        (place / "begun").write_text("of it")
        raise error

    cache = VersionCache(tmp_path)
    with pytest.raises((RepositoryError, KeyboardInterrupt)):
        cache.bring("a", 1, digest, break_off)
    assert not (tmp_path / "versions" / digest).exists()

    def go_on(place: Path) -> None:
        assert (place / "begun").read_text() == "of it"
        copy_of(source)(place)

    assert (cache.bring("a", 1, digest, go_on).path / "begun").exists()


def test_a_copy_that_is_not_what_its_manifest_says_is_not_kept(source: Path, digest: str, tmp_path: Path) -> None:
    def spoil(place: Path) -> None:
        copy_of(source)(place)
        (place / "labels.tsv").write_text("other")

    with pytest.raises(RepositoryError, match=r"labels.tsv has 5 bytes"):
        VersionCache(tmp_path).bring("a", 1, digest, spoil)
    assert list(tmp_path.rglob("labels.tsv")) == []


def test_a_place_that_cannot_be_written_is_named(source: Path, digest: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RepositoryError, match=rf"the cache of models {tmp_path}/file/a cannot be used: Not a directory"
    ):
        VersionCache(tmp_path / "file" / "a").bring("a", 1, digest, copy_of(source))


def test_a_disk_without_room_is_told_before_anything_is_read(tmp_path: Path) -> None:
    cache = VersionCache(tmp_path)
    cache.require_room(1)
    with pytest.raises(RepositoryError, match=r"has room for \d+ bytes, and 1000000000000000000 are wanted"):
        cache.require_room(10**18)


def make_slowly(root: Path, source: Path, digest: str, began: Event, go_on: Event) -> None:
    """Make a copy in a process of its own, which waits in the midst of it."""

    def copy(place: Path) -> None:
        (place / "begun").write_text("by the first")
        began.set()
        go_on.wait(PATIENCE_S)
        copy_of(source)(place)

    VersionCache(root).bring("a", 1, digest, copy)


@pytest.mark.parametrize("is_killed", [False, True])
def test_who_comes_second_waits_and_goes_on_where_the_first_is_killed(
    source: Path, digest: str, tmp_path: Path, is_killed: bool
) -> None:
    context = multiprocessing.get_context("spawn")
    began, go_on = context.Event(), context.Event()
    first = context.Process(target=make_slowly, args=(tmp_path, source, digest, began, go_on))
    first.start()
    assert began.wait(PATIENCE_S)
    made: list[Path] = []
    second = threading.Thread(target=lambda: VersionCache(tmp_path).bring("a", 1, digest, copy_of(source, made)))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert made == []
    if is_killed:
        first.kill()
    else:
        go_on.set()
    second.join(PATIENCE_S)
    first.join(PATIENCE_S)
    assert len(made) == is_killed
    assert (VersionCache(tmp_path).bring("a", 1, digest, never).path / "begun").read_text() == "by the first"


def test_what_is_used_stays_and_what_is_not_goes(source: Path, digest: str, tmp_path: Path) -> None:
    cache = VersionCache(tmp_path)
    model = cache.bring("a", 1, digest, copy_of(source))
    cache.remove_unknown()
    assert model.path.exists()
    del model
    gc.collect()
    cache.note("a", 1, digest)
    cache.remove_unknown()
    assert VersionCache(tmp_path).kept() == {"a": {1: digest}}
    cache.withdraw_all_but({"a": (2,)})
    assert cache.kept() == {}
    cache.remove_unknown()
    assert list((tmp_path / "versions").iterdir()) == []
    cache.bring("a", 1, digest, copy_of(source))


def test_a_model_that_is_sent_to_another_process_holds_nothing_there(source: Path, digest: str, tmp_path: Path) -> None:
    model = VersionCache(tmp_path).bring("a", 1, digest, copy_of(source))
    sent = pickle.loads(pickle.dumps(model))
    assert sent == model
    assert (sent.lease, model.lease is None) == (None, False)


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', '{"a": {"x": "y"}}', "\xff"])
def test_a_note_that_cannot_be_read_is_as_none(source: Path, digest: str, tmp_path: Path, content: str) -> None:
    cache = VersionCache(tmp_path)
    cache.bring("a", 1, digest, copy_of(source))
    (tmp_path / "kept.json").write_text(content, encoding="latin-1")
    assert cache.kept() == {}
    cache.note("a", 1, digest)
    assert cache.kept() == {"a": {1: digest}}


def test_settings_are_put_in_place_and_taken_away(tmp_path: Path) -> None:
    cache = VersionCache(tmp_path)
    path = tmp_path / "models" / "a" / "settings.toml"
    cache.put_settings("a", None)
    assert not path.exists()
    cache.put_settings("a", b"top_k = 1\n")
    before = path.stat().st_ino
    cache.put_settings("a", b"top_k = 1\n")
    assert (path.read_bytes(), path.stat().st_ino) == (b"top_k = 1\n", before)
    cache.put_settings("a", None)
    assert not path.exists()
