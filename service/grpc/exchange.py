"""What surrounds every call over gRPC: its id, its key, its deadline, its place in log and metrics, and its early end.

It is for gRPC what `http.middleware` is for HTTP, over the same parts. Invariants: every call bears its id behind its
answer; every call leaves one access line and one count, and so does each request of a stream; what nobody expected
becomes an INTERNAL that tells nothing of its inside.

A method takes its request as a stream of one, which is the same on the wire: so the key is asked for, and whether there
is room for any image at all, before a byte of the message beyond gRPC's window is read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc.aio import EOF, ServicerContext

from service.calls.account import account
from service.calls.authorization import authorize
from service.calls.context import RequestContext, request_id_of
from service.calls.in_flight import Work
from service.calls.inference import check_any_room
from service.calls.parts import Parts
from service.engine.types import Priority
from service.errors import MalformedRequest, NotReady, ReceiveTimeout, ServiceError, TooLarge
from service.grpc.failures import HTTP_STATUSES, INTERNAL, Failure, failure_of
from service.telemetry.logs import current_request_id
from service.telemetry.stages import Stages

REQUEST_ID = "x-request-id"
_CLOCKS_S = 0.05
"""A client that has a deadline lets go of its call by its own clock, which began a little earlier."""
_log = logging.getLogger(__name__)

Serve = Callable[[RequestContext, bytes], Awaitable[bytes]]
"""Answers a message."""


class Exchange:
    """One call, or one request of a stream, from its arrival to its account."""

    def __init__(self, parts: Parts, rpc: ServicerContext, route: str, *, began_s: float) -> None:
        headers = headers_of(rpc)
        self.context = RequestContext(
            request_id_of(headers.get(REQUEST_ID, "")), Stages(began_s), Work(parts.in_flight), headers=headers
        )
        if parts.sampler is not None and parts.sampler.chooses():
            self.context.sampler = parts.sampler
        self._parts = parts
        self._route = route
        left_s = rpc.time_remaining()
        longest_s = parts.settings.timeout_ms / 1000
        self.context.answer_within(1000 * (longest_s if left_s is None else min(max(left_s, 0.0), longest_s)))

    async def run(self, serve: Callable[[], Awaitable[bytes]]) -> bytes | Failure:
        """Return the answer that `serve` gives, or how the call fails; raises CancelledError where gRPC ends it."""
        context = self.context
        served = current_request_id.set(context.request_id)
        self._parts.metrics.request_began()
        end: bytes | Failure = INTERNAL
        status: int | None = None
        try:
            with context.work:
                end = await serve()
        except ServiceError as error:
            end = failure_of(error)
        except asyncio.CancelledError:
            end = (
                failure_of(NotReady("The service has ended.")) if self._parts.in_flight.given_up else self._cancelled()
            )
            raise
        except Exception:
            _log.exception("unexpected failure")
        finally:
            if isinstance(end, Failure):
                context.code = end.reason
                status = HTTP_STATUSES[end.status]
            account(
                context,
                self._scope(),
                route=self._route,
                status=status or HTTP_STATUSES[StatusCode.OK],
                metrics=self._parts.metrics,
                tracer=self._parts.tracer,
            )
            current_request_id.reset(served)
        return end

    def _cancelled(self) -> Failure:
        """Return why gRPC ended the call: at its deadline it does so itself, at about the time that its work would."""
        if time.monotonic() >= self.context.work.deadline_s - _CLOCKS_S:
            return Failure(StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded", "The deadline passed.")
        return Failure(StatusCode.CANCELLED, "cancelled", "The client cancelled the call.")

    def _scope(self) -> dict[str, Any]:
        """Return the call as the request of HTTP/2 that it is, with the header that continues a trace."""
        trace = self.context.headers.get("traceparent")
        return {
            "type": "http",
            "method": "POST",
            "scheme": "https" if self._parts.settings.tls_certificate else "http",
            "headers": [] if trace is None else [(b"traceparent", trace.encode("latin-1"))],
        }


def single(parts: Parts, route: str, serve: Serve, *, key_wanted: bool, runs_model: bool = False) -> Any:
    """Return what gRPC calls for a method with one request and one answer."""

    async def call(_: object, rpc: ServicerContext) -> bytes:
        exchange = Exchange(parts, rpc, route, began_s=time.monotonic())
        context = exchange.context

        async def answer() -> bytes:
            if key_wanted:
                authorize(context, parts)
            if runs_model:
                check_any_room(context, parts.models.served, Priority.INTERACTIVE)
            return await serve(context, await _receive(rpc, context, parts))

        end = await exchange.run(answer)
        request_id = (REQUEST_ID, context.request_id)
        if not isinstance(end, Failure):
            rpc.set_trailing_metadata((request_id,))
            return end
        await rpc.abort(end.status, end.detail, (request_id, *end.metadata()))
        return b""  # nothing gets here: abort raises

    return call


async def _receive(rpc: ServicerContext, context: RequestContext, parts: Parts) -> bytes:
    """Return a call's one message; the work is ended with ReceiveTimeout where that takes too long."""
    receive_timeout_s = parts.settings.receive_timeout_ms / 1000
    late = ReceiveTimeout(f"The message did not arrive within {receive_timeout_s:g} s.")
    timer = asyncio.get_running_loop().call_later(receive_timeout_s, context.work.end, late)
    try:
        message = await rpc.read()
    finally:
        timer.cancel()
    if message is EOF:
        # gRPC has told the client which, and does not tell us.
        raise TooLarge(f"The call has no message, or one larger than {parts.settings.max_body_bytes} bytes.")
    received: bytes = message
    return received


def parsed(kind: Any, message: bytes) -> Any:
    """Return a message of a kind; raises MalformedRequest."""
    try:
        return kind.FromString(message)
    except DecodeError:
        raise MalformedRequest(f"The message is no {kind.DESCRIPTOR.full_name}.") from None


def headers_of(rpc: ServicerContext) -> Mapping[str, str]:
    """Return a call's metadata by their names, of one that was sent several times the first; binary ones are not."""
    metadata = rpc.invocation_metadata() or ()
    return {name: value for name, value in reversed(tuple(metadata)) if isinstance(value, str)}
