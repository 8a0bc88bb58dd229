"""What the layer around every request does where the application below it cannot be made to by a request."""

from __future__ import annotations

import traceback

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.calls.in_flight import InFlight
from service.http.middleware import CutShort, RequestContextMiddleware
from service.http.security_headers import SecurityHeaders, cors_layer
from service.telemetry.metrics import Metrics

SECRET = "terces"[::-1]
"""Put together, so that no line of source in a traceback has it."""
SCOPE: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "scheme": "http"}


async def nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def test_answer_that_fails_in_its_middle_is_broken_off_and_counted() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError(SECRET)

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    metrics = Metrics()
    layer = RequestContextMiddleware(
        fails, metrics=metrics, in_flight=InFlight(), security=SecurityHeaders(tls=False), cors=cors_layer(())
    )
    with pytest.raises(CutShort) as raised:
        await layer(dict(SCOPE), nothing, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert SECRET not in "".join(traceback.format_exception(raised.value))  # the server logs it
    labels = {"model": "", "version": "", "route": "unmatched", "status": "200", "code": "internal"}
    assert metrics.registry.get_sample_value("dat_requests_total", labels) == 1
