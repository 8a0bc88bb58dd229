from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import Context

import pytest

from service.engine.admission import Backlog
from service.engine.core import DropReason
from service.engine.graphs import Graph
from service.engine.in_process import InProcessEngine
from service.engine.room import Room
from service.engine.slots import SlotStateError
from service.engine.types import EngineState, Priority
from service.errors import Cancelled, DeadlineExceeded, InvalidParameter, NotReady, Overloaded, StartupError
from tests.service.engine.fakes import (
    LOGITS,
    PATIENCE_S,
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


async def test_answers_come_in_the_order_that_was_asked_for(session: ScriptedSession, running: Running) -> None:
    async with running(session) as engine:
        with engine.reserve(3) as reservation:
            for index, value in enumerate((10, 20, 30)):
                paint(reservation, index, value)
            answers = await reservation.infer([2, 0], LOGITS)
            assert [colour(answer) for answer in answers] == [30, 10]
            assert engine.slots_in_use == 1
        assert engine.slots_in_use == 0


async def test_a_request_larger_than_the_largest_bucket_is_answered_whole(
    session: ScriptedSession, running: Running
) -> None:
    async with running(session, buckets=(1, 4)) as engine:
        answers = await classify(engine, *range(11))
        assert [colour(answer) for answer in answers] == list(range(11))


async def test_a_batch_forms_while_the_device_is_busy(session: ScriptedSession, running: Running) -> None:
    async with running(session) as engine:
        session.hold()
        first = asyncio.create_task(classify(engine, 1))
        await session.run_started()
        others = [asyncio.create_task(classify(engine, value)) for value in (2, 3, 4, 5)]
        await until_queued(engine, 5)
        session.let_go()
        answers = [(await task)[0] for task in (first, *others)]
        assert [colour(answer) for answer in answers] == [1, 2, 3, 4, 5]
        assert [answer.run.batch_size for answer in answers] == [1, 4, 4, 4, 4]


async def test_interactive_images_overtake_bulk_ones(session: ScriptedSession, running: Running) -> None:
    async with running(session, buckets=(1,)) as engine:
        session.hold()
        order: list[str] = []

        async def ask(name: str, priority: Priority) -> None:
            await classify(engine, 1, priority=priority)
            order.append(name)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask("first", Priority.BULK))
            await session.run_started()
            tasks.create_task(ask("bulk", Priority.BULK))
            await until_queued(engine, 2)
            tasks.create_task(ask("interactive", Priority.INTERACTIVE))
            await until_queued(engine, 3)
            session.let_go()
        assert order == ["first", "interactive", "bulk"]


async def test_a_waiting_request_that_is_cancelled_does_not_fail_its_batch(
    session: ScriptedSession, running: Running
) -> None:
    observer = RecordingObserver()
    async with running(session, observer=observer) as engine:
        session.hold()
        first = asyncio.create_task(classify(engine, 1))
        await session.run_started()
        gone, kept = (asyncio.create_task(classify(engine, value)) for value in (2, 3))
        await until_queued(engine, 3)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        session.let_go()
        assert [colour(answer) for answer in (*await first, *await kept)] == [1, 3]
        await until_idle(engine)
        assert sum(images for _, images in observer.batches) == 2
        assert observer.drops == [(DropReason.CANCELLED, 1)]


async def test_a_request_cancelled_during_its_run_keeps_its_slot_until_the_run_has_ended(
    session: ScriptedSession, running: Running
) -> None:
    async with running(session, max_queued_images=1) as engine:
        session.hold()
        gone = asyncio.create_task(classify(engine, 1))
        await session.run_started()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert engine.slots_in_use == 1
        with pytest.raises(Overloaded):
            engine.reserve(1)
        session.let_go()
        await until_idle(engine)
        assert engine.slots_in_use == 0


async def test_a_deadline_that_passes_in_the_queue_is_told_while_the_device_is_busy(
    session: ScriptedSession, running: Running
) -> None:
    observer = RecordingObserver()
    async with running(session, buckets=(1,), observer=observer, clock=time.monotonic) as engine:
        session.hold()
        first = asyncio.create_task(classify(engine, 1))
        await session.run_started()
        with pytest.raises(DeadlineExceeded):
            await classify(engine, 2, deadline_s=in_s(0.02))
        assert not first.done()
        session.let_go()
        assert colour((await first)[0]) == 1
        await until_idle(engine)
        assert session.runs == [(1, ("logits",))]
        assert DropReason.CANCELLED not in dict(observer.drops)


async def test_a_deadline_that_passes_in_the_run_is_told_at_once(session: ScriptedSession, running: Running) -> None:
    async with running(session, clock=time.monotonic) as engine:
        session.hold()
        with pytest.raises(DeadlineExceeded):
            await classify(engine, 1, deadline_s=in_s(0.02))
        session.let_go()
        await until_idle(engine)
        assert engine.slots_in_use == 0


async def test_a_deadline_that_has_passed_already_costs_no_run(session: ScriptedSession, running: Running) -> None:
    async with running(session, clock=time.monotonic) as engine:
        with pytest.raises(DeadlineExceeded):
            await classify(engine, 1, deadline_s=in_s(-1))
        assert session.runs == []
        assert engine.slots_in_use == 0


async def test_a_full_queue_refuses_without_losing_what_it_holds(session: ScriptedSession, running: Running) -> None:
    async with running(session, max_queued_images=4) as engine:
        session.hold()
        held = asyncio.create_task(classify(engine, 1, 2, 3))
        await session.run_started()
        engine.check_room(1)
        for refused in (engine.check_room, engine.reserve):
            with pytest.raises(Overloaded, match="3 of 4 places are taken, and 2 would be needed"):
                refused(2)
        last = asyncio.create_task(classify(engine, 4))
        await until_queued(engine, 4)
        with pytest.raises(Overloaded):
            engine.check_room()
        session.let_go()
        assert [colour(answer) for answer in (*await held, *await last)] == [1, 2, 3, 4]
        engine.check_room(4)


@pytest.mark.parametrize(("image_s", "retry_after_s"), [(2.0, 4.0), (0.001, 1.0), (1000.0, 60.0)])
async def test_an_overloaded_engine_says_when_there_will_be_room(
    session: ScriptedSession, running: Running, image_s: float, retry_after_s: float
) -> None:
    session.run_s, session.image_s = 0.0, image_s
    async with running(session, max_queued_images=4) as engine:
        with engine.reserve(4), pytest.raises(Overloaded) as refusal:
            engine.reserve(2)
        assert refusal.value.retry_after_s == pytest.approx(retry_after_s)


async def test_work_that_would_be_answered_too_late_is_refused_at_once(
    session: ScriptedSession, running: Running
) -> None:
    session.run_s, session.image_s = 0.0, 2.0
    async with running(session) as engine:
        assert session.clock is not None
        with engine.reserve(4), engine.reserve(3, priority=Priority.BULK):
            in_time_s = session.clock() + 2.0 * (4 + 3 + 1)
            engine.check_room(1, deadline_s=in_time_s + 0.01)
            for refused in (engine.check_room, engine.reserve):
                with pytest.raises(Overloaded, match="deadline") as refusal:
                    refused(1, deadline_s=in_time_s - 1.5)
                assert refusal.value.retry_after_s == pytest.approx(1.5)
            with pytest.raises(Overloaded):
                engine.check_room(1, priority=Priority.BULK, deadline_s=session.clock() + 15.9)
            engine.check_room(1, priority=Priority.BULK, deadline_s=session.clock() + 16.1)
        engine.check_room(1, deadline_s=session.clock() + 0.1)
        assert engine.slots_in_use == 0


async def test_a_bound_on_the_wait_refuses_what_would_wait_longer_whatever_its_deadline(
    session: ScriptedSession, running: Running
) -> None:
    session.run_s, session.image_s = 0.0, 2.0
    async with running(session, max_wait_s=7.0) as engine:
        with engine.reserve(3):
            engine.check_room(10)
            with engine.reserve(1), pytest.raises(Overloaded, match=r"wait about 8\.0 s for its turn") as refusal:
                engine.reserve(1)
            assert refusal.value.retry_after_s == 1.0
            engine.check_room(10)


async def test_bulk_work_that_ended_or_was_given_up_is_behind_nobody(
    session: ScriptedSession, running: Running
) -> None:
    async with running(session) as engine:
        with engine.reserve(2, priority=Priority.BULK):
            assert engine.backlog == Backlog(0, 2)
        await classify(engine, 1, 2, priority=Priority.BULK)
        assert engine.backlog == Backlog(0, 0)
        assert engine.answered == 2
        with engine.reserve(2):
            assert engine.backlog == Backlog(2, 0)


async def test_an_unknown_output_is_refused_before_it_can_fail_a_batch(
    session: ScriptedSession, running: Running
) -> None:
    async with running(session) as engine:
        with pytest.raises(InvalidParameter, match="some of logits, embedding; asked for was stage9"):
            await classify(engine, 1, outputs=frozenset({"stage9"}))
        assert engine.slots_in_use == 0


async def test_a_slot_is_not_given_away_while_a_thread_writes_it(session: ScriptedSession, running: Running) -> None:
    async with running(session, max_queued_images=1) as engine:
        writing, may_end = threading.Event(), threading.Event()

        def decode() -> None:
            with reservation.writing(0) as pixels:
                writing.set()
                assert may_end.wait(PATIENCE_S)
                pixels[...] = 9

        with engine.reserve(1) as reservation:
            decoding = asyncio.create_task(asyncio.to_thread(decode))
            assert await asyncio.to_thread(writing.wait, PATIENCE_S)
        with pytest.raises(Overloaded):
            engine.reserve(1)
        may_end.set()
        await decoding
        assert colour((await classify(engine, 5))[0]) == 5


async def test_a_thread_that_comes_after_the_request_has_gone_is_turned_away(
    session: ScriptedSession, running: Running
) -> None:
    async with running(session) as engine:
        with engine.reserve(1) as reservation:
            pass
        with pytest.raises(Cancelled):
            paint(reservation, 0, 1)


async def test_pixels_belong_to_the_engine_once_they_are_inferred(session: ScriptedSession, running: Running) -> None:
    async with running(session) as engine:
        with engine.reserve(2) as reservation:
            for index in (0, 1):
                paint(reservation, index, index)
            with pytest.raises(SlotStateError):
                await reservation.infer([1, 1], LOGITS)
            with reservation.writing(1), pytest.raises(SlotStateError):
                await reservation.infer([0, 1], LOGITS)
            await reservation.infer([0], LOGITS)
            with pytest.raises(SlotStateError):
                paint(reservation, 0, 1)
        assert engine.slots_in_use == 0


async def test_nothing_to_infer_is_answered_with_nothing(session: ScriptedSession, running: Running) -> None:
    async with running(session) as engine:
        with engine.reserve(1) as reservation:
            assert await reservation.infer([], LOGITS) == []


async def test_a_loading_engine_refuses_until_its_warm_up_is_over(session: ScriptedSession) -> None:
    may_load = threading.Event()

    def load(_: Graph) -> ScriptedSession:
        assert may_load.wait(PATIENCE_S)
        return session

    engine = InProcessEngine([model_graph(1, 2)], load, input_shape=ScriptedSession.input_shape, room=Room(16))
    await engine.start()
    before = engine.state, engine.healthy
    with pytest.raises(NotReady, match="still being loaded"):
        engine.reserve(1)
    session.hold()
    may_load.set()
    await session.run_started()
    with pytest.raises(NotReady, match="still being loaded"):
        engine.reserve(1)
    session.let_go()
    await engine.wait_ready()
    engine.check_room()
    assert before == (EngineState.LOADING, False)
    assert (engine.state, engine.healthy) == (EngineState.READY, True)
    assert {bucket for bucket, _ in session.runs} == {1, 2}
    await engine.stop()


async def test_stopping_fails_what_still_waits_and_frees_its_slots(session: ScriptedSession) -> None:
    async with running_in_thread(session) as engine:
        session.hold()
        running_one = asyncio.create_task(classify(engine, 1))
        await session.run_started()
        waiting = asyncio.create_task(classify(engine, 2))
        await until_queued(engine, 2)
        stopping = asyncio.create_task(engine.stop())
        for task in (running_one, waiting):
            with pytest.raises(NotReady):
                await task
        session.let_go()
        await stopping
        assert engine.state is EngineState.DEAD
        assert engine.slots_in_use == 0
        assert session.runs == [(1, ("logits",))]


async def test_an_engine_stopped_while_loading_tells_those_who_wait_for_it(session: ScriptedSession) -> None:
    may_load = threading.Event()

    def load(_: Graph) -> ScriptedSession:
        assert may_load.wait(PATIENCE_S)
        return session

    engine = InProcessEngine([model_graph(1)], load, input_shape=ScriptedSession.input_shape, room=Room(16))
    await engine.start()
    waiting = asyncio.create_task(engine.wait_ready())
    stopping = asyncio.create_task(engine.stop(PATIENCE_S))
    with pytest.raises(StartupError, match="was stopped"):
        await waiting
    may_load.set()
    await stopping
    assert session.runs  # its loading ended after all, and changes nothing
    assert engine.state is EngineState.DEAD


async def test_a_step_wakes_the_event_loop_once_however_many_images_it_ends(
    session: ScriptedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_in_thread(session, buckets=(8,)) as engine:
        loop = asyncio.get_running_loop()
        wake_ups = []
        call_soon_threadsafe = loop.call_soon_threadsafe

        def counting(callback: Callable[..., object], *args: object, **options: Context) -> asyncio.Handle:
            if threading.current_thread().name == "engine":
                wake_ups.append(callback)
            return call_soon_threadsafe(callback, *args, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
        await classify(engine, *range(8))
        assert len(wake_ups) == 1


async def test_max_delay_lets_an_image_wait_for_company(session: ScriptedSession, running: Running) -> None:
    async with running(session, buckets=(1, 2), max_delay_s=PATIENCE_S) as engine:
        alone = asyncio.create_task(classify(engine, 1))
        await until_queued(engine, 1)
        company = asyncio.create_task(classify(engine, 2))
        assert [(await task)[0].run.batch_size for task in (alone, company)] == [2, 2]


async def test_an_engine_is_started_once(session: ScriptedSession) -> None:
    async with running_in_thread(session) as engine:
        with pytest.raises(RuntimeError, match="started once"):
            await engine.start()
