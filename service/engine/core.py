"""The engine itself: `EngineCore.step` forms a batch, runs it, and says how each image ended.

A pure object without threads, sockets or an event loop: whoever drives it (a thread in `in_process`, or a process of
its own) calls `submit`, `cancel` and `step` from one thread.

Invariants: every submitted image ends in exactly one Completion, and its slot is handed back with it; an exception of
the session fails the images of its batch and no others, and where memory ran out only those of the half that fails
again; an exception that leaves `step` means that the engine itself
is broken and must not be used again.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from service.engine.batcher import Batch, Batcher
from service.engine.types import (
    Answer,
    Completion,
    ExplainingSession,
    Graph,
    OutOfDeviceMemory,
    Outputs,
    Pixels,
    Session,
    StagingSession,
    WorkItem,
)
from service.errors import Cancelled, DeadlineExceeded, InferenceFailed, ServiceError, StartupError

_log = logging.getLogger(__name__)

_WARM_UP_RUNS = 3
_WARM_UP_ENOUGH_S = 0.5
"""A bucket that took this long is measured well enough without the remaining runs."""


class DropReason(enum.StrEnum):
    """Why an image left the queue unrun."""

    DEADLINE = "deadline"
    CANCELLED = "cancelled"


class EngineObserver(Protocol):
    """Told what the engine does, in the engine's thread; must be quick and must not raise."""

    def batch_ran(self, *, bucket: int, queue_s: Sequence[float], inference_s: float) -> None:
        """A batch was run; `queue_s` has the waiting time of each of its images."""
        ...

    def batch_failed(self, *, bucket: int, images: int) -> None:
        """The session raised on a batch."""
        ...

    def dropped(self, reason: DropReason, images: int) -> None:
        """Images left the queue unrun."""
        ...


class EngineSlots(Protocol):
    """What the core asks of the slots that its images lie in: the engine's part of `slots.SlotPool`."""

    def pixels(self, slot: int) -> Pixels:
        """Return a slot's image (height, width, 3), which the engine owns."""
        ...

    def start(self, slots: Iterable[int]) -> None:
        """The slots' batch begins, QUEUED to RUNNING."""
        ...

    def keep(self, slot: int, outputs: Outputs) -> Outputs:
        """Keep a RUNNING slot's outputs, rows of its batch's, and return what its answer will carry."""
        ...

    def finish(self, slots: Iterable[int]) -> None:
        """Hand slots back, run or dropped, QUEUED or RUNNING to DONE."""
        ...


class NoObserver:
    """Nobody watches."""

    def batch_ran(self, *, bucket: int, queue_s: Sequence[float], inference_s: float) -> None:
        """Pass."""

    def batch_failed(self, *, bucket: int, images: int) -> None:
        """Pass."""

    def dropped(self, reason: DropReason, images: int) -> None:
        """Pass."""


class EngineCore:
    """One session, the queue before it, and the slots that its images lie in.

    The public attributes are written by the driving thread and may be read by any.
    """

    def __init__(
        self,
        session: Session,
        pool: EngineSlots,
        batcher: Batcher,
        *,
        clock: Callable[[], float],
        observer: EngineObserver | None = None,
    ) -> None:
        self.session = session
        self.pool = pool
        self._batcher = batcher
        self._clock = clock
        self._observer = observer or NoObserver()
        largest = batcher.costs.largest
        self._staging = (
            session.staging(largest)
            if isinstance(session, StagingSession)
            else np.zeros((largest, *session.input_shape), np.uint8)
        )
        self._output_names = {Graph.MODEL: session.output_names}
        if isinstance(session, ExplainingSession):
            self._output_names[Graph.EXPLAIN] = session.explain_names
        self._ended: list[Completion] = []
        self.last_failure_s: float | None = None
        """When a run last failed."""
        self.failures_in_a_row = 0
        """Batches that failed since the last that did not."""

    @property
    def ready_at_s(self) -> float | None:
        """When `step` has something to do: None for not before the next submit or cancel, else a time."""
        return self._clock() if self._ended else self._batcher.ready_at_s

    def warm_up(self) -> None:
        """Run every bucket of every graph with every output, then measure it; raises StartupError where a run fails.

        The largest goes first, so that the runtime sizes its memory once. Timed runs of the model compute the first
        output only, as most requests do: with all of them, copying features would pass for computing. Of where it
        looked, most requests ask for everything.
        """
        for graph, outputs in self._output_names.items():
            timed = outputs[:1] if graph is Graph.MODEL else outputs
            costs = self._batcher.costs_of(graph)
            for bucket in reversed(costs.buckets):
                try:
                    self._infer(bucket, outputs)
                    costs.observe(bucket, self._measure(bucket, timed))
                except Exception as error:
                    raise StartupError(
                        f"The model failed to run a batch of {bucket} while warming up: {error}"
                    ) from error

    def _measure(self, bucket: int, outputs: tuple[str, ...]) -> float:
        """Return the shortest time of a few runs, in seconds."""
        times_s: list[float] = []
        while len(times_s) < _WARM_UP_RUNS and sum(times_s) < _WARM_UP_ENOUGH_S:
            started_s = self._clock()
            self._infer(bucket, outputs)
            times_s.append(self._clock() - started_s)
        return min(times_s)

    def submit(self, items: Iterable[WorkItem]) -> None:
        """Let images wait for their batch; their slots are QUEUED."""
        for item in items:
            self._batcher.add(item)

    def cancel(self, tickets: Iterable[int]) -> None:
        """Drop the images that still wait; those that run or have ended are left as they are."""
        dropped = [item for ticket in tickets if (item := self._batcher.cancel(ticket)) is not None]
        if dropped:
            self._drop(dropped, DropReason.CANCELLED, Cancelled, "The request was cancelled.")

    def step(self) -> list[Completion]:
        """Do the next thing that is due, if any, and return the images that ended by it.

        Dropped images are told in a step of their own, so that they do not wait for the next run to end.
        """
        batch = self._batcher.next_batch(self._clock())
        if batch.expired:
            late = "The deadline passed while the image was waiting."
            self._drop(batch.expired, DropReason.DEADLINE, DeadlineExceeded, late)
        if batch.items:
            self._ended += self._run(batch)
        ended, self._ended = self._ended, []
        return ended

    def _drop(self, items: Sequence[WorkItem], reason: DropReason, kind: type[ServiceError], why: str) -> None:
        self._observer.dropped(reason, len(items))
        self._ended += self._fail(items, kind, why)

    def _fail(self, items: Sequence[WorkItem], kind: type[ServiceError], why: str) -> list[Completion]:
        """Give each image an exception of its own: one that is raised in several tasks would mix their tracebacks."""
        self.pool.finish(item.slot for item in items)
        return [Completion(item.ticket, item.slot, error=kind(why)) for item in items]

    def _run(self, batch: Batch) -> list[Completion]:
        """Run a batch, and where memory does not suffice for it, each half of it once."""
        items, costs = batch.items, self._batcher.costs_of(batch.graph)
        self.pool.start(item.slot for item in items)
        try:
            return self._attempt(items, batch.bucket, batch.graph)
        except OutOfDeviceMemory as error:
            _log.warning("no memory to run %d images (bucket %d), trying halves: %s", len(items), batch.bucket, error)
            costs.ran_out_of_memory(batch.bucket)
        ended: list[Completion] = []
        middle = (len(items) + 1) // 2
        for half in filter(None, (items[:middle], items[middle:])):
            bucket = next(bucket for bucket in costs.buckets if bucket >= len(half))
            try:
                ended += self._attempt(half, bucket, batch.graph)
            except OutOfDeviceMemory:
                costs.ran_out_of_memory(bucket)
                ended += self._fail_batch(half, bucket)
        return ended

    def _attempt(self, items: Sequence[WorkItem], bucket: int, graph: Graph) -> list[Completion]:
        """Run images as one batch, and end them unless memory does not suffice: then raises OutOfDeviceMemory."""
        for row, item in enumerate(items):
            self._staging[row] = self.pool.pixels(item.slot)
        # Padding repeats an image that is there: in a dynamically quantised model the rows of a batch share their
        # scales, and foreign pixels would change them.
        self._staging[len(items) : bucket] = self._staging[len(items) - 1]
        asked = frozenset[str]().union(*(item.outputs for item in items))
        outputs = tuple(name for name in self._output_names[graph] if name in asked)
        started_s = self._clock()
        try:
            results = self._infer(bucket, outputs)
            ended_s = self._clock()
            kept = [
                self.pool.keep(item.slot, {name: results[name][row] for name in item.outputs})
                for row, item in enumerate(items)
            ]
        except OutOfDeviceMemory:
            raise
        except Exception:
            return self._fail_batch(items, bucket)
        self.failures_in_a_row = 0
        inference_s = ended_s - started_s
        self._batcher.costs_of(graph).observe(bucket, inference_s)
        queue_s = [started_s - item.enqueued_s for item in items]
        self._observer.batch_ran(bucket=bucket, queue_s=queue_s, inference_s=inference_s)
        self.pool.finish(item.slot for item in items)
        return [
            Completion(item.ticket, item.slot, Answer(outputs, waited_s, inference_s, len(items), bucket, started_s))
            for item, outputs, waited_s in zip(items, kept, queue_s, strict=True)
        ]

    def _fail_batch(self, items: Sequence[WorkItem], bucket: int) -> list[Completion]:
        """End images whose run has raised; called where that is handled."""
        _log.exception("a batch of %d images (bucket %d) failed", len(items), bucket)
        self.failures_in_a_row += 1
        self.last_failure_s = self._clock()
        self._observer.batch_failed(bucket=bucket, images=len(items))
        return self._fail(items, InferenceFailed, "The engine failed on the batch that this image was in.")

    def _infer(self, bucket: int, outputs: tuple[str, ...]) -> Outputs:
        """Run the first `bucket` staged images; raises ValueError unless every output has a row for each."""
        results = self.session.run(self._staging[:bucket], outputs)
        for name in outputs:
            if len(results[name]) != bucket:
                raise ValueError(f"output {name} has {len(results[name])} rows for a batch of {bucket}")
        return results
