from __future__ import annotations

import asyncio
import time

import pytest
from starlette.types import Message

from service.errors import Cancelled, DeadlineExceeded, NotReady
from service.http.in_flight import DEPARTURE, Departure, InFlight, Work

FOR_EVER_S = 60


async def wait(work: Work) -> None:
    with work:
        await asyncio.sleep(FOR_EVER_S)


async def never() -> Message:
    await asyncio.sleep(FOR_EVER_S)
    raise AssertionError("nobody waits so long")


async def begun(work: Work) -> asyncio.Task[None]:
    task = asyncio.create_task(wait(work))
    await asyncio.sleep(0)
    return task


async def test_work_is_ended_at_its_deadline_and_not_before() -> None:
    work = Work(InFlight())
    work.due_by(deadline_s := time.monotonic() + 0.05)
    with pytest.raises(DeadlineExceeded):
        await wait(work)
    assert time.monotonic() >= deadline_s


async def test_deadline_that_has_passed_already_ends_the_work() -> None:
    work = Work(InFlight())
    task = await begun(work)
    work.due_by(time.monotonic() - 1)
    with pytest.raises(DeadlineExceeded):
        await task


async def test_deadline_may_become_earlier_and_never_later() -> None:
    work = Work(InFlight())
    task = await begun(work)
    work.due_by(time.monotonic() + FOR_EVER_S)
    work.due_by(earlier_s := time.monotonic() + 0.02)
    work.due_by(earlier_s + FOR_EVER_S)
    assert work.deadline_s == earlier_s
    with pytest.raises(DeadlineExceeded):
        await task


async def test_giving_up_ends_all_that_is_in_flight_and_all_that_comes() -> None:
    in_flight = InFlight()
    tasks = [await begun(Work(in_flight)) for _ in range(3)]
    in_flight.give_up()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [NotReady] * 3
    with pytest.raises(NotReady):
        await wait(Work(in_flight))


async def test_first_reason_is_the_one_that_counts() -> None:
    in_flight = InFlight()
    work = Work(in_flight)
    task = await begun(work)
    work.end(Cancelled("first"))
    in_flight.give_up()
    with pytest.raises(Cancelled, match="first"):
        await task


async def test_cancellation_by_somebody_else_stays_one() -> None:
    task = await begun(Work(InFlight()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancellation_by_somebody_else_at_the_same_time_is_not_swallowed() -> None:
    work = Work(InFlight())
    task = await begun(work)
    work.end(NotReady("too"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_timeout_inside_is_told_from_the_works_end() -> None:
    with Work(InFlight()), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(FOR_EVER_S)
    work = Work(InFlight())

    async def wait_long() -> None:
        with work:
            async with asyncio.timeout(FOR_EVER_S):
                await asyncio.sleep(FOR_EVER_S)

    task = asyncio.create_task(wait_long())
    await asyncio.sleep(0)
    work.end(NotReady("over"))
    with pytest.raises(NotReady):
        await task


async def test_nothing_ends_work_whose_answer_has_begun() -> None:
    in_flight = InFlight()
    with Work(in_flight) as work:
        work.due_by(time.monotonic() + 0.01)
        work.close()
        in_flight.give_up()
        await asyncio.sleep(0.03)
    assert (current := asyncio.current_task()) is not None
    assert current.cancelling() == 0


async def test_client_that_goes_away_ends_the_work() -> None:
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    work = Work(InFlight())
    task = await begun(work)
    work.watch({"state": {}}, incoming.get)
    incoming.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    incoming.put_nowait({"type": "http.disconnect"})
    with pytest.raises(Cancelled):
        await task


@pytest.mark.parametrize("is_early", [False, True], ids=["later", "before"])
async def test_client_whose_server_says_that_it_goes_ends_the_work_without_a_task(is_early: bool) -> None:
    departure, work = Departure(), Work(InFlight())
    task = await begun(work)
    if is_early:
        departure.happen()
    work.watch({"state": {DEPARTURE: departure}}, never)
    assert asyncio.all_tasks() == {asyncio.current_task(), task}
    departure.happen()
    with pytest.raises(Cancelled):
        await task


async def test_client_that_goes_after_its_answer_ends_nothing() -> None:
    departure = Departure()
    with Work(InFlight()) as work:
        work.watch({"state": {DEPARTURE: departure}}, never)
        work.close()
        departure.happen()
        await asyncio.sleep(0)
    assert (current := asyncio.current_task()) is not None
    assert current.cancelling() == 0


async def test_nothing_is_left_behind_when_the_work_is_done() -> None:
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    with Work(InFlight()) as work:
        work.due_by(time.monotonic() + FOR_EVER_S)
        work.watch({"state": {}}, incoming.get)
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
