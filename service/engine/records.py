"""The records that pass between a worker and an engine: fixed sizes, over one stream socket for each such pair.

    worker to engine   Request   SUBMIT an image that lies in a slot; CANCEL one that nobody waits for any more
    engine to worker   Reply     READY, once; then how each submitted image ended

An image's pixels and results lie in shared memory (`shared`); a record says where, never what. Graphs are numbered in
the order that all processes share, and a graph's outputs are the bits of a number. The engine answers every SUBMIT
that it has read with exactly one reply, so that replies which a worker does not read are at most as many as it has
slots. A socket that ends means that the process at its other end has.
"""

from __future__ import annotations

import enum
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from service.engine.graphs import Graph
from service.engine.types import Completion, Failure, Priority, Run, WorkItem

_CHUNK_BYTES = 64 * 1024


class RequestKind(enum.IntEnum):
    """What a worker asks."""

    SUBMIT = 0
    CANCEL = 1


class ReplyKind(enum.IntEnum):
    """What an engine says: that it takes work, that an image was run, or the name of a Failure."""

    READY = 0
    ANSWERED = 1
    FAILED = 2
    LATE = 3
    CANCELLED = 4


class Request(NamedTuple):
    """What a worker sends; a CANCEL has its ticket alone."""

    kind: int
    ticket: int
    slot: int = 0
    graph: int = 0
    height: int = 0
    width: int = 0
    outputs: int = 0
    priority: int = 0
    deadline_s: float = 0.0
    enqueued_s: float = 0.0


class Reply(NamedTuple):
    """What an engine sends; from `queue_s` on as in a `Run`, where the image was ANSWERED."""

    kind: int
    ticket: int = 0
    queue_s: float = 0.0
    inference_s: float = 0.0
    batch_size: int = 0
    bucket: int = 0
    started_s: float = 0.0


RecordT = TypeVar("RecordT", Request, Reply)

LAYOUTS: dict[type, struct.Struct] = {Request: struct.Struct("=BQIBHHQBdd"), Reply: struct.Struct("=BQddIId")}
"""Each record's fields in their order, without padding."""


def request_for(item: WorkItem, graphs: Sequence[Graph]) -> Request:
    """Return the SUBMIT of an image."""
    number, graph = next((number, graph) for number, graph in enumerate(graphs) if graph.key == item.graph)
    mask = sum(1 << bit for bit, name in enumerate(graph.outputs) if name in item.outputs)
    return Request(
        RequestKind.SUBMIT,
        item.ticket,
        item.slot,
        number,
        *item.shape,
        mask,
        item.priority,
        item.deadline_s,
        item.enqueued_s,
    )


def work_item(request: Request, graphs: Sequence[Graph], *, ticket: int, slot: int) -> WorkItem:
    """Return the image of a SUBMIT, by the ticket and slot that the engine has for it."""
    graph = graphs[request.graph]
    outputs = frozenset(name for bit, name in enumerate(graph.outputs) if request.outputs >> bit & 1)
    priority = Priority(request.priority)
    shape = request.height, request.width
    return WorkItem(ticket, slot, graph.key, shape, outputs, priority, request.deadline_s, request.enqueued_s)


def reply_for(completion: Completion, *, ticket: int) -> Reply:
    """Return the reply for an image that has ended, by the ticket that the worker has for it."""
    match completion.end:
        case Failure(name=name):
            return Reply(ReplyKind[name], ticket)
        case run:
            return Reply(ReplyKind.ANSWERED, ticket, *run)


def completion_of(reply: Reply, *, slot: int) -> Completion:
    """Return the end of the image in a slot, of any reply but READY."""
    kind = ReplyKind(reply.kind)
    return Completion(reply.ticket, slot, Run(*reply[2:]) if kind is ReplyKind.ANSWERED else Failure[kind.name])


class RecordSocket(Generic[RecordT]):
    """One end of a pair: records of one kind come in, any go out; neither ever blocks.

    What the socket does not take at once is kept, and goes with `flush` when the socket can be written.
    """

    def __init__(self, end: socket.socket, incoming: type[RecordT]) -> None:
        end.setblocking(False)
        self._socket = end
        self._incoming: type[RecordT] = incoming
        self._layout = LAYOUTS[incoming]
        self._partial = b""
        self._unsent = bytearray()

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether `flush` is wanted when the socket can be written."""
        return bool(self._unsent)

    def send(self, records: Iterable[Request] | Iterable[Reply]) -> None:
        """Send records, after those that were sent before."""
        for record in records:
            self._unsent += LAYOUTS[type(record)].pack(*record)
        self.flush()

    def flush(self) -> None:
        """Send as much as the socket takes. Nothing is sent to an end that is gone: `receive` will show it."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._unsent.clear()

    def receive(self) -> tuple[list[RecordT], bool]:
        """Return the records that have come, all of them, and whether the other end is still there."""
        chunks = [self._partial]
        is_open = True
        try:
            while is_open:
                chunk = self._socket.recv(_CHUNK_BYTES)
                chunks.append(chunk)
                is_open = bool(chunk)
        except BlockingIOError:
            pass
        except ConnectionResetError:  # the other end went with records unread
            is_open = False
        data = b"".join(chunks)
        whole = len(data) - len(data) % self._layout.size
        self._partial = data[whole:]
        return [self._incoming._make(fields) for fields in self._layout.iter_unpack(data[:whole])], is_open

    def close(self) -> None:
        """Let go of the socket: the other end sees it end."""
        self._socket.close()
