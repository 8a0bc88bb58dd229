from __future__ import annotations

import asyncio
import time

import pytest

from service.calls.in_flight import InFlight, Work
from service.errors import Cancelled, DeadlineExceeded, NotReady

FOR_EVER_S = 60


async def wait(work: Work) -> None:
    with work:
        await asyncio.sleep(FOR_EVER_S)


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
