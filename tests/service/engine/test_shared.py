from __future__ import annotations

import mmap
import os

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.shared import LARGE_BYTES, Board, Geometry, SlotMemory
from service.engine.slots import SlotState
from service.engine.types import EngineState

LARGE = (LARGE_BYTES // 4 // 64, 64)
GEOMETRY = Geometry(5, (6, 4, 3), (("stage", LARGE), ("logits", (7,)), ("embedding", (2, 3))))


def memories() -> tuple[SlotMemory, SlotMemory, int]:
    """One memory, as a worker and an engine map it, and its descriptor."""
    descriptor = SlotMemory.create(GEOMETRY)
    return SlotMemory(GEOMETRY, descriptor), SlotMemory(GEOMETRY, descriptor), descriptor


def results(slot: int) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(slot)
    return {name: generator.random(shape, np.float32) for name, shape in GEOMETRY.outputs}


def test_nothing_of_one_slot_lies_in_anothers() -> None:
    worker, engine, descriptor = memories()
    pool = worker.pool()
    for slot in range(5):
        worker.pixels[slot] = slot
    for slot in range(5):
        engine.write(slot, results(slot))
    for slot in range(5):
        assert (engine.pixels[slot] == slot).all()
        assert pool.state(slot) is SlotState.FREE
        read = worker.read(slot, GEOMETRY.output_names)
        assert {name: value.tobytes() for name, value in read.items()} == {
            name: value.tobytes() for name, value in results(slot).items()
        }
    os.close(descriptor)


def test_states_are_one_in_both_processes() -> None:
    worker, engine, descriptor = memories()
    client, core = worker.pool(), engine.pool()
    (slot,) = client.acquire(1)
    client.submit([slot])
    core.start([slot])
    core.finish([slot])
    client.release([slot])
    assert core.state(slot) is SlotState.FREE
    os.close(descriptor)


def test_memory_of_large_results_is_given_back_when_they_are_read_or_dropped() -> None:
    worker, engine, descriptor = memories()

    def taken_bytes() -> int:
        return os.fstat(descriptor).st_blocks * 512

    engine.write(1, {"logits": np.ones(7, np.float32)})
    small_bytes = taken_bytes()
    assert small_bytes <= 2 * mmap.PAGESIZE
    for slot in (2, 3):
        engine.write(slot, results(slot))
    assert taken_bytes() > 2 * LARGE_BYTES
    worker.read(2, ["stage"])
    worker.discard(3, ["stage"])
    assert taken_bytes() == small_bytes
    assert (worker.read(1, ["logits"])["logits"] == 1).all()
    os.close(descriptor)


def test_what_was_read_is_the_readers_own() -> None:
    worker, engine, descriptor = memories()
    engine.write(0, results(0))
    read = worker.read(0, ["logits"])["logits"]
    engine.write(0, results(1))
    assert (read == results(0)["logits"]).all()
    os.close(descriptor)


def test_result_of_another_shape_is_refused_even_where_it_would_fit() -> None:
    _, engine, descriptor = memories()
    with pytest.raises(ValueError, match=r"logits is \(1,\) where the model directory promises \(7,\)"):
        engine.write(0, {"logits": np.ones(1, np.float32)})
    os.close(descriptor)


@pytest.mark.parametrize("outputs", [["stage"], ["embedding", "stage"], ["stage", "logits", "embedding"]])
def test_outputs_travel_as_a_mask(outputs: list[str]) -> None:
    assert GEOMETRY.named(GEOMETRY.mask(outputs)) == frozenset(outputs)


def test_the_board_is_one_for_all_and_empty_at_first() -> None:
    board, descriptor = Board.create(workers=2, engines=9)
    other = Board(descriptor, workers=2, engines=9)
    os.close(descriptor)
    assert other.pids() == {}
    assert [row.state for row in other.engines] == [EngineState.DEAD] * 9
    assert (other.admitted, other.waiting(8)) == (0, 0)
    for worker in board.workers:
        worker.admitted, worker.admitted_bulk, worker.answered = 3, 1, 10
        worker.set_waiting(8, 2)
    board.workers[1].pid = 17
    board.engines[8].pid, board.engines[8].state, board.engines[8].busy_since_s = 19, EngineState.READY, 1.5
    assert (other.admitted, other.waiting(8), other.waiting(7)) == (6, 4, 0)
    assert (other.admitted_bulk, other.answered) == (2, 20)
    assert other.pids() == {"worker-1": 17, "engine-8": 19}
    assert (other.engines[8].state, other.engines[8].busy_since_s) == (EngineState.READY, 1.5)
    board.engines[8].busy_since_s = None
    assert other.engines[8].busy_since_s is None
    board.workers[0].clear()
    assert (other.admitted, other.waiting(8)) == (3, 2)


def test_outputs_of_both_graphs_have_bits_and_places_of_their_own() -> None:
    many = tuple((f"position{number}", (2, 3)) for number in range(61))
    geometry = Geometry(2, (6, 4, 3), GEOMETRY.outputs, many)
    assert geometry.output_names == GEOMETRY.output_names
    asked = frozenset({"position0", "position60"})
    assert geometry.named(geometry.mask(asked)) == asked
    assert geometry.mask(["position60"]) == 1 << 63
    descriptor = SlotMemory.create(geometry)
    worker, engine = SlotMemory(geometry, descriptor), SlotMemory(geometry, descriptor)
    engine.write(1, results(1) | {"position60": np.full((2, 3), 7, np.float32)})
    assert (worker.read(1, ["position60"])["position60"] == 7).all()
    np.testing.assert_array_equal(worker.read(1, ["logits"])["logits"], results(1)["logits"])
    os.close(descriptor)
    with pytest.raises(ValueError, match="64 outputs in all, not 65"):
        Geometry(2, (6, 4, 3), GEOMETRY.outputs, (*many, ("one more", (1,))))
