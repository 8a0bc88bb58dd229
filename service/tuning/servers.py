"""Servers to be measured: `python -m service` as a process of its own, with a settings file and nothing else.

A server listens on a free port of the loopback. It is in a session of its own, so that Ctrl-C in the terminal is this
process's to deal with, and is told to end by the kernel should this process be killed. It logs as it does by default,
since that is part of what it costs; what it says is read, and its end kept for when it fails.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from service.errors import StartupError
from service.tuning.given import without_settings

_PR_SET_PDEATHSIG = 1
_LAST_BYTES = 16 * 1024
_END_S = 20.0
"""What a server has to end when nobody asks it any more."""
_LOST_S = 5.0
"""What a server that takes no connections has to end before it counts as alive."""
_ERROR = "dat-serve: "
_PORT = re.compile(r":(\d+)$")


class _Process(asyncio.SubprocessProtocol):
    """A process that writes log lines; futures for what is waited for."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.port: asyncio.Future[int] = loop.create_future()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.output = bytearray()
        self.errors = bytearray()
        self._begun = b""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            self.output += data
            return
        self.errors += data
        del self.errors[:-_LAST_BYTES]
        if not self.ready.done():
            *lines, self._begun = (self._begun + data).split(b"\n")
            for line in lines:
                self._read(line)

    def _read(self, line: bytes) -> None:
        if not line.startswith(b"{"):
            return
        entry = json.loads(line)
        match entry["message"]:
            case "listening":
                found = _PORT.search(entry["url"])
                assert found is not None
                self.port.set_result(int(found[1]))
            case "ready":
                self.ready.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Note that the process has ended and all that it wrote is here."""
        self.ended.set_result(None)

    def reason(self, status: int | None) -> str:
        """Return why the process has ended, by its last words."""
        lines = self.errors.decode(errors="replace").splitlines()
        said = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
        return said[-1] if said else f"it ended with status {status}: {lines[-1] if lines else 'it said nothing'}"


class Child:
    """A command of the service that runs with a settings file; `stop` must be called in the end."""

    def __init__(self, transport: asyncio.SubprocessTransport, process: _Process) -> None:
        self._transport = transport
        self._process = process

    @classmethod
    async def start(cls, command: str, settings: Path, *options: str) -> Child:
        """Start a command."""
        transport, process = await asyncio.get_running_loop().subprocess_exec(
            _Process, sys.executable, "-m", "service", command, "--settings", str(settings), *options,
            stdin=subprocess.DEVNULL, env=without_settings(os.environ), start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )  # fmt: skip
        return cls(transport, process)

    async def stop(self) -> None:
        """End the process in an orderly way, or by force where that takes too long, and wait until it is gone."""
        if not self._process.ended.done():
            self._signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_END_S):
                    await asyncio.shield(self._process.ended)
            except TimeoutError:
                self._signal(signal.SIGKILL)
                await self._process.ended
        self._transport.close()

    def _signal(self, number: signal.Signals) -> None:
        try:
            self._transport.send_signal(number)
        except ProcessLookupError:
            return  # it has ended, and that is about to be noticed

    async def output(self) -> bytes:
        """Return what it wrote to its standard output; raises StartupError, with its own reason, where it failed."""
        await asyncio.shield(self._process.ended)
        status = self._transport.get_returncode()
        if status:
            raise StartupError(self.reason)
        return bytes(self._process.output)

    async def wait_ready(self) -> int:
        """Return the port when the server takes requests; raises StartupError, with its own reason, if it ends."""
        process = self._process
        await asyncio.wait((process.ready, process.ended), return_when=asyncio.FIRST_COMPLETED)
        if not process.ready.done():
            raise StartupError(self.reason)
        return process.port.result()

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.ended.done()

    async def why_lost(self) -> str:
        """Return why a server takes no connections, or none that last."""
        try:
            async with asyncio.timeout(_LOST_S):
                await asyncio.shield(self._process.ended)
        except TimeoutError:
            return "it takes no connections any more"
        return f"while it was measured, {self.reason}"

    @property
    def reason(self) -> str:
        """Why it has ended."""
        return self._process.reason(self._transport.get_returncode())


async def start_server(settings: Path) -> Child:
    """Start a server on a free port of the loopback."""
    return await Child.start("serve", settings, "--host", "127.0.0.1", "--port", "0", "--log-format", "json")


async def checked_models(settings: Path) -> Sequence[dict[str, Any]]:
    """Return what `check` says of the models of a settings file; raises StartupError."""
    child = await Child.start("check", settings, "--format", "json", "--log-level", "warning")
    try:
        return cast(Sequence[dict[str, Any]], json.loads(await child.output())["models"])
    finally:
        await child.stop()


def _die_with(parent: int) -> Callable[[], None]:
    """Return what a child does before all else: have the kernel tell it to end when its parent has ended."""
    library = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return ask
