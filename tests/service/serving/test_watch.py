"""What the watch of a repository has loaded, and when: looks are taken by hand, and the clock is the test's."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

import pytest

from service.errors import LoadFailed
from service.serving.served import ServedModels
from service.serving.states import ModelState, VersionStatus
from service.serving.watch import INCOMPLETE_S, RepositoryWatch
from service.settings import load_settings
from tests.service import tiny_model

PATIENCE_S = 30


class Watched:
    """A repository with a watch, and what that has asked for."""

    def __init__(self, root: Path, **options: object) -> None:
        self.root = root / "models"
        self.root.mkdir(exist_ok=True)
        self.loaded: list[str] = []
        self.called = asyncio.Event()
        self.error: Exception | None = None
        self.now_s = 0.0
        self.models = ServedModels(default="a")
        settings = load_settings(
            {"repository": str(self.root), "model": "a", "model_control": True, "watch_repository": True, **options}
        )
        self.watch = RepositoryWatch(settings, self.models, self._load, clock=lambda: self.now_s)

    async def _load(self, name: str) -> None:
        self.loaded.append(name)
        self.called.set()
        if self.error is not None:
            raise self.error

    def put(self, name: str, version: int) -> Path:
        """Put a version in place whole, as by renaming."""
        hidden = self.root / f".{name}-{version}"
        path = tiny_model.write(hidden, name=name, version=version, explain=False)
        (self.root / name).mkdir(exist_ok=True)
        return path.rename(self.root / name / str(version))

    def publish(self, *states: tuple[str, int, ModelState]) -> None:
        self.models.publish([VersionStatus(*each) for each in states], [])

    async def looks(self, count: int = 2) -> list[str]:
        """Look so often, and return what was loaded meanwhile."""
        self.loaded.clear()
        for _ in range(count):
            await self.watch.look()
            self.now_s += 5
        return list(self.loaded)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        str(getattr(record, "fields", {}).get("reason"))
        for record in caplog.records
        if record.levelno == logging.WARNING
    ]


async def test_a_model_is_loaded_once_when_two_looks_have_seen_it_alike(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    assert await watched.looks() == []
    watched.put("a", 1)
    assert await watched.looks(1) == []
    assert await watched.looks(1) == ["a"]
    assert await watched.looks(3) == []


async def test_a_new_version_and_a_changed_one_are_loaded(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.put("a", 1)
    assert await watched.looks() == ["a"]
    watched.put("a", 2)
    assert await watched.looks(3) == ["a"]
    (watched.root / "a" / "2" / "labels.tsv").write_text("other")
    tiny_model.write_manifest(watched.root / "a" / "2", name="a", version=2)
    assert await watched.looks(3) == ["a"]
    watched.put("a", 1_000)
    (watched.root / "a" / "1" / "labels.tsv").write_text("of a version that is not wanted")
    assert await watched.looks(3) == ["a"]
    (watched.root / "a" / "settings.toml").write_text("top_k = 1")
    assert await watched.looks(3) == ["a"]


async def test_a_version_below_those_wanted_changes_nothing(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.put("a", 2)
    assert await watched.looks() == ["a"]
    watched.put("a", 1)
    assert await watched.looks(4) == []


async def test_a_version_that_is_being_copied_is_left_until_it_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path)
    watched.put("a", 1)
    assert await watched.looks() == ["a"]
    source = tiny_model.write(tmp_path / "elsewhere", name="a", version=2, explain=False)
    target = watched.root / "a" / "2"
    target.mkdir()
    shutil.copy(source / "manifest.json", target)
    assert await watched.looks(4) == []
    content = (source / "model.onnx").read_bytes()
    (target / "model.onnx").write_bytes(content[:100])
    assert await watched.looks(4) == []
    (target / "model.onnx").write_bytes(content)
    shutil.copy(source / "labels.tsv", target)
    assert await watched.looks(3) == ["a"]
    assert warnings(caplog) == []


async def test_a_copy_that_was_given_up_is_reported_once_by_a_load_that_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path)
    (watched.put("a", 1) / "model.onnx").unlink()
    watched.error = LoadFailed("There is no model.onnx.")
    assert await watched.looks(3) == []
    watched.now_s += INCOMPLETE_S
    assert await watched.looks(3) == ["a"]
    assert warnings(caplog) == ["There is no model.onnx."]


async def test_what_cannot_be_loaded_is_tried_again_when_it_changes_and_not_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path)
    path = watched.put("a", 1)
    watched.error = LoadFailed("It is broken.")
    assert await watched.looks(6) == ["a"]
    assert warnings(caplog) == ["It is broken."]
    watched.error = None
    (path / "labels.tsv").write_text("other")
    tiny_model.write_manifest(path, name="a", version=1)
    assert await watched.looks(3) == ["a"]


async def test_models_that_are_not_asked_for_are_left_alone(tmp_path: Path) -> None:
    watched = Watched(tmp_path, model="a")
    watched.put("b", 1)
    assert await watched.looks() == []
    watched.publish(("b", 1, ModelState.READY))  # loaded by command
    assert await watched.looks(3) == ["b"]
    assert await Watched(tmp_path, model="all").looks() == ["b"]


@pytest.mark.parametrize("states", [[ModelState.UNLOADED], [ModelState.DRAINING, ModelState.UNLOADED]])
async def test_a_model_that_was_unloaded_stays_so(tmp_path: Path, states: list[ModelState]) -> None:
    watched = Watched(tmp_path, model="all")
    watched.put("a", 1)
    watched.publish(*(("a", number, state) for number, state in enumerate(states, 1)))
    watched.put("a", 2)
    assert await watched.looks(3) == []
    watched.publish(("a", 2, ModelState.READY))
    assert await watched.looks(3) == ["a"]


async def test_a_version_that_is_taken_away_gives_way_to_the_one_below(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.put("a", 1)
    newer = watched.put("a", 2)
    assert await watched.looks() == ["a"]
    shutil.rmtree(newer)
    assert await watched.looks(3) == ["a"]


async def test_what_is_taken_away_whole_stays_served_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path)
    watched.put("a", 1)
    assert await watched.looks() == ["a"]
    moved = (watched.root / "a").rename(tmp_path / "a")
    assert await watched.looks(4) == []
    (said,) = warnings(caplog)
    assert "stays served" in said
    moved.rename(watched.root / "a")
    assert await watched.looks(3) == ["a"]


async def test_a_repository_that_cannot_be_read_is_said_once_and_looked_at_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path)
    gone = watched.root.rename(tmp_path / "gone")
    assert await watched.looks(3) == []
    (said,) = warnings(caplog)
    assert "cannot be read" in said
    gone.rename(watched.root)
    watched.put("a", 1)
    assert await watched.looks() == ["a"]


@pytest.mark.parametrize("kind", ["version", "settings"])
async def test_why_it_is_not_known_what_to_load_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    watched = Watched(tmp_path, model="a:2" if kind == "version" else "a")
    watched.put("a", 1)
    if kind == "settings":
        (watched.root / "a" / "settings.toml").write_text("port = 1")
    assert await watched.looks(4) == []
    (said,) = warnings(caplog)
    assert ("no version 2 of a" if kind == "version" else "settings.toml: port") in said


async def test_it_looks_by_itself_until_it_is_cancelled(tmp_path: Path) -> None:
    watched = Watched(tmp_path, watch_interval_ms=1)
    watched.put("a", 1)
    task = asyncio.create_task(watched.watch.run())
    async with asyncio.timeout(PATIENCE_S):
        await watched.called.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_look_that_fails_as_nobody_expected_is_not_the_last(tmp_path: Path) -> None:
    watched = Watched(tmp_path, watch_interval_ms=1)
    watched.put("a", 1)
    watched.error = RuntimeError("a mistake in the program")
    watching = asyncio.create_task(watched.watch.run())
    async with asyncio.timeout(PATIENCE_S):
        await watched.called.wait()
        watched.error = None
        watched.called.clear()
        watched.put("a", 2)
        await watched.called.wait()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert watched.loaded == ["a", "a"]
