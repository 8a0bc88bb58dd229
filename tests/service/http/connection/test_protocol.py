"""Connections that fall silent, offer another protocol or carry what is no request, on a socket.

The loop's clock is turned forward in place of waiting.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from service.http.connection.protocol import Protocol
from service.http.security_headers import SecurityHeaders

RECEIVE_TIMEOUT_S = 10
KEEP_ALIVE_S = 30
PATIENCE_S = 60
REQUEST = b"GET / HTTP/1.1\r\nHost: service\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
ROOT_PATH = "/vision"


class Served:
    """A server of one small application, a client's connection to it, and the timers that it has set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.timers: list[tuple[asyncio.TimerHandle, float, Callable[..., object]]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.requests: list[tuple[str, bytes]] = []
        """Method and body of each that the application has had."""
        self._received: asyncio.Queue[int] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def noting(delay_s: float, callback: Callable[..., object], *args: Any, **options: Any) -> asyncio.TimerHandle:
            timer = call_later(delay_s, callback, *args, **options)
            if isinstance(getattr(callback, "__self__", None), Protocol):
                self.timers.append((timer, delay_s, callback))
            return timer

        monkeypatch.setattr(loop, "call_later", noting)

    async def application(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.requests.append((scope["method"], body))
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def connection(self) -> Protocol:
        received = self._received

        class Noticing(Protocol.within(RECEIVE_TIMEOUT_S, SecurityHeaders(tls=False), root_path=ROOT_PATH)):  # type: ignore[misc]
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                received.put_nowait(len(data))

        config = uvicorn.Config(
            self.application, interface="asgi3", timeout_keep_alive=KEEP_ALIVE_S, log_config=None, lifespan="off"
        )
        connection: Protocol = Noticing(config, ServerState(), {})
        return connection

    async def send(self, data: bytes) -> None:
        """Send, and return when the server has taken it in."""
        self.writer.write(data)
        missing = len(data)
        while missing:
            missing -= await asyncio.wait_for(self._received.get(), PATIENCE_S)

    async def answered(self) -> None:
        """Read one answer of the application."""
        assert await asyncio.wait_for(self.reader.readexactly(len(ANSWER)), PATIENCE_S) == ANSWER

    def running(self) -> list[float]:
        """The times of the timers that run."""
        return [delay_s for timer, delay_s, _ in self.timers if not timer.cancelled()]

    def time_passes(self) -> None:
        """Let the one timer that runs be due."""
        ((timer, callback),) = [(timer, callback) for timer, _, callback in self.timers if not timer.cancelled()]
        timer.cancel()
        callback()

    async def last_words(self) -> bytes:
        """Read until the server closes."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE_S)


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    made = Served(monkeypatch)
    accepted = asyncio.Event()

    def accept() -> Protocol:
        asyncio.get_running_loop().call_soon(accepted.set)
        return made.connection()

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    made.reader, made.writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await asyncio.wait_for(accepted.wait(), PATIENCE_S)
    yield made
    made.may_answer.set()
    made.writer.close()
    server.close()


def problem_in(answer: bytes, status: str = "408 Request Timeout") -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == f"HTTP/1.1 {status}"
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert (headers["connection"], headers["content-type"]) == ("close", "application/problem+json")
    assert int(headers["content-length"]) == len(body)
    problem: dict[str, Any] = json.loads(body)
    assert problem["request_id"] == headers["x-request-id"]
    assert problem["type"] == f"{ROOT_PATH}/problems/{problem['code']}"
    return problem


async def test_connection_that_says_nothing_is_closed_after_the_keep_alive_time(served: Served) -> None:
    assert served.running() == [KEEP_ALIVE_S]
    served.time_passes()
    assert await served.last_words() == b""


@pytest.mark.parametrize("beginning", [b"G", REQUEST[:-1], b"\r\n"])
@pytest.mark.parametrize("requests_before", [0, 2])
async def test_head_that_stays_incomplete_is_408(served: Served, beginning: bytes, requests_before: int) -> None:
    for _ in range(requests_before):
        await served.send(REQUEST)
        await served.answered()
    await served.send(beginning)
    assert served.running() == [RECEIVE_TIMEOUT_S]
    served.time_passes()
    problem = problem_in(await served.last_words())
    assert (problem["code"], problem["detail"]) == (
        "receive_timeout",
        "The head of the request did not arrive within 10 s.",
    )


async def test_time_for_a_head_runs_from_its_first_byte_however_slowly_the_rest_comes(served: Served) -> None:
    for byte in REQUEST[:-1]:
        await served.send(bytes((byte,)))
    assert [delay_s for _, delay_s, _ in served.timers] == [KEEP_ALIVE_S, RECEIVE_TIMEOUT_S]
    await served.send(REQUEST[-1:])
    await served.answered()
    assert served.running() == [KEEP_ALIVE_S]


async def test_heads_that_arrive_in_one_piece_need_no_timer_of_their_own(served: Served) -> None:
    for _ in range(3):
        await served.send(REQUEST)
        await served.answered()
    assert RECEIVE_TIMEOUT_S not in [delay_s for _, delay_s, _ in served.timers]


async def test_head_behind_a_request_that_is_being_answered_has_until_then(served: Served) -> None:
    served.may_answer.clear()
    await served.send(REQUEST + REQUEST[:10])
    for _ in range(3):
        assert served.running() == [RECEIVE_TIMEOUT_S]
        served.time_passes()
    served.may_answer.set()
    await served.answered()
    await served.send(REQUEST[10:])
    await served.answered()


async def test_each_head_has_its_own_time(served: Served) -> None:
    await served.send(REQUEST[:10])
    await served.send(REQUEST[10:] + REQUEST[:10])
    await served.answered()
    assert [delay_s for _, delay_s, _ in served.timers].count(RECEIVE_TIMEOUT_S) == 2


NO_REQUEST = b"NO REQUEST\r\n\r\n"


@pytest.mark.parametrize("requests_before", [0, 1, 3])
async def test_what_is_no_request_is_400_after_the_answers_before_it(served: Served, requests_before: int) -> None:
    served.may_answer.clear()
    await served.send(REQUEST * requests_before + NO_REQUEST)
    if requests_before:
        await served.send(b"more of it")
    served.may_answer.set()
    for _ in range(requests_before):
        await served.answered()
    assert problem_in(await served.last_words(), "400 Bad Request")["code"] == "malformed_request"
    assert len(served.requests) == requests_before


CHUNKED = b"POST / HTTP/1.1\r\nHost: service\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("requests_before", [0, 1, 2])
async def test_body_that_cannot_be_read_is_400_in_place_of_its_answer(served: Served, requests_before: int) -> None:
    served.may_answer.clear()
    await served.send(REQUEST * requests_before + CHUNKED + b"5\r\nhello\r\nzz\r\n")
    served.may_answer.set()
    for _ in range(requests_before):
        await served.answered()
    problem = problem_in(await served.last_words(), "400 Bad Request")
    assert problem["detail"] == "This is no request of HTTP/1.1: Invalid character in chunk size."


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
BODIES = {
    "length": (b"Content-Length: 38\r\n", b"GET /other HTTP/1.1\r\nHost: service\r\n\r\n"),
    "chunked": (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n3;x=y\r\n yo\r\n0\r\nX-End: 1\r\n\r\n"),
    "empty": (b"Content-Length: 0\r\n", b""),
    "none": (b"", b""),
}


@pytest.mark.parametrize("pieces", ["one", "head and body", "bytes"])
@pytest.mark.parametrize("framing", BODIES)
async def test_request_that_offers_another_protocol_keeps_its_body_and_the_connection(
    served: Served, framing: str, pieces: str
) -> None:
    headers, body = BODIES[framing]
    head = b"POST / HTTP/1.1\r\nHost: service\r\n" + UPGRADE + headers + b"\r\n"
    for _ in range(2):
        if pieces == "one":
            await served.send(head + body)
        elif pieces == "head and body":
            await served.send(head)
            await served.send(body)
        else:
            for byte in head + body:
                await served.send(bytes((byte,)))
        await served.answered()
    await served.send((head + body) * 2 + REQUEST)
    for _ in range(3):
        await served.answered()
    sent = b"hello yo" if framing == "chunked" else body
    assert served.requests == [("POST", sent)] * 4 + [("GET", b"")]


async def test_many_requests_in_one_piece_that_offer_another_protocol_are_all_answered(served: Served) -> None:
    count = 600  # more than the interpreter's stack could hold, were each parsed within the one before it
    await served.send((REQUEST[:-2] + UPGRADE + b"\r\n") * count)
    for _ in range(count):
        await served.answered()
    assert served.requests == [("GET", b"")] * count
