"""The engine in a process of its own: one thread that reads records, drives the core, and replies.

It waits for its links, the supervisor and the next due step at once, and never for a single one of them: a worker
that does not read its replies costs the memory of so many records, and nobody else's time.

Invariants: between steps, when links come and go, no run touches any worker's memory; whatever a link that has ended
left in the queue is never run, and its worker's memory is let go of at once.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from service.engine.batcher import Batcher, BucketCosts
from service.engine.control import Attach, ControlSocket, End, Failed, Ping, Pong, Ready
from service.engine.core import EngineCore, EngineObserver
from service.engine.records import REPLY, REQUEST, RecordSocket, Reply, Request, reply_for
from service.engine.shared import EngineRow, Geometry, SlotMemory
from service.engine.types import (
    Completion,
    EngineState,
    ExplainingSession,
    Graph,
    Outputs,
    Pixels,
    Priority,
    Session,
    WorkItem,
)
from service.errors import StartupError

_log = logging.getLogger(__name__)

_LINK_SHIFT = 48
"""A ticket or slot in the core is a link's number and, in the lower bits, what the link's worker calls it."""
_OWN = (1 << _LINK_SHIFT) - 1


class _Link:
    """The way to one worker process, and what lies in its memory."""

    def __init__(self, number: int, worker: int, end: socket.socket, memory: SlotMemory) -> None:
        self.number = number
        self.worker = worker
        self.socket = RecordSocket(end, REQUEST)
        self.memory = memory
        self.pool = memory.pool()
        self.waiting: set[int] = set()
        """Tickets, as the core has them, that wait for their end."""

    def name(self, own: int) -> int:
        """Return what the core calls a ticket or slot of this link."""
        return self.number << _LINK_SHIFT | own


class _LinkedSlots:
    """The slots of all workers, as the core sees them."""

    def __init__(self, links: dict[int, _Link]) -> None:
        self._links = links

    def pixels(self, slot: int) -> Pixels:
        return self._links[slot >> _LINK_SHIFT].pool.pixels(slot & _OWN)

    def start(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._links[slot >> _LINK_SHIFT].pool.start((slot & _OWN,))

    def keep(self, slot: int, outputs: Outputs) -> Outputs:
        """Write results where their worker will read them."""
        self._links[slot >> _LINK_SHIFT].memory.write(slot & _OWN, outputs)
        return {}

    def finish(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._links[slot >> _LINK_SHIFT].pool.finish((slot & _OWN,))


class EngineProcess:
    """One engine, to be run in one thread, usually a process's only one.

    `control` leads to the supervisor, `row` is the engine's on the board. Workers' memory has the shape that
    `geometry` says.
    """

    def __init__(
        self,
        load_session: Callable[[], Session],
        *,
        control: ControlSocket,
        row: EngineRow,
        geometry: Geometry,
        buckets: Sequence[int],
        max_delay_s: float = 0.0,
        observer: EngineObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load_session = load_session
        self._control = control
        self._row = row
        self._geometry = geometry
        self._batcher = Batcher(BucketCosts(buckets), explain_outputs=geometry.explain_names, max_delay_s=max_delay_s)
        self._observer = observer
        self._clock = clock
        self._links: dict[int, _Link] = {}
        self._newest = 0
        self._selector = selectors.DefaultSelector()
        self._ending = False

    def run(self) -> int:
        """Load the model and serve the links until told to end; returns the process's exit status.

        A model that cannot be loaded is told to the supervisor. Any other exception means that the engine is broken,
        and leaves this method; the links end with it.
        """
        self._row.pid, self._row.state = os.getpid(), EngineState.LOADING
        try:
            core = self._load()
        except StartupError as error:
            self._control.send(Failed(str(error)))
            return 1
        try:
            self._serve(core)
        finally:
            for link in self._links.values():
                link.socket.close()
            self._selector.close()
        return 0

    def _load(self) -> EngineCore:
        session = self._load_session()
        if session.input_shape != self._geometry.input_shape:
            raise StartupError(
                f"The model takes images of {session.input_shape}; its directory promises {self._geometry.input_shape}."
            )
        core = EngineCore(session, _LinkedSlots(self._links), self._batcher, clock=self._clock, observer=self._observer)
        core.warm_up()
        self._check_outputs(session)
        self._publish(core)
        return core

    def _check_outputs(self, session: Session) -> None:
        """Raise StartupError unless the results fit the places that the workers' memory has for them."""
        names = [(session.output_names, Graph.MODEL)]
        if isinstance(session, ExplainingSession):
            names.append((session.explain_names, Graph.EXPLAIN))
        shapes: dict[str, tuple[int, ...]] = {}
        for outputs, graph in names:
            bucket = self._batcher.costs_of(graph).buckets[0]
            results = session.run(np.zeros((bucket, *session.input_shape), np.uint8), outputs)
            shapes |= {name: result.shape[1:] for name, result in results.items()}
        promised = dict(self._geometry.outputs + self._geometry.explain)
        if shapes != promised:
            raise StartupError(f"The model's outputs are {shapes}; its directory promises {promised}.")

    def _serve(self, core: EngineCore) -> None:
        self._selector.register(self._control, selectors.EVENT_READ, partial(self._read_control, core))
        self._row.state = EngineState.READY
        self._control.send(Ready())
        while not self._ending:
            for key, _ in self._selector.select(self._wait_s(core)):
                key.data()
            self._row.busy_since_s = self._clock()
            completions = core.step()
            if completions:
                self._publish(core)
                self._reply(completions)
            self._row.busy_since_s = None

    def _wait_s(self, core: EngineCore) -> float | None:
        due_s = core.ready_at_s
        return None if due_s is None else max(due_s - self._clock(), 0.0)

    def _publish(self, core: EngineCore) -> None:
        row = self._row
        row.last_failure_s, row.failures_in_a_row = core.last_failure_s, core.failures_in_a_row
        row.images_per_s = self._batcher.costs.images_per_s

    def _read_control(self, core: EngineCore) -> None:
        received = self._control.receive()
        if received is None:
            _log.error("the supervisor is gone: the engine ends")
            self._ending = True
            return
        message, descriptors = received
        match message:
            case Ping():
                self._control.send(Pong())
            case Attach(worker):
                self._attach(core, worker, *descriptors)
            case End():
                self._ending = True

    def _attach(self, core: EngineCore, worker: int, end: int, memory: int) -> None:
        for link in [link for link in self._links.values() if link.worker == worker]:
            self._lose(core, link)  # its process has ended, though that may not have been read yet
        mapped = SlotMemory(self._geometry, memory)
        os.close(memory)
        self._newest += 1
        link = _Link(self._newest, worker, socket.socket(fileno=end), mapped)
        self._links[link.number] = link
        self._selector.register(link.socket, selectors.EVENT_READ, partial(self._on_link, core, link))
        self._send(link, REPLY.pack(Reply.READY, 0, 0, 0, 0, 0, 0, 0))

    def _on_link(self, core: EngineCore, link: _Link) -> None:
        if link.number not in self._links:  # it was replaced by what the supervisor said a moment ago
            return
        if link.socket.has_unsent:
            self._send(link, b"")
        records, is_open = link.socket.receive()
        submitted: list[WorkItem] = []
        cancelled: list[int] = []
        for kind, priority, slot, mask, own, deadline_s, enqueued_s in records:
            ticket = link.name(own)
            if kind == Request.CANCEL:
                cancelled.append(ticket)
            else:
                link.waiting.add(ticket)
                outputs = self._geometry.named(mask)
                submitted.append(WorkItem(ticket, link.name(slot), outputs, Priority(priority), deadline_s, enqueued_s))
        core.submit(submitted)
        core.cancel(cancelled)
        if not is_open:
            self._lose(core, link)

    def _lose(self, core: EngineCore, link: _Link) -> None:
        core.cancel(link.waiting)
        self._selector.unregister(link.socket)
        link.socket.close()
        del self._links[link.number]

    def _reply(self, completions: Sequence[Completion]) -> None:
        replies: dict[int, list[bytes]] = {}
        for completion in completions:
            link = self._links.get(completion.ticket >> _LINK_SHIFT)
            if link is not None:  # else its worker is gone
                link.waiting.discard(completion.ticket)
                replies.setdefault(link.number, []).append(_reply(completion))
        for number, records in replies.items():
            self._send(self._links[number], b"".join(records))

    def _send(self, link: _Link, records: bytes) -> None:
        link.socket.send(records)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.socket.has_unsent else 0)
        key = self._selector.get_key(link.socket)
        if key.events != events:
            self._selector.modify(link.socket, events, key.data)


def _reply(completion: Completion) -> bytes:
    own, slot, answer = completion.ticket & _OWN, completion.slot & _OWN, completion.answer
    if answer is not None:
        return REPLY.pack(
            Reply.ANSWERED,
            slot,
            answer.batch_size,
            answer.bucket,
            own,
            answer.queue_s,
            answer.inference_s,
            answer.started_s,
        )
    assert completion.error is not None
    return REPLY.pack(reply_for(completion.error), slot, 0, 0, own, 0, 0, 0)
