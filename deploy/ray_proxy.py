"""What Ray's HTTP proxies answer by themselves, put into the service's form.

Each proxy loads this, where the variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH of its node says
`deploy.ray_proxy:middlewares`. A proxy answers by itself where no replica did: to a request whose replica died under it
Ray says nothing, of which the server makes a plain 500, and requests beyond Ray's own queue or time get a line of text.
Here these become the problem documents of the service, with their Retry-After.

Invariants: what a replica has answered passes as it is, but that it bears its X-Request-ID once (Ray adds another);
Ray's own pages under `/-/` pass untouched. An answer that a replica's death cut in two is left so: a broken connection
says it. Nothing is sent a second time from here: only the client knows whether it still wants an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.calls.context import request_id_of
from service.errors import DeadlineExceeded, NotReady, Overloaded
from service.http.middleware import REQUEST_ID_HEADER
from service.http.problems import ProblemResponse, problem_for, problem_for_http
from service.http.security_headers import SecurityHeaders

LOST = "The replica that had the request is gone, or could not be reached; the request may be sent again."
_RAYS_OWN = "/-/"


def middlewares() -> list[Middleware]:
    """Return what Ray puts around each of its proxies."""
    return [Middleware(ProblemAnswers)]


class ProblemAnswers:
    """Around a proxy: gives each request its id, and puts the proxy's own answers into the service's form."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._security = SecurityHeaders(tls=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"].startswith(_RAYS_OWN):
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope).get(REQUEST_ID_HEADER, ""))
        MutableHeaders(scope=scope)[REQUEST_ID_HEADER] = request_id
        replaced: ProblemResponse | None = None
        started = False

        async def pass_on(message: Message) -> None:
            nonlocal replaced, started
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                replaced = problem_of(message["status"], headers, request_id=request_id)
                headers[REQUEST_ID_HEADER] = request_id
                started = replaced is None
            if replaced is None:
                await send(message)

        await self._app(scope, receive, pass_on)
        if not started:
            problem = replaced or problem_for(NotReady(LOST), request_id=request_id)
            answer = problem.under(scope["path"])
            answer.headers[REQUEST_ID_HEADER] = request_id
            self._security.complete(answer.raw_headers)
            await answer(scope, receive, send)


def problem_of(status: int, headers: Mapping[str, str], *, request_id: str) -> ProblemResponse | None:
    """Return what to answer in place of a proxy's own answer; None for what comes from the service.

    The service answers no error in plain text, and Ray's proxies answer in nothing else.
    """
    if status < HTTPStatus.BAD_REQUEST or not headers.get("content-type", "").startswith("text/plain"):
        return None
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        full = Overloaded("Too many requests wait for a replica.", retry_after_s=float(headers.get("retry-after", "1")))
        return problem_for(full, request_id=request_id)
    if status == HTTPStatus.REQUEST_TIMEOUT:
        return problem_for(DeadlineExceeded("No replica answered in time."), request_id=request_id)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return problem_for(NotReady("There is no replica that could answer."), request_id=request_id)
    return problem_for_http(HTTPException(status), request_id=request_id)
