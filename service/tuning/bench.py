"""Comparing choices by real servers: both are up, and asked in turn."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from service.errors import StartupError
from service.tuning.choice import Choice
from service.tuning.client import ServerLost, drive
from service.tuning.figures import Comparison, Figures, Pair, Round
from service.tuning.given import Given
from service.tuning.servers import Child, start_server

_LEAD_SHARE = 0.2
"""Part of a window's time that passes before it, while the clients and the server find their pace."""
_WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """What servers are asked: these images over and over, by so many clients at a time, each for so long."""

    images: Sequence[bytes]
    concurrencies: tuple[int, ...]
    window_s: float


@dataclass(slots=True, eq=False)
class _Up:
    """A server that is up, or about to be."""

    choice: Choice
    models: tuple[str, ...]
    child: Child
    port: int = 0
    requests: Iterator[bytes] = field(default_factory=lambda: iter(()))


class _Failed(StartupError):
    """A server did not come up, or ended while it was asked."""

    def __init__(self, server: _Up, reason: str) -> None:
        super().__init__(reason)
        self.server = server


class ServerBench:
    """A Measurer by real servers, whose settings files are in `folder`; `on_window` is called for each window.

    A context: all servers have ended when it is left. One that is asked for again is still up.
    """

    def __init__(self, given: Given, load: Load, folder: Path, *, on_window: Callable[[], None]) -> None:
        self._given = given
        self._load = load
        self._folder = folder
        self._on_window = on_window
        self._up: list[_Up] = []
        self._numbers = itertools.count()

    async def __aenter__(self) -> ServerBench:
        """Enter the context."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End every server."""
        await self._stop(self._up)

    async def compare(self, best: Choice, other: Choice, *, models: Sequence[str], rounds: int) -> Comparison:
        """Serve `models` by both, and ask both in turn for some rounds; see `search.Measurer`."""
        one = self._still_up(best, models)
        two = self._still_up(other, models, but=one)
        await self._stop([each for each in self._up if each not in (one, two)])
        one = one or await self._start(best, models)
        try:
            two = two or await self._start(other, models)
            return Comparison([await self._round(number, one, two) for number in range(rounds)])
        except _Failed as failed:
            if failed.server is one:
                raise
            return Comparison((), fault=str(failed))

    def _still_up(self, choice: Choice, models: Sequence[str], *, but: _Up | None = None) -> _Up | None:
        """Return a server that is up with that choice, and is not another one."""
        for each in self._up:
            if each is not but and not each.child.has_ended and (each.choice, each.models) == (choice, tuple(models)):
                return each
        return None

    async def _start(self, choice: Choice, models: Sequence[str]) -> _Up:
        """Start a server and ask it until it has found its pace."""
        path = self._folder / f"settings-{next(self._numbers)}.toml"
        path.write_text(self._given.for_server(choice, models), encoding="utf-8")
        server = _Up(choice, tuple(models), await start_server(path))
        self._up.append(server)
        try:
            server.port = await server.child.wait_ready()
        except StartupError as error:
            raise _Failed(server, str(error)) from error
        server.requests = itertools.cycle(rendered(self._load.images, models))
        for concurrency in dict.fromkeys((max(self._load.concurrencies), min(self._load.concurrencies))):
            await self._window(server, concurrency, window_s=min(self._load.window_s, _WARM_UP_S))
        return server

    async def _round(self, number: int, one: _Up, two: _Up) -> Round:
        """Ask both with each number of requests in flight; who is asked first changes."""
        found = {}
        for place, concurrency in enumerate(self._load.concurrencies):
            order = (one, two) if (number + place) % 2 == 0 else (two, one)
            windows = {}
            for server in order:
                windows[id(server)] = await self._window(server, concurrency, window_s=self._load.window_s)
                self._on_window()
            found[concurrency] = Pair(windows[id(one)], windows[id(two)])
        return found

    async def _window(self, server: _Up, concurrency: int, *, window_s: float) -> Figures:
        try:
            return await drive(
                server.port, server.requests, concurrency=concurrency, lead_s=_LEAD_SHARE * window_s, window_s=window_s
            )
        except ServerLost as error:
            raise _Failed(server, await server.child.why_lost()) from error

    async def _stop(self, servers: Sequence[_Up]) -> None:
        self._up = [each for each in self._up if each not in servers]
        await asyncio.gather(*(each.child.stop() for each in servers))


def rendered(images: Sequence[bytes], models: Sequence[str]) -> list[bytes]:
    """Return requests to classify each image by each model, the models in turn."""
    return [
        f"POST /v1/classify?model={quote(name, safe='')} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {len(image)}\r\n\r\n".encode()
        + image
        for image in images
        for name in models
    ]
