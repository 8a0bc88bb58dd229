"""uvicorn's HTTP/1.1 by httptools, with limits on a request's head, and answers that leave in one piece.

httptools parses several times faster than h11, but takes a head of any size: here a request whose line and headers
pass the limit is answered 400 and its connection closed, however the bytes arrive. uvicorn waits for a head for ever:
here one that is not whole in time is answered 408, and a new connection that says nothing is closed like one that
falls silent between requests. And uvicorn hands the head of an answer and its body to the socket one after the other,
which are two system calls, two packets and two wake-ups of the client; here the head waits for the body's first part.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import MalformedRequest, ReceiveTimeout, ServiceError
from service.problems import problem_for
from service.security_headers import SecurityHeaders

MAX_HEAD_BYTES = 64 * 1024


class Protocol(HttpToolsProtocol):
    """One connection; `within` makes the class that a server needs."""

    security: SecurityHeaders
    receive_timeout_s: float
    """From a head's first byte to its last."""
    _head_bytes = 0
    """What has arrived of the present request's head, as far as the parser has told; the body does not count."""
    _in_head = True
    _answering: RequestResponseCycle | None = None
    """Of requests that were sent one upon the other, the first that is not answered."""
    _head_timer: asyncio.TimerHandle | None = None
    """Runs while a head has begun to arrive; most arrive in one piece and need none."""

    @classmethod
    def within(cls, receive_timeout_s: float, security: SecurityHeaders) -> type[Protocol]:
        """Return the class of connections on which a head must arrive within that time."""
        return type(cls.__name__, (cls,), {"receive_timeout_s": receive_timeout_s, "security": security})

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection up."""
        self._whole = OnePieceTransport(cast(asyncio.Transport, transport))
        super().connection_made(cast(asyncio.Transport, self._whole))
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the connection go, and tell the request that is being answered; uvicorn tells the newest alone."""
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._stop_head_timer()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; a head that is not whole yet must not be over the limit, and is waited for so long."""
        was_in_head = self._in_head
        super().data_received(data)
        # Between requests, what begins no head is the empty lines that HTTP allows before one.
        if not self.transport.is_closing() and (self._in_head or self.cycle.response_complete):
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(self.receive_timeout_s, self._head_is_late)
            if was_in_head:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        """Pass the request to the application, unless its head is over the limit; ValueError makes httptools end."""
        self._in_head = False
        self._head_bytes = 0
        self._stop_head_timer()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            raise ValueError("the head of a request is too large")
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """End the answer, one without a body too."""
        self._whole.flush()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, or none that is taken, and close; `msg` is a sentence without anything of it."""
        self._refuse(MalformedRequest(msg))

    def _refuse(self, error: ServiceError) -> None:
        """Answer and close, where there is no request that the application could answer."""
        request_id = uuid.uuid4().hex
        self.logger.warning(str(error), extra={"fields": {"request_id": request_id, "code": error.code}})
        response = problem_for(error, request_id=request_id)
        headers = [*response.raw_headers, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
        self.security.complete(headers)
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[response.status_code] + lines + b"\r\n" + bytes(response.body))
        self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # An earlier request is still being answered, and the answer to this one comes after: it has until then.
            self._head_timer = self.loop.call_later(self.receive_timeout_s, self._head_is_late)
            return
        self._refuse(ReceiveTimeout(f"The head of the request did not arrive within {self.receive_timeout_s:g} s."))


class OnePieceTransport:
    """What uvicorn uses of a transport; the head of an answer is held back for the write after it.

    A head is known by its beginning. Whatever else begins so is delayed in the same way, and never lost: what is held
    leaves before all that is written later, and at the latest with the answer's end.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: bytes | None = None
        self.is_closing = transport.is_closing
        self.abort = transport.abort
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
