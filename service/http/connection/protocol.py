"""uvicorn's HTTP/1.1 by httptools, with limits on a request's head, and answers that leave in one piece and in order.

httptools parses several times faster than h11, but takes a head of any size: here a request whose line and headers
pass the limit is answered 400 and its connection closed, however the bytes arrive. uvicorn waits for a head for ever:
here one that is not whole in time is answered 408, and a new connection that says nothing is closed like one that
falls silent between requests. What cannot be read as a request is answered 400 after the answers to all requests
before it, which uvicorn would drop. A client that goes is noticed although it has sent one more request. A request
that offers another protocol (`Upgrade: h2c`, as Java's client does with every first one) is answered in this one;
llhttp would take its body for that protocol's, and for the next request. And uvicorn hands the head of an answer and
its body to the socket one after the other, which are two system calls, two packets and two wake-ups of the client; here
the head waits for the body's first part.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.calls.in_flight import Departure
from service.errors import MalformedRequest, ReceiveTimeout, ServiceError
from service.http.connection.heads import MAX_HEAD_BYTES, check_head, framing_of
from service.http.departure import DEPARTURE
from service.http.middleware import LINGER_S
from service.http.problems import problem_for
from service.http.security_headers import SecurityHeaders


class Protocol(HttpToolsProtocol):
    """One connection; `within` makes the class that a server needs."""

    security: SecurityHeaders
    problems_root_path: str
    receive_timeout_s: float
    """From a head's first byte to its last."""
    _head_bytes = 0
    """What has arrived of the present request's head, as far as the parser has told; the body does not count."""
    _in_head = True
    _answering: RequestResponseCycle | None = None
    """Of requests that were sent one upon the other, the first that is not answered."""
    _head_timer: asyncio.TimerHandle | None = None
    """Runs while a head has begun to arrive; most arrive in one piece and need none."""
    _refusal: ServiceError | None = None
    """What the connection ends with, when the answers before it are out; nothing that arrives is looked at any more."""
    _linger_timer: asyncio.TimerHandle | None = None
    """Runs while what is still sent after a refusal is read and dropped."""
    _framing: bytes = b""
    """Of the present request, where it offers another protocol and has a body: the headers that say where that ends."""
    _is_repeating = False
    """While a parser is given a head that the application has already."""

    @classmethod
    def within(cls, receive_timeout_s: float, security: SecurityHeaders, *, root_path: str = "") -> type[Protocol]:
        """Return the class of connections on which a head must arrive within that time."""
        own = {"receive_timeout_s": receive_timeout_s, "security": security, "problems_root_path": root_path}
        return type(cls.__name__, (cls,), own)

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
            departure: Departure = self._answering.scope["state"][DEPARTURE]
            departure.happen()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._stop_head_timer()
        if self._linger_timer is not None:
            self._linger_timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; a head that is not whole yet must not be over the limit, and is waited for so long."""
        if self._refusal is not None:
            return
        was_in_head = self._in_head
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self._refuse(_malformed(error))
            return
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
        if not self._is_repeating:
            super().on_message_begin()
            self.scope["state"][DEPARTURE] = Departure()
            self._in_head = True

    def on_url(self, url: bytes) -> None:
        """Take in a part of the request's target."""
        if not self._is_repeating:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header."""
        if not self._is_repeating:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Pass the request to the application, unless its head is at fault; MalformedRequest makes httptools end."""
        if self._is_repeating:
            return
        self._in_head = False
        self._head_bytes = 0
        self._stop_head_timer()
        self.url = check_head(
            self.parser.get_method(), self.url, self.headers, http_version=self.parser.get_http_version()
        )
        self._framing = framing_of(self.headers) if self.parser.should_upgrade() else b""
        super().on_headers_complete()
        if len(self.pipeline) == 1:
            # uvicorn stops reading here, and would not see the client of the request before it go.
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        """End the request's body, unless that has been taken for another protocol's and is still to come."""
        if not (self._framing and self.parser.should_upgrade()):
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """End the answer, one without a body too."""
        self._whole.flush()
        is_last = not self.pipeline
        super().on_response_complete()
        if self._refusal is not None and is_last:
            self._end_with_refusal()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, or none that is taken, and close; `msg` is a sentence without anything of it."""
        self._refuse(MalformedRequest(msg))

    def _parse(self, data: bytes) -> None:
        """Have requests parsed; one that offers another protocol goes on in this one, as it may by RFC 9110, 7.8."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                if self._framing:
                    self._parse_body_anew()
            else:
                return

    def _parse_body_anew(self) -> None:
        """Take a parser that expects the body, and no other protocol, by giving it a head of such a request."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self._is_repeating = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + self._framing + b"\r\n")
        self._is_repeating = False

    def _refuse(self, error: ServiceError) -> None:
        """Answer and close, where there is no request that the application could answer, after those before it."""
        self._refusal = error
        self._stop_head_timer()
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._end_with_refusal()
        elif self.pipeline:
            if cycle.more_body:  # it is this last one's body that cannot be read, and nobody has begun to answer it
                self.pipeline.popleft()
        elif cycle.more_body:
            if cycle.response_started:
                self.transport.close()  # its answer has been given, and says that the connection ends
            else:
                self._end_with_refusal()

    def _end_with_refusal(self) -> None:
        error = self._refusal
        if error is None or self._linger_timer is not None or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        request_id = uuid.uuid4().hex
        self.logger.warning(str(error), extra={"fields": {"request_id": request_id, "code": error.code}})
        response = problem_for(error, request_id=request_id).under("", root_path=self.problems_root_path)
        headers = [*response.raw_headers, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
        self.security.complete(headers)
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self._whole.write(STATUS_LINE[response.status_code] + lines + b"\r\n" + bytes(response.body))
        self._whole.end()
        # Closed at once, with something of the request unread, the connection would be reset, and the answer lost.
        self.flow.resume_reading()
        self._linger_timer = self.loop.call_later(LINGER_S, self.transport.close)

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


def _malformed(error: httptools.HttpParserError) -> MalformedRequest:
    """Return what to say of it: what this module found, or llhttp's reason, which holds nothing of the request."""
    if isinstance(error.__context__, MalformedRequest):
        return error.__context__
    if isinstance(error, httptools.HttpParserCallbackError):
        return MalformedRequest("The head of the request cannot be read.")
    return MalformedRequest(f"This is no request of HTTP/1.1: {error}.")


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

    def end(self) -> None:
        """Write what is held, and no more; what is written under TLS says so itself, by its length."""
        self.flush()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def close(self) -> None:
        """Write what is held, and close when all has left."""
        self.flush()
        self._transport.close()

    def set_protocol(self, protocol: Any) -> None:
        """Hand the connection to another protocol."""
        self._transport.set_protocol(protocol)
