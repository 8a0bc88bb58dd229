from __future__ import annotations

import numpy as np
import pytest

from service.engine.slots import SlotPool, SlotState, SlotStateError

SHAPE = (2, 4, 3)
ROUTES = {
    SlotState.FILLING: [],
    SlotState.QUEUED: ["submit"],
    SlotState.RUNNING: ["submit", "start"],
    SlotState.DONE: ["submit", "finish"],
}
LEGAL = {
    ("submit", SlotState.FILLING): SlotState.QUEUED,
    ("start", SlotState.QUEUED): SlotState.RUNNING,
    ("finish", SlotState.QUEUED): SlotState.DONE,
    ("finish", SlotState.RUNNING): SlotState.DONE,
    ("release", SlotState.FILLING): SlotState.FREE,
    ("release", SlotState.DONE): SlotState.FREE,
}


def pool_with_slot_in(state: SlotState) -> tuple[SlotPool, int]:
    pool = SlotPool(3, SHAPE)
    (slot,) = pool.acquire(1)
    if state is SlotState.FREE:
        pool.release([slot])
    else:
        for move in ROUTES[state]:
            getattr(pool, move)([slot])
    assert pool.state(slot) is state
    return pool, slot


@pytest.mark.parametrize("state", SlotState)
@pytest.mark.parametrize("move", ["submit", "start", "finish", "release"])
def test_only_the_drawn_transitions_are_possible(move: str, state: SlotState) -> None:
    pool, slot = pool_with_slot_in(state)
    free = pool.free
    if (move, state) in LEGAL:
        getattr(pool, move)([slot])
        assert pool.state(slot) is LEGAL[move, state]
    else:
        with pytest.raises(SlotStateError, match=f"slot {slot} is {state.name}"):
            getattr(pool, move)([slot])
        assert pool.state(slot) is state
        assert pool.free == free


def test_a_slot_is_never_given_to_two_owners() -> None:
    pool = SlotPool(8, SHAPE)
    first, second = pool.acquire(3), pool.acquire(5)
    assert sorted(first + second) == list(range(8))
    assert pool.free == 0


def test_asking_for_more_than_is_free_takes_nothing() -> None:
    pool = SlotPool(4, SHAPE)
    pool.acquire(2)
    with pytest.raises(SlotStateError, match="3 slots were asked for and 2 are free"):
        pool.acquire(3)
    assert pool.free == 2
    assert len(pool.acquire(2)) == 2


def test_reclaiming_takes_back_what_the_engine_owned_and_nothing_else() -> None:
    pool = SlotPool(5, SHAPE)
    filling, queued, started, done, _ = pool.acquire(5)
    pool.submit([queued, started, done])
    pool.start([started])
    pool.finish([done])
    assert pool.reclaim() == [queued, started, done]
    assert [pool.state(slot) for slot in (filling, queued, started, done)] == [
        SlotState.FILLING,
        SlotState.FREE,
        SlotState.FREE,
        SlotState.FREE,
    ]
    assert sorted(pool.acquire(3)) == sorted([queued, started, done])


def test_the_pool_can_lie_in_memory_that_others_share() -> None:
    shared = np.zeros((2, 24), np.uint8)
    pool = SlotPool(2, SHAPE, memory=shared)
    (slot,) = pool.acquire(1)
    pool.pixels(slot, SHAPE[:2])[...] = 7
    assert (shared[slot] == 7).all()
    assert (shared[1 - slot] == 0).all()


@pytest.mark.parametrize("memory", [np.zeros((2, 24), np.float32), np.zeros((3, 24), np.uint8)])
def test_memory_of_another_shape_or_type_is_refused(memory: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the pool needs uint8"):
        SlotPool(2, SHAPE, memory=memory)


def test_a_pool_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        SlotPool(0, SHAPE)
