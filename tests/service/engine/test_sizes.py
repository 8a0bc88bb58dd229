"""An engine of images of any shape: each run is of one, in the thread and in the process alike."""

from __future__ import annotations

import asyncio
import mmap
import os
import random

import numpy as np
import pytest

from service.engine.graphs import FreeSize, Graph
from service.engine.shared import Geometry, SharedSlots
from service.engine.slots import SlotPool, SlotStateError
from service.engine.types import Priority, Shape, pixels_of
from service.errors import InvalidParameter, Overloaded
from tests.service.engine.fakes import (
    FIRST,
    LOGITS,
    OWN,
    Running,
    ScriptedSession,
    classify,
    colour,
    free_graph,
    model_graph,
    other_graph,
    until_idle,
    until_queued,
)

EMBEDDING = frozenset({"embedding"})


@pytest.fixture
def session() -> ScriptedSession:
    scripted = ScriptedSession()
    scripted.free_size = True
    return scripted


async def test_images_of_every_shape_are_answered_in_runs_of_one_shape(
    session: ScriptedSession, running: Running
) -> None:
    shapes: list[Shape] = [OWN, (1, 1), (8, 8), (5, 3), (1, 64)]
    async with running(session, graphs=(free_graph(), other_graph()), max_queued_images=64) as engine:
        session.shapes.clear()
        session.hold()
        held = asyncio.create_task(classify(engine, 1))
        await session.run_started()
        calls = [
            (value, shape, asyncio.create_task(classify(engine, value, outputs=LOGITS | EMBEDDING, shape=shape)))
            for value, shape in enumerate(shapes * 3, start=1)
        ]
        await until_queued(engine, 1 + len(calls))
        session.let_go()
        for value, shape, call in calls:
            (answer,) = await call
            assert colour(answer, shape) == value
            assert answer.outputs["embedding"].tolist() == [value] * pixels_of(shape) * 3
        await held
    # the oldest goes first and others of its shape with it; a run has no more pixels than four of the model's own
    expected = [
        *((OWN, 1), (OWN, 4), ((1, 1), 4), ((8, 8), 1), ((5, 3), 2), ((1, 64), 1)),
        *(((8, 8), 1), ((1, 64), 1), ((8, 8), 1), ((5, 3), 1), ((1, 64), 1)),
    ]
    assert [(shape, size) for shape, (size, _) in zip(session.shapes, session.runs, strict=True)] == expected


@pytest.mark.parametrize("shape", [(9, 8), (1, 65)])
async def test_an_image_larger_than_a_graph_takes_is_refused(
    session: ScriptedSession, running: Running, shape: Shape
) -> None:
    async with running(session, graphs=(free_graph(),)) as engine:
        with pytest.raises(InvalidParameter, match=f"at most 64 pixels are taken; {shape[0]}x{shape[1]} has more"):
            engine.reserve(1, shape=shape)
        assert engine.slots_in_use == 0


async def test_a_graph_of_one_size_refuses_others_beside_one_that_takes_them(
    session: ScriptedSession, running: Running
) -> None:
    async with running(session, graphs=(free_graph(), other_graph())) as engine:
        with pytest.raises(InvalidParameter, match="Images of 2x4 pixels are taken, not of 3x3"):
            await classify(engine, 1, outputs=FIRST, shape=(3, 3))
        assert engine.slots_in_use == 0
        assert colour((await classify(engine, 5, shape=(3, 3)))[0], (3, 3)) == 5


async def test_a_model_of_one_size_refuses_others(session: ScriptedSession, running: Running) -> None:
    async with running(session, graphs=(model_graph(),)) as engine:
        with pytest.raises(InvalidParameter, match="Images of 2x4 pixels are taken, not of 4x2"):
            engine.reserve(1, shape=(4, 2))
        with engine.reserve(1, shape=OWN):
            assert engine.slots_in_use == 1


async def test_larger_images_take_more_of_the_room(session: ScriptedSession, running: Running) -> None:
    async with running(session, graphs=(free_graph(),), max_queued_images=16) as engine:
        with engine.reserve(1, shape=(8, 8)), engine.reserve(1, shape=(8, 8), priority=Priority.BULK):
            assert (engine.backlog.interactive, engine.backlog.bulk) == (8.0, 8.0)
            with pytest.raises(Overloaded, match="128 of 128 pixels are taken, and 1 would be needed"):
                engine.reserve(1, shape=(1, 1))
        assert engine.backlog.images == 0
        with pytest.raises(InvalidParameter, match="3 images of 64 pixels are more than are admitted at once"):
            engine.reserve(3, shape=(8, 8))
        with engine.reserve(16):
            assert engine.backlog.images == 16


async def test_one_image_is_admitted_however_small_the_queue(session: ScriptedSession, running: Running) -> None:
    async with running(session, graphs=(free_graph(),), max_queued_images=2) as engine:
        assert colour((await classify(engine, 3, shape=(8, 8)))[0], (8, 8)) == 3


async def test_the_predicted_wait_counts_an_image_by_its_pixels(session: ScriptedSession, running: Running) -> None:
    session.run_s = 4.0  # a bucket of four in 4 s: one image a second
    async with running(session, graphs=(free_graph(4),), max_queued_images=64) as engine:
        now_s = session.clock() if session.clock else 0.0
        with engine.reserve(1, shape=(8, 8)):  # eight of the model's own
            engine.check_room(1, deadline_s=now_s + 9.1)
            with pytest.raises(Overloaded, match=r"take about 9\.0 s"):
                engine.check_room(1, deadline_s=now_s + 8.9)
            with pytest.raises(Overloaded, match=r"take about 16\.0 s"):
                engine.check_room(1, deadline_s=now_s + 15.9, shape=(8, 8))
            engine.check_room(1, deadline_s=now_s + 16.1, shape=(8, 8))


async def test_a_thousand_sizes_leave_nothing_behind(session: ScriptedSession, running: Running) -> None:
    choice = random.Random(3)
    async with running(session, graphs=(free_graph(max_pixels=10_000),), max_queued_images=1024) as engine:
        for _ in range(1000):
            shape = choice.randint(1, 100), choice.randint(1, 100)
            value = choice.randint(0, 9)
            (answer,) = await classify(engine, value, shape=shape, outputs=EMBEDDING)
            assert answer.outputs["embedding"].shape == (pixels_of(shape) * 3,)
            assert (answer.outputs["embedding"] == value).all()
        await until_idle(engine)
        assert engine.backlog.images == 0


def large_geometry(slots: int = 4) -> Geometry:
    def outputs(shape: Shape) -> dict[str, tuple[int, ...]]:
        return {"map": (8, *shape), "vector": (3,)}

    side = 256
    free = FreeSize(outputs, side * side, (8 * side * side + 3) * 4)
    return Geometry(slots, (16, 16, 3), (Graph("model", outputs((16, 16)), (1,), ("vector",), free=free),))


def test_memory_of_large_images_is_given_back_with_their_slots() -> None:
    geometry = large_geometry()
    descriptor = SharedSlots.create(geometry)
    worker, engine = SharedSlots(geometry, descriptor), SharedSlots(geometry, descriptor)

    def taken_bytes() -> int:
        return os.fstat(descriptor).st_blocks * 512

    shape = (200, 256)
    (slot,) = worker.acquire(1, shape)
    worker.pixels(slot, shape)[...] = 5
    assert (engine.pixels(slot, shape) == 5).all()
    outputs = {"map": np.full((8, *shape), 3, np.float32), "vector": np.ones(3, np.float32)}
    worker.submit([slot])
    engine.start([slot])
    engine.deliver(slot, shape, outputs)
    engine.finish([slot])
    assert taken_bytes() > pixels_of(shape) * (3 + 8 * 4)
    assert worker.is_slow_to_fetch(shape, outputs)
    worker.fetch(slot, shape, outputs)
    read = worker.collect(slot)
    assert (read["map"] == 3).all()
    assert (read["vector"] == 1).all()
    worker.release([slot])
    assert taken_bytes() <= 2 * mmap.PAGESIZE  # the states, and what an image of the model's own takes of the slot
    os.close(descriptor)


def test_small_results_of_many_shapes_do_not_pile_up() -> None:
    geometry = large_geometry()
    descriptor = SharedSlots.create(geometry)
    worker, engine = SharedSlots(geometry, descriptor), SharedSlots(geometry, descriptor)
    for side in range(1, 257):
        shape = (side, side)
        engine.deliver(0, shape, {"map": np.full((8, *shape), side, np.float32)})
        worker.fetch(0, shape, ["map"])
        assert (worker.collect(0)["map"] == side).all()
    assert os.fstat(descriptor).st_blocks == 0
    os.close(descriptor)


def test_a_pool_of_its_own_gives_large_images_back_too() -> None:
    pool = SlotPool(3, (16, 16, 3), max_pixels=256 * 256)
    (slot,) = pool.acquire(1, (256, 256))
    pool.pixels(slot, (256, 256))[...] = 9
    assert (pool.shape_of(slot), pool.pixels_in_use) == ((256, 256), 65_536)
    pool.release([slot])
    assert (pool.acquire(1), pool.pixels_in_use) == ([slot], 256)
    assert not pool.pixels(slot, (256, 256))[32:].any()  # new pages, in which nothing is
    assert pool.shape_of(slot) == (16, 16)


def test_an_image_that_no_slot_has_room_for_takes_none() -> None:
    pool = SlotPool(3, (2, 4, 3), max_pixels=9)
    with pytest.raises(SlotStateError, match="9 pixels"):
        pool.acquire(1, (2, 5))
    assert pool.free == 3
