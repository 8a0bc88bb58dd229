from __future__ import annotations

import asyncio
import socket

import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from service.errors import StartupError
from service.http.connection.server import Server, listen
from service.settings import Settings


async def test_answers_are_not_held_back_by_nagles_algorithm() -> None:
    without_delay: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: socket.socket = writer.get_extra_info("socket")
        without_delay.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = listen("127.0.0.1", 0)
    async with await asyncio.start_server(accepted, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await without_delay
        writer.close()


@pytest.mark.parametrize(("host", "reason"), [("127.0.0.1", "in use"), ("192.0.2.1", "192.0.2.1")])
def test_address_that_cannot_be_had_is_named(host: str, reason: str) -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(StartupError, match=reason):
        listen(host, taken.getsockname()[1])


PROXY = "10.1.2.3"
CLIENT = "203.0.113.9"


@pytest.mark.parametrize(
    ("trusted", "forwarded_for", "seen"),
    [
        ((PROXY,), CLIENT, ("https", CLIENT)),
        (("10.0.0.0/8",), f"192.0.2.1, {CLIENT}, 10.9.9.9", ("https", CLIENT)),  # the nearest that is not trusted
        (("*",), f"{CLIENT}, 192.0.2.1", ("https", CLIENT)),
        (("127.0.0.1", "::1"), CLIENT, ("http", PROXY)),
        ((), CLIENT, ("http", PROXY)),
    ],
)
async def test_forwarded_headers_are_believed_of_trusted_proxies_alone(
    trusted: tuple[str, ...], forwarded_for: str, seen: tuple[str, str]
) -> None:
    scopes = []

    class Application(FastAPI):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            scopes.append(scope)

    async def give_up() -> None:
        pass

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        pass

    server = Server(
        Application(),
        Settings(forwarded_allow_ips=trusted),
        give_up=give_up,
    )
    server.config.load()
    headers = [(b"x-forwarded-proto", b"https"), (b"x-forwarded-for", forwarded_for.encode())]
    await server.config.loaded_app(
        {"type": "http", "scheme": "http", "client": (PROXY, 1234), "headers": headers}, receive, send
    )
    (scope,) = scopes
    assert (scope["scheme"], scope["client"][0]) == seen
