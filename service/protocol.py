"""uvicorn's HTTP/1.1 by httptools, with a limit on a request's head, and answers that leave in one piece.

httptools parses several times faster than h11, but takes a head of any size: here a request whose line and headers
pass the limit is answered 400 and its connection closed, however the bytes arrive. And uvicorn hands the head of an
answer and its body to the socket one after the other, which are two system calls, two packets and two wake-ups of the
client; here the head waits for the body's first part.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024


class Protocol(HttpToolsProtocol):
    """One connection."""

    _head_bytes = 0
    """What has arrived of the present request's head, as far as the parser has told; the body does not count."""
    _in_head = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection up."""
        self._whole = OnePieceTransport(cast(asyncio.Transport, transport))
        super().connection_made(cast(asyncio.Transport, self._whole))

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; a head that is not whole yet must not be over the limit."""
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_head()

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        """Pass the request to the application, unless its head is over the limit; ValueError makes httptools end."""
        self._in_head = False
        self._head_bytes = 0
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            raise ValueError("the head of a request is too large")
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """End the answer, one without a body too."""
        self._whole.flush()
        super().on_response_complete()

    def _refuse_head(self) -> None:
        message = "The head of the request is too large."
        self.logger.warning(message)
        self.send_400_response(message)


class OnePieceTransport:
    """What uvicorn uses of a transport; the head of an answer is held back for the write after it.

    A head is known by its beginning. Whatever else begins so is delayed in the same way, and never lost: what is held
    leaves before all that is written later, and at the latest with the answer's end.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: bytes | None = None
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.get_extra_info = transport.get_extra_info

    def write(self, data: bytes) -> None:
        """Write, together with what is held; or hold."""
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.writelines((held, data))
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._held = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Write what is held."""
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.write(held)

    def close(self) -> None:
        """Write what is held, and close when all has left."""
        self.flush()
        self._transport.close()

    def set_protocol(self, protocol: Any) -> None:
        """Hand the connection to another protocol."""
        self._transport.set_protocol(protocol)
