"""What the engine's callers see when it breaks: each failure reaches exactly those it concerns, and nothing hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.graphs import Graph
from service.engine.in_process import InProcessEngine
from service.engine.room import Room
from service.engine.types import EngineState
from service.errors import (
    DeviceUnavailable,
    InferenceFailed,
    NotReady,
    Overloaded,
    RepositoryError,
    ServiceError,
    StartupError,
)
from tests.service.engine.fakes import (
    LOGITS,
    PATIENCE_S,
    FakeClock,
    RecordingObserver,
    Running,
    ScriptedSession,
    classify,
    colour,
    in_s,
    model_graph,
    paint,
    running_in_thread,
    until_idle,
    until_queued,
)


class Lethal(BaseException):
    """What no session should raise, and the engine does not survive."""


async def test_an_exception_in_a_run_fails_that_batch_and_no_other(session: ScriptedSession, running: Running) -> None:
    async with running(session, buckets=(1, 2)) as engine:
        session.hold()
        first = asyncio.create_task(classify(engine, 1))
        await session.run_started()
        second = [asyncio.create_task(classify(engine, value)) for value in (2, 3)]
        await until_queued(engine, 3)
        third = asyncio.create_task(classify(engine, 4))
        await until_queued(engine, 4)
        session.faults.extend([None, RuntimeError("out of memory")])
        session.let_go()
        assert colour((await first)[0]) == 1
        for task in second:
            with pytest.raises(InferenceFailed):
                await task
        assert colour((await third)[0]) == 4
        assert engine.state is EngineState.READY
        assert engine.slots_in_use == 0


async def test_one_failed_batch_fails_a_request_whole_and_drops_what_it_still_had_waiting(
    session: ScriptedSession, running: Running
) -> None:
    observer = RecordingObserver()
    async with running(session, buckets=(2,), observer=observer) as engine:
        session.hold()
        session.faults.append(RuntimeError("out of memory"))
        request = asyncio.create_task(classify(engine, *range(8)))
        await session.run_started()
        session.let_one_go()
        with pytest.raises(InferenceFailed):
            await request
        session.let_go()
        await until_idle(engine)
        assert observer.failed == [(2, 2)]
        # The next batch may have begun before the caller could take its images back; the others are dropped.
        assert observer.batches in ([], [(2, 2)])
        assert sum(images for _, images in observer.drops) == 6 - 2 * len(observer.batches)


async def test_an_engine_that_fails_batch_after_batch_is_unhealthy_until_it_is_tried_again(
    session: ScriptedSession, running: Running
) -> None:
    clock = session.clock = FakeClock()
    async with running(session) as engine:
        session.faults.extend([RuntimeError("out of memory")] * 3)
        healths = []
        for _ in range(3):
            healths.append(engine.healthy)
            with pytest.raises(InferenceFailed):
                await classify(engine, 1)
        healths.append(engine.healthy)
        clock.now_s += 31
        healths.append(engine.healthy)
        await classify(engine, 1)
        healths.append(engine.healthy)
        assert healths == [True, True, True, False, True, True]


async def test_a_dead_thread_fails_everything_at_once_and_for_good(session: ScriptedSession) -> None:
    async with running_in_thread(session) as engine:
        session.hold()
        in_flight = asyncio.create_task(classify(engine, 1))
        await session.run_started()
        waiting = asyncio.create_task(classify(engine, 2))
        await until_queued(engine, 2)
        with engine.reserve(1) as reservation:
            paint(reservation, 0, 3)
            session.faults.append(Lethal())
            session.let_go()
            for task in (in_flight, waiting):
                with pytest.raises(NotReady, match="not running"):
                    await task
            with pytest.raises(NotReady):
                await reservation.infer([0], LOGITS)
        assert engine.state is EngineState.DEAD
        assert not engine.healthy
        assert "Lethal" in (engine.failure or "")
        with pytest.raises(NotReady):
            engine.reserve(1)
        assert engine.slots_in_use == 0


async def test_an_exception_outside_the_session_is_death_too(session: ScriptedSession) -> None:
    class Broken(RecordingObserver):
        def batch_ran(self, *, bucket: int, queue_s: Sequence[float], inference_s: float) -> None:
            raise ValueError("no such metric")

    async with running_in_thread(session, observer=Broken()) as engine:
        with pytest.raises(NotReady):
            await classify(engine, 1)
        assert engine.state is EngineState.DEAD
        assert engine.slots_in_use == 0


async def test_a_hanging_run_is_death_and_its_late_result_harms_nobody(session: ScriptedSession) -> None:
    async with running_in_thread(session, buckets=(1,), hang_after_s=0.05, clock=time.monotonic) as engine:
        session.hold()
        in_flight, waiting = (asyncio.create_task(classify(engine, value)) for value in (1, 2))
        for task in (in_flight, waiting):
            with pytest.raises(NotReady):
                await task
        assert "hangs" in (engine.failure or "")
        assert engine.slots_in_use == 2
        session.let_go()
        await engine.stop()
        assert engine.slots_in_use == 0
        assert engine.state is EngineState.DEAD
        assert session.runs == [(1, ("logits",))]


async def test_a_hanging_run_is_noticed_though_its_caller_has_gone(
    session: ScriptedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = session.clock = FakeClock()
    async with running_in_thread(session, hang_after_s=0.05) as engine:
        died, fail_calls = asyncio.Event(), engine._fail_calls

        def noting(tickets: Iterable[int]) -> None:
            fail_calls(tickets)
            died.set()

        monkeypatch.setattr(engine, "_fail_calls", noting)
        session.hold()
        gone = asyncio.create_task(classify(engine, 1))
        await session.run_started()
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        looked = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, looked.set)  # due after the engine was first looked at
        await looked.wait()
        healths = [engine.healthy]
        clock.now_s += 1
        healths.append(engine.healthy)
        assert healths == [True, False]
        async with asyncio.timeout(PATIENCE_S):
            await died.wait()
        assert "hangs" in (engine.failure or "")


async def test_a_thread_that_never_returns_does_not_keep_the_engine_from_stopping(session: ScriptedSession) -> None:
    async with running_in_thread(session) as engine:
        session.hold()
        request = asyncio.create_task(classify(engine, 1))
        await session.run_started()
        await engine.stop(timeout_s=0.01)
        with pytest.raises(NotReady):
            await request
        assert engine.state is EngineState.DEAD


@pytest.mark.parametrize("fault", [RepositoryError("no model there"), DeviceUnavailable("no GPU there")])
async def test_a_model_that_cannot_be_loaded_is_said_as_it_is(fault: ServiceError) -> None:
    def load(_: Graph) -> ScriptedSession:
        raise fault

    engine = InProcessEngine([model_graph(1)], load, input_shape=ScriptedSession.input_shape, room=Room(16))
    await engine.start()
    with pytest.raises(type(fault), match="there"):
        await engine.wait_ready()
    assert engine.state is EngineState.DEAD
    assert engine.failure == str(fault)
    with pytest.raises(NotReady):
        engine.check_room()
    await engine.stop()


async def test_an_unforeseen_failure_to_load_is_death_with_a_sentence() -> None:
    def load(_: Graph) -> ScriptedSession:
        raise KeyError("surprise")

    engine = InProcessEngine([model_graph(1)], load, input_shape=ScriptedSession.input_shape, room=Room(16))
    await engine.start()
    with pytest.raises(StartupError, match="KeyError"):
        await engine.wait_ready()
    assert engine.state is EngineState.DEAD
    await engine.stop()


async def test_a_failed_warm_up_is_never_ready(session: ScriptedSession) -> None:
    session.faults.append(RuntimeError("no such kernel"))
    engine = InProcessEngine(
        [model_graph(1, 2)], lambda _: session, input_shape=ScriptedSession.input_shape, room=Room(16)
    )
    await engine.start()
    with pytest.raises(StartupError, match="batch of 2 while warming up"):
        await engine.wait_ready()
    assert engine.state is EngineState.DEAD
    assert "no such kernel" in (engine.failure or "")
    await engine.stop()


requests = st.lists(
    st.fixed_dictionaries(
        {
            "images": st.integers(1, 6),
            "cancel_after": st.none() | st.integers(0, 12),
            "deadline_s": st.sampled_from([PATIENCE_S, 0.0, 0.0005, 0.002]),
            "infers": st.sampled_from(["all", "some", "none"]),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(requests=requests, faults=st.lists(st.sampled_from([None, None, RuntimeError("random fault")]), max_size=10))
async def test_slots_never_leak_and_answers_never_mix(
    running: Running, requests: list[dict[str, object]], faults: list[BaseException | None]
) -> None:
    session = ScriptedSession()

    async def ask(number: int, images: int, deadline_s: float, infers: str) -> None:
        with engine.reserve(images, deadline_s=in_s(deadline_s)) as reservation:
            for index in range(images):
                await asyncio.to_thread(paint, reservation, index, number * 10 + index)
            indices = {"all": range(images), "some": range(0, images, 2), "none": ()}[infers]
            answers = await reservation.infer(indices, LOGITS)
            assert [colour(answer) for answer in answers] == [number * 10 + index for index in indices]

    async with running(session, clock=time.monotonic) as engine:
        session.faults.extend(faults)
        tasks = []
        for number, request in enumerate(requests):
            cancel_after = request.pop("cancel_after")
            task = asyncio.create_task(ask(number, **request))  # type: ignore[arg-type]
            tasks.append(task)
            if isinstance(cancel_after, int):
                for _ in range(cancel_after):
                    await asyncio.sleep(0)
                task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        await until_idle(engine)
        assert engine.slots_in_use == 0
        assert engine.queue_depth == 0
        assert engine.state is EngineState.READY
        for end in ends:
            if isinstance(end, BaseException):
                assert isinstance(end, (asyncio.CancelledError, ServiceError)), end
                assert not isinstance(end, NotReady)
        assert any(not isinstance(end, Overloaded) for end in ends)
