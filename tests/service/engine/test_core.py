from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from service.engine.board import Board
from service.engine.core import DropReason, EngineCore
from service.engine.slots import SlotPool, SlotState
from service.engine.types import Answer, Completion, Failure, OutOfDeviceMemory, Outputs, Pixels, Run, WorkItem
from service.errors import StartupError
from tests.service.engine.fakes import (
    LOGITS,
    MODEL,
    OWN,
    FakeClock,
    RecordingObserver,
    ScriptedSession,
    colour,
    item,
    model_graph,
)

EMBEDDING = frozenset({"embedding"})


class Bench:
    """A core with everything it stands on, and nothing that moves by itself."""

    def __init__(self, buckets: Sequence[int] = (1, 2, 4), session: ScriptedSession | None = None) -> None:
        self.clock = FakeClock()
        self.session = session or ScriptedSession()
        self.session.clock = self.clock
        self.session.run_s = 0.0
        self.pool = SlotPool(8, self.session.input_shape)
        self.observer = RecordingObserver()
        self.row = Board(workers=1, engines=1).engines[0]
        graph = model_graph(*buckets)
        self.core = EngineCore(
            [graph],
            {MODEL: self.session},
            self.pool,
            self.row,
            input_shape=self.session.input_shape,
            clock=self.clock,
            observer=self.observer,
        )
        self.costs = self.core.batcher.costs[MODEL].own

    def submit(
        self, *colours: int, outputs: frozenset[str] = LOGITS, deadline_s: float = float("inf")
    ) -> list[WorkItem]:
        items = []
        for slot, value in zip(self.pool.acquire(len(colours)), colours, strict=True):
            self.pool.pixels(slot, OWN)[...] = value
            items.append(item(slot=slot, outputs=outputs, deadline_s=deadline_s, enqueued_s=self.clock()))
        self.pool.submit(each.slot for each in items)
        self.core.submit(items)
        return items

    def answers(self, completions: Iterable[Completion] | None = None) -> list[Answer]:
        """The answers of images that have ended (of one more step, by default), as their client puts them together."""
        ended = self.core.step() if completions is None else completions
        return [Answer(self.pool.collect(each.slot), each.end) for each in ended if isinstance(each.end, Run)]


def test_every_image_gets_its_own_row_of_a_padded_batch() -> None:
    bench = Bench(buckets=(8,))
    submitted = bench.submit(10, 20, 30)
    completions = bench.core.step()
    assert [each.ticket for each in completions] == [each.ticket for each in submitted]
    answers = bench.answers(completions)
    assert [colour(each) for each in answers] == [10, 20, 30]
    assert {(each.run.batch_size, each.run.bucket) for each in answers} == {(3, 8)}
    assert bench.session.runs == [(8, ("logits",))]


def test_padding_repeats_an_image_of_the_batch() -> None:
    seen: list[Pixels] = []

    class Watching(ScriptedSession):
        def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
            seen.append(images.copy())
            return super().run(images, outputs)

    bench = Bench(buckets=(4,), session=Watching())
    bench.submit(1, 2, 3, 4)
    bench.core.step()
    bench.submit(8, 9)
    bench.core.step()
    assert seen[-1][:, 0, 0, 0].tolist() == [8, 9, 9, 9]


def test_a_run_computes_what_its_images_ask_for_and_each_gets_only_its_own() -> None:
    bench = Bench()
    bench.submit(1, outputs=LOGITS)
    bench.submit(2, outputs=EMBEDDING)
    bench.submit(3, outputs=LOGITS | EMBEDDING)
    answers = bench.answers()
    assert bench.session.runs == [(4, ("logits", "embedding"))]
    assert [set(answer.outputs) for answer in answers] == [{"logits"}, {"embedding"}, {"logits", "embedding"}]
    assert (answers[1].outputs["embedding"] == 2).all()
    bench.submit(4, outputs=EMBEDDING)
    bench.core.step()
    assert bench.session.runs[-1] == (1, ("embedding",))


def test_an_answer_does_not_keep_the_rest_of_its_batch_in_memory() -> None:
    bench = Bench()
    bench.submit(1, 2, outputs=EMBEDDING)
    for answer in bench.answers():
        embedding = answer.outputs["embedding"]
        assert embedding.base is None or embedding.base.size == embedding.size


def test_times_are_told_to_the_image_and_the_observer() -> None:
    bench = Bench()
    bench.session.image_s = 0.25
    bench.submit(1)
    bench.clock.now_s += 3.0
    bench.submit(2)
    answers = bench.answers()
    assert [answer.run.queue_s for answer in answers] == [3.0, 0.0]
    assert [answer.run.inference_s for answer in answers] == [0.5, 0.5]
    assert bench.observer.batches == [(2, 2)]
    assert bench.observer.queue_s == [3.0, 0.0]
    assert bench.observer.inference_s == [0.5]


def test_a_cancelled_image_does_not_fail_its_batch() -> None:
    bench = Bench()
    first, gone, last = bench.submit(1, 2, 3)
    bench.core.cancel([gone.ticket, 10**9])
    completions = {each.ticket: each for each in bench.core.step()}
    assert completions.pop(gone.ticket).end is Failure.CANCELLED
    assert [colour(each) for each in bench.answers(completions.values())] == [1, 3]
    assert list(completions) == [first.ticket, last.ticket]
    assert bench.observer.drops == [(DropReason.CANCELLED, 1)]


def test_an_expired_image_is_not_computed() -> None:
    bench = Bench()
    (late,) = bench.submit(1, deadline_s=bench.clock() + 1)
    bench.clock.now_s += 1
    (good,) = bench.submit(2)
    (dropped,) = bench.core.step()
    assert (dropped.ticket, dropped.end) == (late.ticket, Failure.LATE)
    assert bench.session.runs == []
    (answered,) = bench.core.step()
    assert answered.ticket == good.ticket
    assert bench.session.runs == [(1, ("logits",))]
    assert bench.observer.drops == [(DropReason.DEADLINE, 1)]


def test_every_slot_is_handed_back_however_its_image_ends() -> None:
    bench = Bench()
    answered = bench.submit(1)
    cancelled = bench.submit(2)
    expired = bench.submit(3, deadline_s=bench.clock())
    bench.core.cancel([cancelled[0].ticket])
    failed = bench.submit(4)
    bench.session.faults.append(RuntimeError("out of memory"))
    ended = [*bench.core.step(), *bench.core.step()]
    assert {each.slot for each in ended} == {each.slot for each in answered + cancelled + expired + failed}
    assert {bench.pool.state(each.slot) for each in ended} == {SlotState.DONE}
    assert bench.core.ready_at_s is None
    assert bench.core.step() == []


def test_an_exception_fails_exactly_its_batch(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(buckets=(1, 2))
    bench.submit(1, 2, 3)
    bench.session.faults.append(RuntimeError("out of memory"))
    failed = bench.core.step()
    assert [each.end for each in failed] == [Failure.FAILED, Failure.FAILED]
    assert "out of memory" in caplog.text
    assert (bench.row.failures_in_a_row, bench.row.last_failure_s) == (1, bench.clock())
    assert [colour(each) for each in bench.answers()] == [3]
    assert bench.row.failures_in_a_row == 0
    assert bench.observer.failed == [(2, 2)]


def test_a_run_that_returns_too_few_rows_fails_its_batch() -> None:
    class Short(ScriptedSession):
        def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
            return {name: rows[:-1] for name, rows in super().run(images, outputs).items()}

    bench = Bench(session=Short())
    bench.submit(1, 2)
    assert [each.end for each in bench.core.step()] == [Failure.FAILED, Failure.FAILED]


def test_warm_up_runs_every_bucket_with_every_output_and_measures_it() -> None:
    bench = Bench(buckets=(1, 2, 4))
    bench.session.image_s = 0.01
    bench.core.warm_up()
    with_every_output = [bucket for bucket, outputs in bench.session.runs if outputs == ("logits", "embedding")]
    assert with_every_output == [4, 2, 1]
    assert bench.costs.images_per_s == pytest.approx(100.0)


def test_warm_up_does_not_measure_long_runs_again_and_again() -> None:
    bench = Bench(buckets=(4,))
    bench.session.image_s = 10.0
    bench.core.warm_up()
    assert len(bench.session.runs) == 2


def test_a_bucket_that_fails_in_warm_up_is_named() -> None:
    bench = Bench(buckets=(1, 2, 4))
    bench.session.faults.extend([None, None, None, None, RuntimeError("no such kernel")])
    with pytest.raises(StartupError, match="batch of 2 while warming up: no such kernel"):
        bench.core.warm_up()


def test_a_batch_without_memory_runs_as_two_halves() -> None:
    bench = Bench(buckets=(1, 2, 4, 8))
    submitted = bench.submit(1, 2, 3, 4, 5)
    bench.session.faults.append(OutOfDeviceMemory("no room"))
    completions = bench.core.step()
    assert [each.ticket for each in completions] == [each.ticket for each in submitted]
    answers = bench.answers(completions)
    assert [colour(each) for each in answers] == [1, 2, 3, 4, 5]
    assert [(each.run.batch_size, each.run.bucket) for each in answers] == [(3, 4)] * 3 + [(2, 2)] * 2
    assert [bucket for bucket, _ in bench.session.runs] == [8, 4, 2]
    assert bench.observer.failed == []
    assert bench.row.failures_in_a_row == 0


def test_a_half_that_fails_again_fails_alone() -> None:
    bench = Bench(buckets=(1, 2, 4))
    submitted = bench.submit(1, 2, 3, 4)
    bench.session.faults.extend([OutOfDeviceMemory("no room"), OutOfDeviceMemory("still none")])
    completions = {each.ticket: each for each in bench.core.step()}
    assert [completions[each.ticket].end for each in submitted[:2]] == [Failure.FAILED] * 2
    assert [colour(answer) for answer in bench.answers(completions.values())] == [3, 4]
    assert bench.observer.failed == [(2, 2)]
    assert {bench.pool.state(each.slot) for each in submitted} == {SlotState.DONE}


def test_a_half_that_fails_otherwise_fails_alone() -> None:
    bench = Bench(buckets=(4,))
    submitted = bench.submit(1, 2)
    bench.session.faults.extend([OutOfDeviceMemory("no room"), None, RuntimeError("no such kernel")])
    completions = bench.core.step()
    assert [each.ticket for each in completions] == [each.ticket for each in submitted]
    assert [type(each.end) for each in completions] == [Run, Failure]


def test_a_single_image_without_memory_is_tried_once_more_in_the_smallest_bucket() -> None:
    bench = Bench(buckets=(1, 8))
    bench.costs.observe(1, 10.0)
    bench.costs.observe(8, 1.0)
    bench.submit(7)
    bench.session.faults.append(OutOfDeviceMemory("no room"))
    assert [colour(answer) for answer in bench.answers()] == [7]
    assert [bucket for bucket, _ in bench.session.runs] == [8, 1]
    bench.submit(8)
    bench.session.faults.extend([OutOfDeviceMemory("no room")] * 2)
    (completion,) = bench.core.step()
    assert completion.end is Failure.FAILED
    assert [bucket for bucket, _ in bench.session.runs[2:]] == [1, 1]


def test_a_size_that_ran_out_of_memory_is_not_chosen_again_soon() -> None:
    bench = Bench(buckets=(1, 2, 4))
    bench.submit(1, 2, 3, 4)
    bench.session.faults.append(OutOfDeviceMemory("no room"))
    bench.core.step()
    bench.session.runs.clear()
    bench.submit(1, 2, 3, 4)
    bench.core.step()
    bench.core.step()
    assert [bucket for bucket, _ in bench.session.runs] == [2, 2]


def test_answers_survive_a_session_that_reuses_its_arrays() -> None:
    class Reusing(ScriptedSession):
        def __init__(self) -> None:
            super().__init__()
            self._arrays: dict[tuple[int, str], Any] = {}

        def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
            results = super().run(images, outputs)
            for name, values in results.items():
                self._arrays.setdefault((len(images), name), np.empty_like(values))[...] = values
            return {name: self._arrays[len(images), name] for name in outputs}

    bench = Bench(session=Reusing())
    answers = []
    for colours in ((10,), (11, 12), (20,), (21, 22)):
        bench.submit(*colours)
        answers += bench.answers()
    assert [colour(each) for each in answers] == [10, 11, 12, 20, 21, 22]


def test_batches_are_gathered_in_the_memory_that_the_session_offers() -> None:
    class Staging(ScriptedSession):
        memory = np.zeros(4 * 24, np.uint8)

        def staging(self, size_bytes: int) -> Pixels:
            assert size_bytes == len(self.memory)
            return self.memory

        def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
            assert np.shares_memory(images, self.memory)
            return super().run(images, outputs)

    bench = Bench(session=Staging())
    bench.submit(1, 2, 3)
    assert [colour(each) for each in bench.answers()] == [1, 2, 3]
