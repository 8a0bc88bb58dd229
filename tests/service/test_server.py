from __future__ import annotations

import asyncio
import socket

import pytest

from service.errors import StartupError
from service.server import listen


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
