from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import pytest

from service.engine.turns import BULK_EVERY
from service.engine.types import Priority
from service.images.pool import DecodePool
from tests.service.conftest import until

PATIENCE_S = 60


@contextmanager
def held(pool: DecodePool) -> Iterator[asyncio.Future[bool]]:
    """Keep the pool's one thread busy until the block ends."""
    has_begun, may_end = threading.Event(), threading.Event()

    def wait() -> bool:
        has_begun.set()
        return may_end.wait(PATIENCE_S)

    try:
        ended = pool.run(Priority.INTERACTIVE, wait)
        assert has_begun.wait(PATIENCE_S)
        yield ended
    finally:
        may_end.set()


class Stuck:
    """Work that a test lets go on when it likes."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.may_end.wait(PATIENCE_S)
        return "nobody's"


async def abandoned(pool: DecodePool) -> Stuck:
    """Have the pool begin something, and give it up."""
    stuck = Stuck()
    future = pool.run(Priority.INTERACTIVE, stuck)
    await asyncio.to_thread(stuck.begun.wait, PATIENCE_S)
    future.cancel()
    await asyncio.sleep(0)  # the pool hears of it in the next turn of the loop
    return stuck


def threads_of_pools() -> int:
    return sum(thread.name.startswith("decode-") for thread in threading.enumerate())


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    made = DecodePool(1)
    yield made
    made.shutdown()


async def test_interactive_work_goes_before_bulk_that_came_first_and_every_eighth_is_bulk(pool: DecodePool) -> None:
    begun: list[Priority] = []
    with held(pool):
        ends = [pool.run(Priority.BULK, begun.append, Priority.BULK) for _ in range(20)]
        ends += [pool.run(Priority.INTERACTIVE, begun.append, Priority.INTERACTIVE) for _ in range(3 * BULK_EVERY)]
    await asyncio.gather(*ends)
    while_both_wait, rest = begun[: 3 * BULK_EVERY], begun[4 * BULK_EVERY :]
    assert while_both_wait == ([Priority.INTERACTIVE] * (BULK_EVERY - 1) + [Priority.BULK]) * 3
    assert rest == [Priority.BULK] * len(rest)
    assert len(begun) == 20 + 3 * BULK_EVERY


@pytest.mark.parametrize("priority", Priority)
async def test_work_of_one_priority_begins_in_the_order_it_came(pool: DecodePool, priority: Priority) -> None:
    begun: list[int] = []
    with held(pool):
        ends = [pool.run(priority, begun.append, number) for number in range(20)]
    await asyncio.gather(*ends)
    assert begun == list(range(20))


async def test_cancelled_work_is_not_begun_and_holds_nobody_up(pool: DecodePool) -> None:
    begun: list[str] = []
    with held(pool):
        gone = pool.run(Priority.INTERACTIVE, begun.append, "gone")
        kept = pool.run(Priority.BULK, begun.append, "kept")
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
    await kept
    assert begun == ["kept"]


async def test_exception_is_the_callers_and_the_thread_goes_on(pool: DecodePool) -> None:
    with pytest.raises(ZeroDivisionError):
        await pool.run(Priority.BULK, divmod, 1, 0)
    assert await pool.run(Priority.BULK, divmod, 7, 2) == (3, 1)


async def test_work_that_failed_is_not_kept_alive_by_its_exception(pool: DecodePool) -> None:
    class Image:
        def decode(self) -> None:
            raise ValueError("undecodable")

    image = Image()
    alive = weakref.ref(image)
    gc.disable()
    try:
        ended = pool.run(Priority.INTERACTIVE, image.decode)
        del image
        await asyncio.gather(ended, return_exceptions=True)
        await pool.run(Priority.INTERACTIVE, int)  # the thread has let go of the work before
        del ended
        assert alive() is None
    finally:
        gc.enable()


async def test_shutdown_finishes_what_has_begun_and_cancels_the_rest() -> None:
    pool = DecodePool(1)
    begun: list[str] = []
    with held(pool) as first:
        waiting = pool.run(Priority.BULK, begun.append, "waiting")
        stopping = asyncio.create_task(asyncio.to_thread(pool.shutdown))
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not stopping.done()
    assert await first
    await stopping
    assert begun == []
    with pytest.raises(RuntimeError):
        pool.run(Priority.BULK, begun.append, "late")


async def test_work_sees_the_context_of_whoever_asked_for_it(pool: DecodePool) -> None:
    asked: ContextVar[str] = ContextVar("asked", default="nobody")
    with held(pool):
        ends = []
        for name in ("first", "second"):
            asked.set(name)
            ends.append(pool.run(Priority.INTERACTIVE, asked.get))
    assert await asyncio.gather(*ends) == ["first", "second"]


async def test_work_that_is_given_up_while_it_runs_takes_no_place_from_others() -> None:
    told: list[int] = []
    pool = DecodePool(1, on_abandoned=told.append)
    stuck = await abandoned(pool)
    assert told == [1]
    assert await pool.run(Priority.BULK, divmod, 7, 2) == (3, 1)
    stuck.may_end.set()
    await until(lambda: told == [1, 0])
    pool.shutdown()


async def test_work_waits_where_as_many_threads_are_stuck_as_are_replaced() -> None:
    told: list[int] = []
    pool = DecodePool(2, on_abandoned=told.append)
    stuck = [await abandoned(pool) for _ in range(4)]
    waiting = pool.run(Priority.INTERACTIVE, divmod, 7, 2)
    given_up = pool.run(Priority.INTERACTIVE, divmod, 1, 0)
    given_up.cancel()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert told == [1, 2, 3, 4]
    assert threads_of_pools() == 4
    stuck[0].may_end.set()
    assert await waiting == (3, 1)
    for each in stuck:
        each.may_end.set()
    await until(lambda: told[-1] == 0)
    pool.shutdown()


async def test_threads_in_place_of_stuck_ones_end_when_those_come_back() -> None:
    pool = DecodePool(2)
    stuck = [await abandoned(pool) for _ in range(2)]
    await asyncio.gather(*(pool.run(Priority.BULK, divmod, 7, 2) for _ in range(10)))
    assert threads_of_pools() > 2
    for each in stuck:
        each.may_end.set()
    await until(lambda: threads_of_pools() == 2)
    assert await pool.run(Priority.BULK, divmod, 7, 2) == (3, 1)
    pool.shutdown()


async def test_work_given_up_while_all_threads_are_stuck_is_not_kept(pool: DecodePool) -> None:
    class Image:
        def decode(self) -> None:
            """Never begun."""

    image = Image()
    alive = weakref.ref(image)
    with held(pool):
        waiting = pool.run(Priority.INTERACTIVE, image.decode)
        del image
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.sleep(0)
        assert alive() is None


async def test_shutdown_leaves_a_stuck_thread_behind_that_keeps_no_process_from_ending() -> None:
    pool = DecodePool(1)
    stuck = await abandoned(pool)
    began_s = time.monotonic()
    pool.shutdown(0.01)
    assert time.monotonic() - began_s < PATIENCE_S / 2
    (left,) = [thread for thread in threading.enumerate() if thread.name.startswith("decode-")]
    assert left.daemon
    stuck.may_end.set()
    left.join(PATIENCE_S)


def test_thread_that_comes_back_after_its_event_loop_has_closed_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool, stuck = DecodePool(1), Stuck()

    async def begin() -> None:
        pool.run(Priority.INTERACTIVE, stuck)
        await asyncio.to_thread(stuck.begun.wait, PATIENCE_S)

    asyncio.run(begin())
    stuck.may_end.set()
    pool.shutdown(PATIENCE_S)
    assert threads_of_pools() == 0
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
