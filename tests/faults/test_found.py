"""What must hold after faults that few meet: each of these tests was written for one that broke something."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import weakref
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from service.engine.control import Load, Loaded, Unload, Unloaded
from service.engine.device_turns import DeviceTurns
from service.engine.room import Room
from service.engine.shared import Geometry, SharedSlots
from service.engine.types import EngineState
from service.errors import NotReady
from service.model.directory import open_model
from service.model.loading import LoadFacts
from service.model.manifest import GraphForm
from service.processes.fleet import Fleet
from service.processes.plan import Plan, Publish, Published
from service.processes.roles import EngineRole, WorkerRole
from service.serving.registry import Candidate
from service.serving.served import ServedModels
from service.serving.states import ModelState, VersionStatus
from service.settings import Settings
from tests.faults.load import pid_of
from tests.faults.load import until as until_http
from tests.faults.test_replacing import load, shape_of, states, write
from tests.integration.conftest import service_process
from tests.service import tiny_model
from tests.service.conftest import until
from tests.service.engine.fakes import ScriptedSession, classify, model_graph, running_in_thread

READY = ModelState.READY


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


class Answering:
    """A process, as the fleet sees it, that does at once what it is told, unless it holds back what it has in hand."""

    def __init__(self, fleet: Fleet, role: Any, *, drains: bool = False) -> None:
        self.control = self
        self.drains = drains
        self.left: list[int] = []
        self._fleet, self._role = fleet, role

    def send(self, message: object, descriptors: object = ()) -> bool:
        answer = None
        match message:
            case Load(serial) if isinstance(self._role, EngineRole):
                answer = Loaded(serial, LoadFacts(GraphForm.STANDARD, None))
            case Publish(revision):
                answer = Published(revision)
            case Unload(serial) if self.drains:
                self.left.append(serial)
            case Unload(serial):
                answer = Unloaded(serial)
        if answer is not None:
            asyncio.get_running_loop().call_soon(self._fleet.hear, self._role, answer)
        return True


async def test_a_version_is_let_go_of_though_a_worker_was_started_anew_while_another_drained(tmp_path: Path) -> None:
    settings = Settings(device="cpu", workers=2, batch_buckets=(1,))
    plan = Plan(settings, "tiny", tmp_path)
    workers = [WorkerRole(plan, number, listener=cast("Any", None), key_limits=0) for number in range(2)]
    engine = EngineRole(plan, 0, "cpu")
    fleet = Fleet(workers, lambda _: [engine], resolve=lambda device: device, statuses=())
    children = [Answering(fleet, role, drains=True) for role in workers]
    for role, child in zip([*workers, engine], [*children, Answering(fleet, engine)], strict=True):
        role.child, role.was_ready = cast("Any", child), True
    candidate = Candidate(open_model(tiny_model.write(tmp_path, explain=False)), settings)
    await fleet.load(1, candidate, on_reloaded=lambda _: None)
    unloading = asyncio.create_task(fleet.unload(1))
    await until(lambda: all(child.left for child in children))
    workers[1].child = None
    fleet.lost(workers[1], "was killed")
    await asyncio.sleep(0)
    workers[1].child = cast("Any", Answering(fleet, workers[1]))
    fleet.introduce(workers[1])
    fleet.hear(workers[0], Unloaded(1))
    async with asyncio.timeout(1.0):
        await unloading


async def test_a_fleet_tells_what_an_engine_that_was_lost_runs_when_it_is_back(tmp_path: Path) -> None:
    settings = Settings(device="cpu", workers=1, devices=("cpu", "cpu"), batch_buckets=(1,))
    plan = Plan(settings, "tiny", tmp_path)
    worker = WorkerRole(plan, 0, listener=cast("Any", None), key_limits=0)
    engines = [EngineRole(plan, number, "cpu") for number in range(2)]
    fleet = Fleet([worker], lambda _: engines, resolve=lambda device: device, statuses=())
    for role in (worker, *engines):
        role.child, role.was_ready = cast("Any", Answering(fleet, role)), True
    told: list[Any] = []
    candidate = Candidate(open_model(tiny_model.write(tmp_path, explain=False)), settings)
    first = await fleet.load(1, candidate, on_reloaded=told.append)
    assert (first.graphs, told) == ((GraphForm.STANDARD, GraphForm.STANDARD), [])
    fleet.lost(engines[1], "was killed")
    fleet.hear(engines[1], Loaded(1, LoadFacts(GraphForm.FUSED, None)))
    assert [each.graphs for each in told] == [(GraphForm.STANDARD, GraphForm.FUSED)]
    await fleet.unload(1)


def test_the_end_of_a_worker_that_has_had_a_model_loaded_does_not_end_the_service(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with service_process(tmp_path, *shape_of(2), "--max-restart-delay-ms", "100") as process:
        write(tmp_path, 2)

        def ask() -> None:
            with pytest.raises(httpx.TransportError):
                load(process)

        asking = threading.Thread(target=ask)
        asking.start()
        until_http(lambda: 2 in states(process))
        for worker in ("worker-0", "worker-1"):
            os.kill(pid_of(process, worker), signal.SIGKILL)
        asking.join()

        def is_replaced() -> bool:
            assert process.popen.poll() is None, "the service has ended"
            try:
                return states(process).get(2, ("",))[0] == "ready"
            except httpx.TransportError:
                return False

        until_http(is_replaced)


def test_the_memory_of_slots_is_given_back_at_once_and_not_when_the_collector_comes_by() -> None:
    geometry = Geometry(4, (2, 4, 3), (model_graph(1, 2),))
    descriptor = SharedSlots.create(geometry)
    slots = SharedSlots(geometry, descriptor)
    os.close(descriptor)
    gone = weakref.ref(slots)
    gc.disable()
    try:
        del slots
        assert gone() is None
    finally:
        gc.enable()
