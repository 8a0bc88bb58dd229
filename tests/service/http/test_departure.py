from __future__ import annotations

import asyncio
import time

import pytest
from starlette.types import Message

from service.calls.in_flight import Departure, InFlight, Work
from service.errors import Cancelled
from service.http.departure import DEPARTURE, watch

FOR_EVER_S = 60


async def begun(work: Work) -> asyncio.Task[None]:
    async def wait() -> None:
        with work:
            await asyncio.sleep(FOR_EVER_S)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    return task


async def never() -> Message:
    await asyncio.sleep(FOR_EVER_S)
    raise AssertionError("nobody waits so long")


async def test_client_that_goes_away_ends_the_work() -> None:
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    work = Work(InFlight())
    task = await begun(work)
    watch(work, {"state": {}}, incoming.get)
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
    watch(work, {"state": {DEPARTURE: departure}}, never)
    assert asyncio.all_tasks() == {asyncio.current_task(), task}
    departure.happen()
    with pytest.raises(Cancelled):
        await task


async def test_client_that_goes_after_its_answer_ends_nothing() -> None:
    departure = Departure()
    with Work(InFlight()) as work:
        watch(work, {"state": {DEPARTURE: departure}}, never)
        work.close()
        departure.happen()
        await asyncio.sleep(0)
    assert (current := asyncio.current_task()) is not None
    assert current.cancelling() == 0


async def test_nothing_is_left_behind_when_the_work_is_done() -> None:
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    with Work(InFlight()) as work:
        work.due_by(time.monotonic() + FOR_EVER_S)
        watch(work, {"state": {}}, incoming.get)
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
