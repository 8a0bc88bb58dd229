"""Engines in other processes: a worker's side of its links to them.

The slots lie in memory that the worker shares with the engines, and records pass over one socket for each engine.
Engines come and go: `attach` brings a link to one, and the end of a link's socket says that its process is no more.
Its images fail at once, and their slots are taken back. That is safe: Linux lets go of a dying process's memory
before its descriptors, so that when the socket ends nobody is left who could write into a slot.

Invariants: those of `client`; the images of one call go to one engine; a slot in an engine's hands is in the
`outstanding` of that engine's link, until its reply comes or the link ends.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from service.engine.admission import Backlog
from service.engine.client import REFUSALS, EngineClient, is_failing
from service.engine.records import REPLY, REQUEST, RecordSocket, Reply, Request, failure_of
from service.engine.shared import Board, EngineRow, SlotMemory
from service.engine.types import Answer, Completion, EngineState, WorkItem
from service.errors import NotReady

_Facts: TypeAlias = tuple[float, float, int, int, float]
"""Of an Answer, all but its outputs."""


class _Link:
    """The way to one engine process."""

    def __init__(self, engine: int, end: socket.socket) -> None:
        self.engine = engine
        self.socket = RecordSocket(end, REPLY)
        self.is_ready = False
        self.outstanding: dict[int, WorkItem] = {}
        """By ticket: what the engine has, or is being sent."""


class RemoteEngine(EngineClient):
    """The engines that this worker has links to; every method belongs to one event loop, except where said.

    `memory` is this worker's alone. `worker` is the worker's number on the board. An engine whose step lasts longer
    than `hang_after_s` gets no new images while there is another; to end it is the supervisor's business.
    """

    def __init__(
        self,
        memory: SlotMemory,
        board: Board,
        *,
        worker: int,
        largest_batch: int,
        max_wait_s: float = 0.0,
        hang_after_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(largest_batch=largest_batch, max_wait_s=max_wait_s, clock=clock)
        self._memory = memory
        self._board = board
        self._row = board.workers[worker]
        self._hang_after_s = hang_after_s
        self._pool = memory.pool()
        self._links: dict[int, _Link] = {}
        self._stopped = False

    @property
    def states(self) -> Sequence[EngineState]:
        """The state of each engine."""
        return [row.state for row in self._board.engines]

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """Height, width and 3 of an image."""
        return self._memory.geometry.input_shape

    @property
    def output_names(self) -> tuple[str, ...]:
        """Every output that can be asked for."""
        return self._memory.geometry.output_names

    @property
    def explain_names(self) -> tuple[str, ...]:
        """Every output that says where the model looked."""
        return self._memory.geometry.explain_names

    @property
    def slots_in_use(self) -> int:
        """Images in the service, of all workers, from being decoded to being answered."""
        return self._board.admitted

    @property
    def queue_depth(self) -> int:
        """Images that wait for their batch or run in it, of all workers and engines."""
        return sum(self._board.waiting(engine) for engine in range(len(self._board.engines)))

    @property
    def images_per_s(self) -> float | None:
        """The best rates that the engines have shown, together; None before the first run."""
        rates = [row.images_per_s for row in self._board.engines if row.images_per_s is not None]
        return sum(rates) if rates else None

    @property
    def healthy(self) -> bool:
        """Whether any engine is READY, not hanging, and not failing batch after batch."""
        return self._state is EngineState.READY and any(self._is_well(link) for link in self._links.values())

    def _is_well(self, link: _Link) -> bool:
        row: EngineRow = self._board.engines[link.engine]
        now_s = self._clock()
        if not link.is_ready or (row.busy_since_s is not None and now_s - row.busy_since_s >= self._hang_after_s):
            return False
        return not is_failing(row.failures_in_a_row or 0, row.last_failure_s, now_s)

    async def start(self) -> None:
        """Begin to wait for engines."""
        self._loop = asyncio.get_running_loop()
        self._row.pid = os.getpid()
        self._room_changed()

    async def stop(self, timeout_s: float = 5.0) -> None:  # noqa: ARG002
        """Fail whatever still waits, and leave the engines, who drop what they have of it."""
        self._stopped = True
        for link in list(self._links.values()):
            self._lose(link)
        self._state, self._failure = EngineState.DEAD, "The engine was stopped."
        self._fail_calls(list(self._calls))
        self._loaded.set()

    def attach(self, engine: int, end: socket.socket) -> None:
        """Take a link to an engine, in place of one to its predecessor, whose process has ended."""
        if self._stopped:
            end.close()
            return
        if engine in self._links:
            self._lose(self._links[engine])
        link = self._links[engine] = _Link(engine, end)
        asyncio.get_running_loop().add_reader(link.socket.fileno(), self._read, link)

    def check_call(self, outputs: frozenset[str], deadline_s: float) -> None:
        """Raise what `infer` would raise at once."""
        super().check_call(outputs, deadline_s)
        self._least_waiting()

    def _least_waiting(self) -> _Link:
        """Return the link to the engine with the least to do, of those that are well, or else of those that live."""
        ready = [link for link in self._links.values() if link.is_ready]
        if not ready:
            raise NotReady(REFUSALS[EngineState.DEAD])
        well = [link for link in ready if self._is_well(link)] if len(ready) > 1 else ready
        return min(well or ready, key=lambda link: (self._board.waiting(link.engine), link.engine))

    def _submit(self, items: Sequence[WorkItem]) -> None:
        link = self._least_waiting()
        link.outstanding.update((item.ticket, item) for item in items)
        mask = self._memory.geometry.mask(items[0].outputs)
        self._send(
            link,
            b"".join(
                REQUEST.pack(
                    Request.SUBMIT, item.priority, item.slot, mask, item.ticket, item.deadline_s, item.enqueued_s
                )
                for item in items
            ),
        )
        self._row.set_waiting(link.engine, len(link.outstanding))

    def _cancel(self, tickets: Sequence[int]) -> None:
        for link in self._links.values():
            held = [ticket for ticket in tickets if ticket in link.outstanding]
            if held:
                self._send(link, b"".join(REQUEST.pack(Request.CANCEL, 0, 0, 0, ticket, 0, 0) for ticket in held))

    def _send(self, link: _Link, records: bytes) -> None:
        link.socket.send(records)
        if link.socket.has_unsent:
            asyncio.get_running_loop().add_writer(link.socket.fileno(), self._flush, link)

    def _flush(self, link: _Link) -> None:
        link.socket.flush()
        if not link.socket.has_unsent:
            asyncio.get_running_loop().remove_writer(link.socket.fileno())

    @property
    def backlog(self) -> Backlog:
        """Images in the service, of all workers, from being decoded to being answered, by priority."""
        admitted, bulk = self._board.admitted, self._board.admitted_bulk
        return Backlog(admitted - bulk, bulk)

    @property
    def answered(self) -> int:
        """Images that were ever answered, by all workers that live."""
        return self._board.answered

    def _room_changed(self) -> None:
        assert self._pool is not None
        self._row.admitted = self._pool.in_use
        self._row.admitted_bulk = len(self._bulk_slots)
        self._row.answered = self._answered
        super()._room_changed()

    # What the engines tell; all called on the loop.

    def _read(self, link: _Link) -> None:
        records, is_open = link.socket.receive()
        ended: list[Completion] = []
        large: list[tuple[WorkItem, _Facts]] = []
        for kind, _, batch_size, bucket, ticket, queue_s, inference_s, started_s in records:
            if kind == Reply.READY:
                self._become_ready(link)
                continue
            item = link.outstanding.pop(ticket)
            if kind != Reply.ANSWERED:
                ended.append(Completion(ticket, item.slot, error=failure_of(Reply(kind))))
            elif ticket not in self._calls:
                self._memory.discard(item.slot, item.outputs)
                ended.append(Completion(ticket, item.slot))
            elif self._memory.is_large(item.outputs):
                large.append((item, (queue_s, inference_s, batch_size, bucket, started_s)))
            else:
                outputs = self._memory.read(item.slot, item.outputs)
                answer = Answer(outputs, queue_s, inference_s, batch_size, bucket, started_s)
                ended.append(Completion(ticket, item.slot, answer))
        self._row.set_waiting(link.engine, len(link.outstanding))
        if ended:
            self._deliver(ended)
        if large:
            self._read_in_thread(large)
        if not is_open:
            self._lose(link)

    def _read_in_thread(self, large: Sequence[tuple[WorkItem, _Facts]]) -> None:
        """Copy large results without holding up the loop; their slots are nobody else's until that is done."""

        def copy() -> list[Completion]:
            return [
                Completion(item.ticket, item.slot, Answer(self._memory.read(item.slot, item.outputs), *facts))
                for item, facts in large
            ]

        copying = asyncio.get_running_loop().run_in_executor(None, copy)
        copying.add_done_callback(lambda copied: self._deliver(copied.result()))

    def _become_ready(self, link: _Link) -> None:
        link.is_ready = True
        if self._state in (EngineState.LOADING, EngineState.DEAD):
            self._state, self._failure = EngineState.READY, None
        self._loaded.set()

    def _lose(self, link: _Link) -> None:
        """The engine's process is gone, or this worker leaves: nobody answers what is outstanding."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(link.socket.fileno())
        loop.remove_writer(link.socket.fileno())
        link.socket.close()
        if self._links.get(link.engine) is link:
            del self._links[link.engine]
        if self._state is EngineState.READY and not any(other.is_ready for other in self._links.values()):
            self._state, self._failure = EngineState.DEAD, f"The process of engine {link.engine} has ended."
        items, link.outstanding = list(link.outstanding.values()), {}
        self._row.set_waiting(link.engine, 0)
        if not self._stopped:  # one that leaves a living engine must not use these slots again, and never does
            assert self._pool is not None
            for item in items:
                self._memory.discard(item.slot, item.outputs)
            self._pool.reclaim(item.slot for item in items)
            self._bulk_slots.difference_update(item.slot for item in items)
            self._room_changed()
        self._fail_calls(item.ticket for item in items)
