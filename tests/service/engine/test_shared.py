from __future__ import annotations

import mmap
import os
from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.graphs import Graph
from service.engine.shared import SLOW_COPY_BYTES, Geometry, SharedSlots
from service.engine.slots import SlotState
from service.engine.types import Outputs

OWN = (6, 4)
LARGE = (SLOW_COPY_BYTES // 4 // 64, 64)
OUTPUTS = {"stage": LARGE, "logits": (7,), "embedding": (2, 3)}
GEOMETRY = Geometry(5, (6, 4, 3), (Graph("model", OUTPUTS, (1,), ()),))


def mapped(geometry: Geometry = GEOMETRY) -> tuple[SharedSlots, SharedSlots, int]:
    """One memory, as a worker and an engine map it, and its descriptor."""
    descriptor = SharedSlots.create(geometry)
    return SharedSlots(geometry, descriptor), SharedSlots(geometry, descriptor), descriptor


def fetched(worker: SharedSlots, slot: int, outputs: Iterable[str]) -> Outputs:
    """What the worker finds in a slot."""
    worker.fetch(slot, OWN, outputs)
    return worker.collect(slot)


def results(slot: int) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(slot)
    return {name: generator.random(shape, np.float32) for name, shape in OUTPUTS.items()}


def test_nothing_of_one_slot_lies_in_anothers() -> None:
    worker, engine, descriptor = mapped()
    for slot in range(5):
        worker.pixels(slot, OWN)[...] = slot
    for slot in range(5):
        engine.deliver(slot, OWN, results(slot))
    for slot in range(5):
        assert (engine.pixels(slot, OWN) == slot).all()
        assert worker.state(slot) is SlotState.FREE
        read = fetched(worker, slot, OUTPUTS)
        assert {name: value.tobytes() for name, value in read.items()} == {
            name: value.tobytes() for name, value in results(slot).items()
        }
    os.close(descriptor)


def test_states_are_one_in_both_processes() -> None:
    client, core, descriptor = mapped()
    (slot,) = client.acquire(1)
    client.submit([slot])
    core.start([slot])
    core.finish([slot])
    client.release([slot])
    assert core.state(slot) is SlotState.FREE
    os.close(descriptor)


def test_memory_of_large_results_is_given_back_when_they_are_read_or_dropped() -> None:
    worker, engine, descriptor = mapped()

    def taken_bytes() -> int:
        return os.fstat(descriptor).st_blocks * 512

    engine.deliver(1, OWN, {"logits": np.ones(7, np.float32)})
    small_bytes = taken_bytes()
    assert small_bytes <= 2 * mmap.PAGESIZE
    for slot in (2, 3):
        engine.deliver(slot, OWN, results(slot))
    assert taken_bytes() > 2 * SLOW_COPY_BYTES
    worker.fetch(2, OWN, ["stage"])
    worker.discard(3, OWN, ["stage"])
    assert taken_bytes() == small_bytes
    assert (fetched(worker, 1, ["logits"])["logits"] == 1).all()
    os.close(descriptor)


def test_what_was_read_is_the_readers_own() -> None:
    worker, engine, descriptor = mapped()
    engine.deliver(0, OWN, results(0))
    read = fetched(worker, 0, ["logits"])["logits"]
    engine.deliver(0, OWN, results(1))
    assert (read == results(0)["logits"]).all()
    os.close(descriptor)


def test_outputs_of_two_graphs_have_places_of_their_own() -> None:
    many = {f"position{number}": (2, 3) for number in range(61)}
    worker, engine, descriptor = mapped(Geometry(2, (6, 4, 3), (*GEOMETRY.graphs, Graph("other", many, (1,), ()))))
    engine.deliver(1, OWN, results(1))
    engine.deliver(1, OWN, {"position60": np.full((2, 3), 7, np.float32)})
    assert (fetched(worker, 1, ["position60"])["position60"] == 7).all()
    np.testing.assert_array_equal(fetched(worker, 1, ["logits"])["logits"], results(1)["logits"])
    os.close(descriptor)


def test_graph_with_more_outputs_than_a_record_can_name_is_refused() -> None:
    many = {f"position{number}": (1,) for number in range(65)}
    with pytest.raises(ValueError, match="64 outputs, and other has 65"):
        Geometry(2, (6, 4, 3), (*GEOMETRY.graphs, Graph("other", many, (1,), ())))
