"""What surrounds every request: its id, its place in the log and the metrics, its early end, and its connection's end.

Invariants: every response carries `X-Request-ID`; every request leaves one access line and one count; work that ends
early is answered as `calls.in_flight` says, in whatever stage it was; an exception that nobody expected becomes
a 500 that tells nothing of its inside. A response that is sent before the request's body was read closes the
connection, but lingers: it reads and discards for a while what the client still sends, since closing at once would
reset the connection and could take the answer from the client's hands.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.calls.account import UNMATCHED, account
from service.calls.context import RequestContext, request_id_of
from service.calls.in_flight import InFlight, Work
from service.errors import NotReady, ServiceError
from service.http.context import context_of, headers_of
from service.http.departure import watch
from service.http.problems import (
    ProblemResponse,
    internal_problem,
    problem_for,
    problem_for_http,
    problem_for_validation,
)
from service.http.root_path import below
from service.http.security_headers import SecurityHeaders
from service.samples.sampler import Sampler
from service.telemetry.logs import current_request_id
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages
from service.telemetry.tracing import Tracer

REQUEST_ID_HEADER = "X-Request-ID"
LINGER_S = 2.0

_REQUEST_ID_NAME = REQUEST_ID_HEADER.lower()
_REQUEST_ID_RAW = _REQUEST_ID_NAME.encode()
_log = logging.getLogger(__name__)


def exception_answers() -> dict[Any, Any]:
    """Return the framework's table of answers to exceptions: each becomes a problem document."""

    async def answer(request: Request, error: Exception) -> Response:
        return problem_answer(request, error)

    return dict.fromkeys(_PROBLEMS, answer)


_PROBLEMS: dict[type[Exception], Callable[..., ProblemResponse]] = {
    ServiceError: problem_for,
    HTTPException: problem_for_http,
    RequestValidationError: problem_for_validation,
}
EXPECTED_EXCEPTIONS = tuple(_PROBLEMS)


def problem_answer(request: Request, error: Exception) -> Response:
    """Return the answer to one of EXPECTED_EXCEPTIONS, and note its code."""
    make = next(make for kind, make in _PROBLEMS.items() if isinstance(error, kind))
    context = context_of(request)
    response = make(error, request_id=context.request_id)
    context.code = response.code
    return _as_asked(response, context)


def _as_asked(problem: ProblemResponse, context: RequestContext) -> Response:
    """Return a problem in the form that callers of the request's path expect."""
    return problem.under(below(context.path, context.root_path), root_path=context.root_path)


class _Exchange:
    """One request and its response as they pass: what was received, what was sent, and how the connection ends."""

    def __init__(
        self, context: RequestContext, scope: Scope, security: SecurityHeaders, receive: Receive, send: Send
    ) -> None:
        self._context = context
        self._scope = scope
        self._security = security
        self._receive = receive
        self._send = send
        headers = context.headers
        self._body_pending = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self._awaits_continue = "expect" in headers and headers["expect"].lower() == "100-continue"
        self.status: int | None = None
        self.lingers = True
        """Whether there is time to read what the client still sends after its answer."""

    async def receive(self) -> Message:
        self._awaits_continue = False
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_pending = False
            watch(self._context.work, self._scope, self._receive)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._context.work.close()
            self.status = message["status"]
            message["headers"] = self._complete([*message.get("headers", ())])
        elif self._body_pending and not self._awaits_continue and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            if self.lingers:
                await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _complete(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Add what every answer bears; names are in lower case, as ASGI has them."""
        context = self._context
        headers.append((_REQUEST_ID_RAW, context.request_id.encode()))
        if self.status is not None and self.status >= 400 and all(name != b"server-timing" for name, _ in headers):
            total_ms = (time.monotonic() - context.stages.started_s) * 1000
            headers.append((b"server-timing", f"total;dur={total_ms:.3f}".encode()))
        if self._body_pending:
            headers = [header for header in headers if header[0] != b"connection"]
            headers.append((b"connection", b"close"))
        self._security.complete(headers)
        return headers

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                while self._body_pending:
                    await self.receive()
        except TimeoutError:
            _log.debug("a client went on sending after its answer")
        except asyncio.CancelledError:
            # Whoever cancels wants the request to be over, and but for this it is.
            _log.debug("the server does not wait for what a client sends after its answer")


class CutShort(Exception):
    """An answer could not be completed; says nothing of why, since the server logs it once more."""


class RequestContextMiddleware:
    """The outermost layer of the application's own; `cors` is the one below it, around errors too."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        in_flight: InFlight,
        security: SecurityHeaders,
        cors: Callable[[ASGIApp], ASGIApp],
        tracer: Tracer | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self._app = app
        self._cors = cors
        self._surrounded = cors(self._until_it_ends)
        self._metrics = metrics
        self._in_flight = in_flight
        self._security = security
        self._tracer = tracer
        self._sampler = sampler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)
        context = RequestContext(
            request_id_of(headers.get(_REQUEST_ID_NAME, "")),
            Stages(time.monotonic()),
            Work(self._in_flight),
            path=scope["path"],
            root_path=scope.get("root_path", ""),
            headers=headers,
        )
        if self._sampler is not None and self._sampler.chooses():
            context.sampler = self._sampler
        scope.setdefault("state", {})["context"] = context
        exchange = _Exchange(context, scope, self._security, receive, send)
        served = current_request_id.set(context.request_id)
        self._metrics.request_began()
        try:
            await self._surrounded(scope, exchange.receive, exchange.send)
        except Exception:
            _log.exception("unexpected failure")
            context.code = "internal"
            if exchange.status is not None:
                raise CutShort("Half an answer is out: only a broken connection tells the client.") from None
            answer = _as_asked(internal_problem(request_id=context.request_id), context)
            await self._cors(answer)(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            if exchange.status is None:
                await self._answer_cancelled(scope, context, exchange)
            raise
        finally:
            self._account(scope, context, exchange.status)
            current_request_id.reset(served)

    async def _until_it_ends(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the application answer, or answer why it could not, where the framework has not done so."""
        context: RequestContext = scope["state"]["context"]
        try:
            with context.work:
                await self._app(scope, receive, send)
        except EXPECTED_EXCEPTIONS as error:
            await problem_answer(Request(scope), error)(scope, receive, send)

    async def _answer_cancelled(self, scope: Scope, context: RequestContext, exchange: _Exchange) -> None:
        """Answer where a server cancelled the request itself: its client is gone, or the loop ends with the service."""
        context.code = "cancelled"
        if self._in_flight.given_up:
            exchange.lingers = False
            answer = problem_answer(Request(scope), NotReady("The service has ended."))
            await self._cors(answer)(scope, exchange.receive, exchange.send)

    def _account(self, scope: Scope, context: RequestContext, status: int | None) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        account(context, scope, route=route, status=status, metrics=self._metrics, tracer=self._tracer)
