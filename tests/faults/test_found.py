"""What must hold after faults that few meet: each of these tests was written for one that broke something."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from service.engine.device_turns import DeviceTurns
from service.engine.room import Room
from service.engine.types import EngineState
from service.errors import LoadFailed, NotReady
from service.serving.served import ServedModels
from service.serving.states import ModelState, VersionStatus
from tests.service.conftest import until
from tests.service.engine.fakes import ScriptedSession, classify, running_in_thread
from tests.service.serving.test_registry import FakeHost, FakeRepository, registry_of

READY, FAILED, UNLOADED = ModelState.READY, ModelState.FAILED, ModelState.UNLOADED


@pytest.fixture
def repository(tmp_path: Path) -> FakeRepository:
    return FakeRepository(tmp_path)


def test_a_worker_in_which_nothing_is_loaded_yet_knows_what_is_served() -> None:
    """So begins a worker that takes the place of one that has ended."""
    models = ServedModels(default="tiny")
    models.publish([VersionStatus("tiny", 1, READY, is_default=True)], ())
    for version in (None, "1"):
        with pytest.raises(NotReady):
            models.resolve("tiny", version)


async def test_a_model_that_hangs_takes_no_room_from_the_others_for_ever(session: ScriptedSession) -> None:
    room, turns = Room(4), DeviceTurns()
    other = ScriptedSession()
    options = {"room": room, "turns": turns, "clock": time.monotonic}
    async with (
        running_in_thread(session, hang_after_s=0.05, **options) as hanging,
        running_in_thread(other, **options) as well,
    ):
        session.hold()
        calls = [asyncio.create_task(classify(hanging, colour)) for colour in range(4)]
        await session.run_started()
        for call in calls:
            with pytest.raises(NotReady):
                await call
        assert hanging.state is EngineState.DEAD
        await classify(well, 1)


async def test_a_model_that_hangs_can_be_unloaded(session: ScriptedSession) -> None:
    async with running_in_thread(session, hang_after_s=0.05, clock=time.monotonic) as engine:
        session.hold()
        call = asyncio.create_task(classify(engine, 1))
        await session.run_started()
        with pytest.raises(NotReady):
            await call
        async with asyncio.timeout(1.0):  # what `unload` waits for
            await engine.wait_empty()


@pytest.mark.parametrize("place", ["prove", "load"])
async def test_a_load_that_fails_as_nobody_expected_says_so_and_is_over(repository: FakeRepository, place: str) -> None:
    """No descriptors, no processes: the system says OSError."""
    host = FakeHost()

    async def cannot(*_: object) -> None:
        if armed:
            raise OSError(24, "Too many open files")

    armed = False
    registry = registry_of(repository, host, prove=cannot)
    await registry.start([repository.add("a", 1)])
    armed = True
    if place == "load":
        host.load = cannot  # type: ignore[method-assign, assignment]
        registry._prove = lambda _: asyncio.sleep(0)  # type: ignore[assignment]
    repository.add("a", 2)
    with pytest.raises(LoadFailed, match="Too many open files"):
        await registry.load("a")
    assert host.states() == {"a:1": READY, "a:2": FAILED}


async def test_a_model_is_loaded_once_where_it_is_asked_for_while_the_service_starts(
    repository: FakeRepository,
) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    host.may_load.clear()
    starting = asyncio.create_task(registry.start([repository.add("a", 1)]))
    await until(lambda: host.asked.count("load a:1") == 1)
    asked = asyncio.create_task(registry.load("a"))
    await asyncio.sleep(0.1)
    host.may_load.set()
    await asyncio.gather(starting, asked)
    assert host.asked.count("load a:1") == 1
    await registry.unload("a")
    assert host.loaded == {}


async def test_a_model_that_is_unloaded_while_the_service_starts_is_not_served(repository: FakeRepository) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    host.may_load.clear()
    starting = asyncio.create_task(registry.start([repository.add("a", 1), repository.add("b", 1)]))
    await until(lambda: host.asked.count("load a:1") == 1)
    leaving = asyncio.create_task(registry.unload("b"))
    await asyncio.sleep(0.1)
    host.may_load.set()
    await asyncio.gather(starting, leaving)
    assert host.states() == {"a:1": READY, "b:1": UNLOADED}


async def test_of_several_wanted_versions_one_that_fails_leaves_all_as_it_was(repository: FakeRepository) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    repository.policy = lambda versions: versions[-2:]
    await registry.start([repository.add("a", 1), repository.add("a", 2)])
    repository.add("a", 3)
    repository.add("a", 4)
    repository.broken.add(("a", 4))
    with pytest.raises(LoadFailed):
        await registry.load("a")
    assert host.serving == ["a:1", "a:2"]
    assert host.status(2).is_default
