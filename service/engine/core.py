"""The engine itself: `EngineCore.step` forms a batch, runs it, and says how each image ended.

A pure object without threads, sockets or an event loop: whoever drives it (a thread in `in_process`, or a process of
its own) calls `submit`, `cancel` and `step` from one thread.

Invariants: every submitted image ends in exactly one Completion, and its slot is handed back with it; an exception of
a session fails the images of its batch and no others, and where memory ran out only those of the half that fails
again; an exception that leaves `step` means that the engine itself is broken and must not be used again.
"""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from service.engine.batcher import Batch, Batcher
from service.engine.board import EngineRow
from service.engine.costs import MOST_SHAPES, GraphCosts
from service.engine.device_turns import Contender, DeviceTurns
from service.engine.graphs import Graph, OutputShapes
from service.engine.types import (
    Completion,
    Failure,
    OutOfDeviceMemory,
    Outputs,
    Pixels,
    Priority,
    Run,
    Session,
    Shape,
    WorkItem,
    pixels_of,
)
from service.errors import StartupError

_log = logging.getLogger(__name__)

_WARM_UP_RUNS = 3
_WARM_UP_ENOUGH_S = 0.5
"""A bucket that took this long is measured well enough without the remaining runs."""


_SHARED_RUN_S = 0.1
"""Longest run that is chosen while other engines use the device too, who wait for its end."""


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

    def pixels(self, slot: int, shape: Shape) -> Pixels:
        """Return a slot's image (height, width, 3), which the engine owns."""
        ...

    def start(self, slots: Iterable[int]) -> None:
        """The slots' batch begins, QUEUED to RUNNING."""
        ...

    def deliver(self, slot: int, shape: Shape, outputs: Outputs) -> None:
        """Leave a RUNNING slot's outputs, copies of rows of its batch's, where its client will collect them.

        `shape` is that of the slot's image.
        """
        ...

    def finish(self, slots: Iterable[int]) -> None:
        """Hand slots back, run or dropped, QUEUED or RUNNING to DONE."""
        ...


def _nothing() -> None:
    """Nothing has come meanwhile."""


class _NoObserver:
    """Nobody watches."""

    def batch_ran(self, *, bucket: int, queue_s: Sequence[float], inference_s: float) -> None:
        """Pass."""

    def batch_failed(self, *, bucket: int, images: int) -> None:
        """Pass."""

    def dropped(self, reason: DropReason, images: int) -> None:
        """Pass."""


class _Runnable:
    """A graph on the device: its session, and the memory in which its batches are gathered.

    That memory is one for all shapes, and has room for every batch that `costs.buckets_at` allows.
    """

    def __init__(self, graph: Graph, session: Session, own: Shape) -> None:
        self.graph = graph
        self._session = session
        self._own = own
        least, largest = min(graph.buckets), max(graph.buckets)
        own_pixels, most_pixels = pixels_of(own), graph.free.max_pixels if graph.free is not None else 0
        self._memory = session.staging(max(largest * own_pixels, least * most_pixels) * 3)
        self._own_staging = self._memory[: largest * own_pixels * 3].reshape(largest, *own, 3)
        self._outputs_at = lru_cache(MOST_SHAPES)(graph.free.outputs_at) if graph.free is not None else None

    def staging(self, bucket: int, shape: Shape) -> Pixels:
        """Return where a batch is gathered: uint8 (bucket, height, width, 3)."""
        if shape == self._own:
            return self._own_staging[:bucket]
        return self._memory[: bucket * pixels_of(shape) * 3].reshape(bucket, *shape, 3)

    def run(self, staged: Pixels, outputs: tuple[str, ...]) -> Outputs:
        """Run a staged batch; raises ValueError where an output is not of the shape it should be."""
        bucket, height, width, _ = staged.shape
        results, shapes = self._session.run(staged, outputs), self._shapes((height, width))
        for name in outputs:
            expected = (bucket, *shapes[name])
            if results[name].shape != expected:
                raise ValueError(f"output {name} is {results[name].shape} where {expected} was promised")
        return results

    def _shapes(self, shape: Shape) -> OutputShapes:
        return self.graph.outputs if shape == self._own or self._outputs_at is None else self._outputs_at(shape)


class EngineCore:
    """The graphs of one model on a device with their sessions, the queue before them, and the slots of its images.

    `sessions` are by the graphs' keys, `input_shape` (height, width, 3) is that of the model's own images. How the
    engine is, it writes on `row`. Its runs take turns on the device with those of other engines, as `contender`; left
    out, it has the device for itself.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        sessions: Mapping[str, Session],
        slots: EngineSlots,
        row: EngineRow,
        *,
        input_shape: tuple[int, int, int],
        clock: Callable[[], float],
        max_delay_s: float = 0.0,
        observer: EngineObserver | None = None,
        contender: Contender | None = None,
    ) -> None:
        self._contender = contender or DeviceTurns(clock=clock).join()
        own = self._own = input_shape[:2]
        self._runnables = {graph.key: _Runnable(graph, sessions[graph.key], own) for graph in graphs}
        self._slots = slots
        self._row = row
        self._clock = clock
        self._observer = observer or _NoObserver()
        self.batcher = Batcher({graph.key: GraphCosts(graph.buckets, own) for graph in graphs}, max_delay_s=max_delay_s)
        self._ended: list[Completion] = []

    @property
    def ready_at_s(self) -> float | None:
        """When `step` has something to do: None for not before the next submit or cancel, else a time."""
        return self._clock() if self._ended else self.batcher.ready_at_s

    def warm_up(self) -> None:
        """Run every bucket of every graph with every output, then measure it; raises StartupError where a run fails.

        Images are of the model's own shape. The largest goes first, so that the runtime sizes its memory once. Others
        who share the device are served in between.
        """
        for key, runnable in self._runnables.items():
            graph, costs = runnable.graph, self.batcher.costs[key].own
            for bucket in reversed(costs.buckets):
                try:
                    with self._contender.turn(Priority.BULK):
                        runnable.run(runnable.staging(bucket, self._own), tuple(graph.outputs))
                    costs.observe(bucket, self._measure(runnable, bucket))
                except Exception as error:
                    raise StartupError(
                        f"The model failed to run a batch of {bucket} while warming up: {error}"
                    ) from error
        self._row.images_per_s = self.batcher.images_per_s or 0.0

    def _measure(self, runnable: _Runnable, bucket: int) -> float:
        """Return the shortest time of a few runs, in seconds."""
        staged, times_s = runnable.staging(bucket, self._own), list[float]()
        while len(times_s) < _WARM_UP_RUNS and sum(times_s) < _WARM_UP_ENOUGH_S:
            with self._contender.turn(Priority.BULK):
                started_s = self._clock()
                runnable.run(staged, runnable.graph.timed)
                times_s.append(self._clock() - started_s)
        return min(times_s)

    def submit(self, items: Iterable[WorkItem]) -> None:
        """Let images wait for their batch; their slots are QUEUED."""
        for item in items:
            self.batcher.add(item)

    def cancel(self, tickets: Iterable[int]) -> None:
        """Drop the images that still wait; those that run or have ended are left as they are."""
        dropped = [item for ticket in tickets if (item := self.batcher.cancel(ticket)) is not None]
        if dropped:
            self._drop(dropped, DropReason.CANCELLED, Failure.CANCELLED)

    def step(self, take_in: Callable[[], None] = _nothing) -> list[Completion]:
        """Do the next thing that is due, if any, and return the images that ended by it; waits for its device turn.

        `take_in` is called when the device is free and before a batch is formed, to submit and cancel what has come
        meanwhile. Dropped images end in a step of their own, so that they do not wait for the next run to end.
        """
        priority = self._due()
        if priority is None:
            self._contender.pass_on()
        else:
            with self._contender.turn(priority, more=self._due):
                take_in()
                self._advance()
        ended, self._ended = self._ended, []
        return ended

    def _due(self) -> Priority | None:
        """Return how urgent the work is that a run is due for; None where none is."""
        return self.batcher.due_priority(self._clock())

    def _advance(self) -> None:
        self._row.busy_since_s = self._clock()
        longest_s = _SHARED_RUN_S if self._contender.shares else math.inf
        batch = self.batcher.next_batch(self._clock(), longest_s=longest_s)
        if batch.expired:
            self._drop(batch.expired, DropReason.DEADLINE, Failure.LATE)
        if batch.items:
            self._ended += self._run(batch)
        self._row.busy_since_s = 0.0

    def _drop(self, items: Sequence[WorkItem], reason: DropReason, failure: Failure) -> None:
        self._observer.dropped(reason, len(items))
        self._ended += self._fail(items, failure)

    def _fail(self, items: Sequence[WorkItem], failure: Failure) -> list[Completion]:
        self._slots.finish([item.slot for item in items])
        return [Completion(item.ticket, item.slot, failure) for item in items]

    def _run(self, batch: Batch) -> list[Completion]:
        """Run a batch, and where memory does not suffice for it, each half of it once."""
        items = batch.items
        head, runnable = items[0], self._runnables[items[0].graph]
        self._slots.start([item.slot for item in items])
        try:
            return self._attempt(items, batch.bucket, runnable)
        except OutOfDeviceMemory as error:
            _log.warning("no memory to run %d images (bucket %d), trying halves: %s", len(items), batch.bucket, error)
            costs = self.batcher.costs[head.graph].at(head.shape)
            costs.ran_out_of_memory(batch.bucket)
        ended: list[Completion] = []
        middle = (len(items) + 1) // 2
        for half in filter(None, (items[:middle], items[middle:])):
            bucket = next(bucket for bucket in costs.buckets if bucket >= len(half))
            try:
                ended += self._attempt(half, bucket, runnable)
            except OutOfDeviceMemory:
                costs.ran_out_of_memory(bucket)
                ended += self._fail_batch(half, bucket)
        return ended

    def _attempt(self, items: Sequence[WorkItem], bucket: int, runnable: _Runnable) -> list[Completion]:
        """Run images as one batch, and end them unless memory does not suffice: then raises OutOfDeviceMemory."""
        graph, shape = runnable.graph, items[0].shape
        staged = runnable.staging(bucket, shape)
        for row, item in enumerate(items):
            staged[row] = self._slots.pixels(item.slot, shape)
        # Padding repeats an image that is there: in a dynamically quantised model the rows of a batch share their
        # scales, and foreign pixels would change them.
        staged[len(items) :] = staged[len(items) - 1]
        asked = frozenset[str]().union(*(item.outputs for item in items))
        started_s = self._clock()
        try:
            results = runnable.run(staged, tuple(name for name in graph.outputs if name in asked))
            ended_s = self._clock()
            for row, item in enumerate(items):
                self._slots.deliver(item.slot, shape, {name: results[name][row] for name in item.outputs})
        except OutOfDeviceMemory:
            raise
        except Exception:
            return self._fail_batch(items, bucket)
        inference_s = ended_s - started_s
        queue_s = [started_s - item.enqueued_s for item in items]
        self.batcher.costs[graph.key].at(shape).observe(bucket, inference_s)
        self._row.failures_in_a_row, self._row.images_per_s = 0, self.batcher.images_per_s or 0.0
        self._observer.batch_ran(bucket=bucket, queue_s=queue_s, inference_s=inference_s)
        self._slots.finish([item.slot for item in items])
        return [
            Completion(item.ticket, item.slot, Run(waited_s, inference_s, len(items), bucket, started_s))
            for item, waited_s in zip(items, queue_s, strict=True)
        ]

    def _fail_batch(self, items: Sequence[WorkItem], bucket: int) -> list[Completion]:
        """End images whose run has raised; called where that is handled."""
        _log.exception("a batch of %d images (bucket %d) failed", len(items), bucket)
        self._row.failures_in_a_row += 1
        self._row.last_failure_s = self._clock()
        self._observer.batch_failed(bucket=bucket, images=len(items))
        return self._fail(items, Failure.FAILED)
