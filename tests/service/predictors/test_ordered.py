from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from service.predictors.ordered import in_order


async def test_results_come_in_the_items_order_however_the_work_ends() -> None:
    last_ended = asyncio.Event()

    async def work(item: int) -> int:
        if item == 2:
            last_ended.set()
        else:
            await last_ended.wait()
        return item * 10

    assert [pair async for pair in in_order(range(3), work, concurrency=3)] == [(0, 0), (1, 10), (2, 20)]


async def test_no_more_items_are_held_than_asked_for_and_none_is_taken_early() -> None:
    taken, under_way, most = 0, 0, 0

    def items() -> list[int]:
        nonlocal taken
        for item in range(20):
            taken += 1
            yield item

    async def work(item: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return item

    done = 0
    async for _ in in_order(items(), work, concurrency=4):
        done += 1
        assert taken - done <= 3
    assert (done, most) == (20, 4)


async def test_items_may_come_asynchronously() -> None:
    async def items() -> AsyncIterator[str]:
        for item in "abc":
            await asyncio.sleep(0)
            yield item

    async def work(item: str) -> str:
        return item.upper()

    assert [result async for _, result in in_order(items(), work, concurrency=2)] == ["A", "B", "C"]


async def test_what_work_raises_is_raised_in_its_turn_and_the_rest_is_cancelled() -> None:
    cancelled: list[int] = []
    seen: list[int] = []

    async def work(item: int) -> int:
        if item == 1:
            raise LookupError("one")
        try:
            if item > 1:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        return item

    async def read() -> None:
        async for item, _ in in_order(range(4), work, concurrency=4):
            seen.append(item)

    with pytest.raises(LookupError, match="one"):
        await read()
    assert (seen, sorted(cancelled)) == ([0], [2, 3])


async def test_closing_ends_the_work_that_is_under_way() -> None:
    ended: list[int] = []

    async def work(item: int) -> int:
        try:
            if item:
                await asyncio.Event().wait()
        finally:
            ended.append(item)
        return item

    async with aclosing(in_order(range(10), work, concurrency=3)) as results:
        async for _ in results:
            break
    assert ended == [0, 1, 2]
