"""Links between workers and engines, where only one shape has them; what both shapes share is in test_client."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AsyncExitStack

import numpy as np
import pytest

from service.engine.control import NotLoaded, Ping, Pong
from service.engine.core import DropReason
from service.engine.graphs import Graph
from service.engine.records import LAYOUTS, RecordSocket, Reply, ReplyKind, Request, request_for
from service.engine.shared import SLOW_COPY_BYTES, SharedSlots
from service.engine.types import EngineState, Outputs, Pixels
from service.errors import NotReady, RepositoryError
from tests.service.conftest import until
from tests.service.engine.fakes import (
    LOGITS,
    OWN,
    PATIENCE_S,
    SERIAL,
    Linked,
    RecordingObserver,
    ScriptedSession,
    attach,
    classify,
    colour,
    engine_for,
    item,
    linked,
    model_graph,
    paint,
    until_idle,
    until_queued,
)


class Lethal(BaseException):
    """What no session should raise, and the engine does not survive."""


class Featured(ScriptedSession):
    """Has an output that is large."""

    large = (2, SLOW_COPY_BYTES // 4)

    def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
        results = dict(super().run(images, tuple(name for name in outputs if name != "stage1")))
        if "stage1" in outputs:
            first = images[:, 0, 0, 0].astype(np.float32)
            results["stage1"] = np.broadcast_to(first[:, None, None], (len(images), *self.large)).copy()
        return results


async def heard(served: Linked, kind: type) -> object:
    """The next message of that kind that the supervisor gets."""
    while True:
        received = await asyncio.to_thread(served.control.receive)
        assert received is not None, "the engine has ended"
        if isinstance(received[0], kind):
            return received[0]


async def takes_work(served: Linked, *, engines: int = 1) -> None:
    """Return when so many engines take the worker's images."""
    await until(lambda: len(served.client._ready_engines()) == engines)


async def test_engine_that_ends_fails_what_it_had_and_its_successor_serves_the_next(session: ScriptedSession) -> None:
    async with linked(session, buckets=(1,)) as served:
        client = served.client
        await client.wait_ready()
        session.hold()
        in_flight, waiting = (asyncio.create_task(classify(client, value)) for value in (1, 2))
        await session.run_started()
        with client.reserve(1) as reservation:
            paint(reservation, 0, 3)
            session.faults.append(Lethal())
            session.let_go()
            for task in (in_flight, waiting):
                with pytest.raises(NotReady, match="not running"):
                    await task
            while await asyncio.to_thread(served.control.receive) is not None:
                pass  # until the engine's process would be gone
            assert isinstance(served.failures[0], Lethal)
            with pytest.raises(NotReady):
                await reservation.infer([0], LOGITS)
        assert (client.state, client.healthy, client.slots_in_use) == (EngineState.DEAD, False, 0)
        with pytest.raises(NotReady):
            client.check_room()
        async with engine_for(served, session):
            await takes_work(served)
            assert [colour(answer) for answer in await classify(client, *range(16))] == list(range(16))
            assert client.failure is None


async def test_work_of_a_worker_that_is_gone_is_never_run(session: ScriptedSession) -> None:
    observer = RecordingObserver()
    async with linked(session, buckets=(1,), observer=observer) as served:
        await served.client.wait_ready()
        session.hold()
        requests = [asyncio.create_task(classify(served.client, value)) for value in (1, 2, 3)]
        await session.run_started()
        await until_queued(served.client, 3)
        await served.client.stop()
        for request in requests:
            with pytest.raises(NotReady):
                await request
        session.let_go()
        await until(lambda: observer.drops)
        assert observer.batches == [(1, 1)]
        assert observer.drops == [(DropReason.CANCELLED, 2)]


async def test_successor_of_a_worker_gets_answers_of_its_own_though_its_predecessors_are_still_run(
    session: ScriptedSession,
) -> None:
    """Both say ticket 0 and slot 0, and mean different images in different memory."""
    async with linked(session, buckets=(1,)) as served:
        geometry = served.geometry
        ends, memories = [], []
        await served.client.wait_ready()  # else a run of the warm-up would be held
        session.hold()
        for number, value in enumerate((5, 9)):
            descriptor = SharedSlots.create(geometry)
            slots = SharedSlots(geometry, descriptor)
            assert slots.acquire(1) == [0]
            slots.pixels(0, OWN)[...] = value
            slots.submit([0])
            end = attach(served.control, 7, descriptor)
            request = request_for(item()._replace(ticket=0), geometry.graphs)
            end.sendall(LAYOUTS[Request].pack(*request))
            if number == 0:
                await session.run_started()
            ends.append(end)
            memories.append(slots)
            os.close(descriptor)
        session.let_go()
        kinds: list[int] = []
        records = RecordSocket(ends[1], Reply)
        while len(kinds) < 2:
            await readable(ends[1])
            kinds += [record.kind for record in records.receive()[0]]
        assert kinds == [ReplyKind.READY, ReplyKind.ANSWERED]
        for slots, value in zip(memories, (5, 9), strict=True):
            slots.fetch(0, OWN, LOGITS)
            assert slots.collect(0)["logits"].tolist() == [value * 24, value]
        while ends[0].recv(4096):  # what its predecessor's link still had to say, and then its end
            pass
        ends[0].close()
        records.close()


async def readable(end: socket.socket) -> None:
    """Wait until there is something to read."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(end.fileno(), ready.set)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await ready.wait()
    finally:
        loop.remove_reader(end.fileno())


async def test_large_results_come_back_whole_and_leave_no_memory_behind() -> None:
    session = Featured()
    async with linked(session, graphs=(model_graph(stage1=Featured.large),)) as served:
        await served.client.wait_ready()
        for _ in range(3):
            answers = await classify(served.client, *range(16), outputs=frozenset({"stage1", "logits"}))
            for value, answer in enumerate(answers):
                assert colour(answer) == value
                assert (answer.outputs["stage1"] == value).all()
                assert answer.outputs["stage1"].shape == Featured.large
        assert served.client.slots_in_use == 0
        assert os.fstat(served.memory).st_blocks * 512 < SLOW_COPY_BYTES


async def test_large_results_that_nobody_waits_for_leave_no_memory_behind() -> None:
    session = Featured()
    async with linked(session, graphs=(model_graph(stage1=Featured.large),)) as served:
        await served.client.wait_ready()
        session.hold()
        gone = asyncio.create_task(classify(served.client, 1, outputs=frozenset({"stage1"})))
        await session.run_started()
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        session.let_go()
        await until_idle(served.client)
        assert os.fstat(served.memory).st_blocks * 512 < SLOW_COPY_BYTES


async def test_a_call_goes_to_the_engine_with_the_least_waiting() -> None:
    sessions = [ScriptedSession(), ScriptedSession()]
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(linked(sessions[0], buckets=(1,), engines=2))
        await stack.enter_async_context(engine_for(served, sessions[1], number=1))
        await takes_work(served, engines=2)
        for session in sessions:
            session.runs.clear()
            session.hold()
        calls = [asyncio.create_task(classify(served.client, *range(images))) for images in (3, 1, 1)]
        for session in sessions:
            await session.run_started()
        await until_queued(served.client, 5)
        waiting = [served.board.waiting(engine) for engine in (0, 1)]
        for session in sessions:
            session.let_go()
        answers = [[colour(answer) for answer in await call] for call in calls]
        assert answers == [[0, 1, 2], [0], [0]]
        assert waiting == [3, 2]
        assert [len(session.runs) for session in sessions] == [3, 2]


async def test_model_that_cannot_be_loaded_is_told_to_the_supervisor(session: ScriptedSession) -> None:
    def load(_: Graph) -> ScriptedSession:
        raise RepositoryError("no model there")

    async with linked(session, load=load) as served:
        assert await heard(served, NotLoaded) == NotLoaded(SERIAL, "no model there")
        assert not served.client.healthy


async def test_model_whose_results_have_no_place_in_the_memory_is_never_ready(session: ScriptedSession) -> None:
    async with linked(session, graphs=(model_graph(logits=(3,)),)) as served:
        failed = await heard(served, NotLoaded)
        assert isinstance(failed, NotLoaded)
        assert "logits is (4, 2) where (4, 3) was promised" in failed.sentence


async def test_pings_are_answered_while_a_run_goes_on(session: ScriptedSession) -> None:
    async with linked(session) as served:
        await served.client.wait_ready()
        session.hold()
        call = asyncio.create_task(classify(served.client, 1))
        await session.run_started()
        served.control.send(Ping())
        await heard(served, Pong)
        assert served.board.engines[0].busy_since_s > 0
        session.let_go()
        assert colour((await call)[0]) == 1
        assert served.board.engines[0].busy_since_s == 0
