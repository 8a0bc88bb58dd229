"""The records that pass between a worker and an engine: fixed sizes, over one stream socket for each such pair.

    worker to engine   REQUEST   SUBMIT an image that lies in a slot; CANCEL one that nobody waits for any more
    engine to worker   REPLY     READY, once; then how each submitted image ended

An image's pixels and results lie in shared memory (`shared`); a record says where, never what. The engine answers
every SUBMIT that it has read with exactly one reply, so that replies which a worker does not read are at most as many
as it has slots. A socket that ends means that the process at its other end has.
"""

from __future__ import annotations

import enum
import socket
import struct
from typing import Any

from service.errors import Cancelled, DeadlineExceeded, InferenceFailed, ServiceError

REQUEST = struct.Struct("=BBxxIQQdd")
"""Kind, priority, slot, outputs (a bit each), ticket, deadline_s, enqueued_s; a CANCEL has its ticket alone."""
REPLY = struct.Struct("=BxxxIIIQddd")
"""Kind, slot, batch size, bucket, ticket, queue_s, inference_s, started_s; READY has nothing, failures no times."""

_CHUNK_BYTES = 64 * 1024


class Request(enum.IntEnum):
    """What a worker asks."""

    SUBMIT = 0
    CANCEL = 1


class Reply(enum.IntEnum):
    """What an engine tells."""

    READY = 0
    ANSWERED = 1
    FAILED = 2
    LATE = 3
    CANCELLED = 4


_FAILURES: dict[Reply, tuple[type[ServiceError], str]] = {
    Reply.FAILED: (InferenceFailed, "The engine failed on the batch that this image was in."),
    Reply.LATE: (DeadlineExceeded, "The deadline passed while the image was waiting."),
    Reply.CANCELLED: (Cancelled, "The request was cancelled."),
}


def failure_of(kind: Reply) -> ServiceError:
    """Return the error that a reply stands for; one of its own for each image."""
    error, sentence = _FAILURES[kind]
    return error(sentence)


def reply_for(error: ServiceError) -> Reply:
    """Return the reply that stands for an image's error; any that has none of its own counts as the engine's."""
    return next((kind for kind, (failure, _) in _FAILURES.items() if isinstance(error, failure)), Reply.FAILED)


class RecordSocket:
    """One end of a pair: records of one size come in, any bytes go out; neither ever blocks.

    What the socket does not take at once is kept, and goes with `flush` when the socket can be written.
    """

    def __init__(self, end: socket.socket, incoming: struct.Struct) -> None:
        end.setblocking(False)
        self._socket = end
        self._incoming = incoming
        self._partial = b""
        self._unsent = bytearray()

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether `flush` is wanted when the socket can be written."""
        return bool(self._unsent)

    def send(self, records: bytes) -> None:
        """Send whole records, after those that were sent before."""
        self._unsent += records
        self.flush()

    def flush(self) -> None:
        """Send as much as the socket takes. Nothing is sent to an end that is gone: `receive` will tell."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._unsent.clear()

    def receive(self) -> tuple[list[tuple[Any, ...]], bool]:
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
        whole = len(data) - len(data) % self._incoming.size
        self._partial = data[whole:]
        return list(self._incoming.iter_unpack(data[:whole])), is_open

    def close(self) -> None:
        """Let go of the socket: the other end sees it end."""
        self._socket.close()
