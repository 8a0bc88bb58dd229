"""An engine with links to workers, driven by a thread of its own in an engine process.

It waits for its links, what its process asks of it and the next due step at once, and never for a single one of them: a
worker that does not read its replies costs the memory of so many records, and nobody else's time.

Invariants: between steps, when links come and go, no run touches any worker's memory; whatever a link that has ended
left in the queue is never run, and its worker's memory is let go of at once.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from service.engine.board import EngineRow
from service.engine.core import EngineCore, EngineObserver
from service.engine.device_turns import Contender
from service.engine.graphs import Graph
from service.engine.named_thread import NamedThread
from service.engine.records import RecordSocket, Reply, ReplyKind, Request, RequestKind, reply_for, work_item
from service.engine.shared import Geometry, SharedSlots
from service.engine.types import Completion, EngineState, Outputs, Pixels, Session, Shape, WorkItem
from service.errors import StartupError

_log = logging.getLogger(__name__)

_LINK_SHIFT = 48
"""A ticket or slot in the core is a link's number and, in the lower bits, what the link's worker calls it."""
_OWN = (1 << _LINK_SHIFT) - 1


class _Link:
    """The way to one worker process, and its slots."""

    def __init__(self, number: int, worker: int, end: socket.socket, slots: SharedSlots) -> None:
        self.number = number
        self.worker = worker
        self.socket = RecordSocket(end, Request)
        self.slots = slots
        self.waiting: set[int] = set()
        """Tickets, as the core has them, that wait for their end."""

    def name(self, own: int) -> int:
        """Return what the core calls a ticket or slot of this link."""
        return self.number << _LINK_SHIFT | own


class _LinkedSlots:
    """The slots of all workers, as the core sees them."""

    def __init__(self, links: dict[int, _Link]) -> None:
        self._links = links

    def pixels(self, slot: int, shape: Shape) -> Pixels:
        return self._links[slot >> _LINK_SHIFT].slots.pixels(slot & _OWN, shape)

    def start(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._links[slot >> _LINK_SHIFT].slots.start((slot & _OWN,))

    def deliver(self, slot: int, shape: Shape, outputs: Outputs) -> None:
        self._links[slot >> _LINK_SHIFT].slots.deliver(slot & _OWN, shape, outputs)

    def finish(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._links[slot >> _LINK_SHIFT].slots.finish((slot & _OWN,))


class LinkedEngine:
    """One engine and its thread; the methods are for the process's main thread.

    `load` gives the session of each graph that `geometry` lists, which is also the shape of the workers' memory; `row`
    is the engine's on its version's board, and `contender` its place in the line for the device. The callbacks are
    called in the engine's thread: `on_loaded` once it takes work, or `on_failed` with the reason why it never will, and
    `on_end` last and always, with the exception that broke the engine, if one did.
    """

    def __init__(
        self,
        load: Callable[[Graph], Session],
        *,
        row: EngineRow,
        geometry: Geometry,
        contender: Contender,
        on_loaded: Callable[[], object],
        on_failed: Callable[[str], object],
        on_end: Callable[[BaseException | None], object],
        max_delay_s: float = 0.0,
        observer: EngineObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._row = row
        self._geometry = geometry
        self._contender = contender
        self._on_loaded = on_loaded
        self._on_failed = on_failed
        self._on_end = on_end
        self._max_delay_s = max_delay_s
        self._observer = observer
        self._clock = clock
        self._links: dict[int, _Link] = {}
        self._newest = 0
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()  # over the two below
        self._asked: list[Callable[[], None]] = []
        self._is_closed = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ending = False
        self._core: EngineCore
        self._thread = NamedThread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._row.state = EngineState.LOADING
        self._thread.start()

    def attach(self, worker: int, end: int, memory: int) -> None:
        """Link the engine to a worker, in place of a link to its predecessor; takes over both descriptors."""
        self._ask(lambda: self._attach(worker, end, memory))

    def end(self) -> None:
        """Ask the thread to end after its present step, with what waits left undone; `on_end` tells when it has."""

        def end() -> None:
            self._ending = True

        self._ask(end)

    def _ask(self, command: Callable[[], None]) -> None:
        with self._lock:
            if not self._is_closed:
                self._asked.append(command)
                os.eventfd_write(self._wake, 1)
                return
        command()

    # All that follows is the thread's.

    def _main(self) -> None:
        cause: BaseException | None = None
        try:
            self._run()
        except StartupError as error:
            self._on_failed(str(error))
        except BaseException as error:  # whatever it is, nobody works for the workers any more
            cause = error
            _log.exception("the engine has failed")
        finally:
            self._close()
            self._on_end(cause)

    def _run(self) -> None:
        graphs = self._geometry.graphs
        self._core = EngineCore(
            graphs,
            {graph.key: self._load(graph) for graph in graphs},
            _LinkedSlots(self._links),
            self._row,
            input_shape=self._geometry.input_shape,
            clock=self._clock,
            max_delay_s=self._max_delay_s,
            observer=self._observer,
            contender=self._contender,
        )
        self._core.warm_up()
        self._selector.register(self._wake, selectors.EVENT_READ, self._obey)
        self._row.state = EngineState.READY
        self._on_loaded()
        while not self._ending:
            self._take_in(self._wait_s())
            if not self._ending:
                self._reply(self._core.step(lambda: self._take_in(0.0)))

    def _take_in(self, wait_s: float | None) -> None:
        """Wait for something to do, and submit, cancel and link what has come."""
        for key, _ in self._selector.select(wait_s):
            key.data()

    def _wait_s(self) -> float | None:
        due_s = self._core.ready_at_s
        return None if due_s is None else max(due_s - self._clock(), 0.0)

    def _obey(self) -> None:
        os.eventfd_read(self._wake)
        with self._lock:
            asked, self._asked = self._asked, []
        for command in asked:
            command()

    def _close(self) -> None:
        """Let go of the links and the device; the sessions go with this object."""
        self._row.clear()
        self._contender.leave()
        for link in self._links.values():
            link.socket.close()
        self._links.clear()
        self._selector.close()
        with self._lock:
            self._is_closed = True
            os.close(self._wake)
        for command in self._asked:
            command()

    def _attach(self, worker: int, end: int, memory: int) -> None:
        if self._is_closed:
            os.close(end)
            os.close(memory)
            return
        for link in [link for link in self._links.values() if link.worker == worker]:
            self._lose(link)  # its process has ended, though that may not have been read yet
        slots = SharedSlots(self._geometry, memory)
        os.close(memory)
        self._newest += 1
        link = _Link(self._newest, worker, socket.socket(fileno=end), slots)
        self._links[link.number] = link
        self._selector.register(link.socket, selectors.EVENT_READ, partial(self._on_link, link))
        self._send(link, [Reply(ReplyKind.READY)])

    def _on_link(self, link: _Link) -> None:
        if link.number not in self._links:  # it was replaced a moment ago
            return
        if link.socket.has_unsent:
            self._send(link, [])
        requests, is_open = link.socket.receive()
        submitted: list[WorkItem] = []
        cancelled: list[int] = []
        for request in requests:
            ticket = link.name(request.ticket)
            if request.kind == RequestKind.CANCEL:
                cancelled.append(ticket)
            else:
                link.waiting.add(ticket)
                slot = link.name(request.slot)
                submitted.append(work_item(request, self._geometry.graphs, ticket=ticket, slot=slot))
        self._core.submit(submitted)
        self._core.cancel(cancelled)
        if not is_open:
            self._lose(link)

    def _lose(self, link: _Link) -> None:
        self._core.cancel(link.waiting)
        self._selector.unregister(link.socket)
        link.socket.close()
        del self._links[link.number]

    def _reply(self, completions: Sequence[Completion]) -> None:
        replies: dict[int, list[Reply]] = {}
        for completion in completions:
            link = self._links.get(completion.ticket >> _LINK_SHIFT)
            if link is not None:  # else its worker is gone
                link.waiting.discard(completion.ticket)
                reply = reply_for(completion, ticket=completion.ticket & _OWN)
                replies.setdefault(link.number, []).append(reply)
        for number, records in replies.items():
            self._send(self._links[number], records)

    def _send(self, link: _Link, replies: Sequence[Reply]) -> None:
        link.socket.send(replies)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.socket.has_unsent else 0)
        key = self._selector.get_key(link.socket)
        if key.events != events:
            self._selector.modify(link.socket, events, key.data)
