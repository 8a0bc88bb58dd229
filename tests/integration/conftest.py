"""The service on a real socket: as a process of its own, or in a thread where a test holds the model's runs back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.engine.types import Answer
from service.grpc.door import grpc_server, reserve_port
from service.http.connection.server import Server, listen
from service.model.directory import ModelDirectory
from service.telemetry.model_metrics import EndedRequest
from tests.service.conftest import GatedSession, Parts, make_parts
from tests.service.conftest import model as model
from tests.service.conftest import repository as repository
from tests.service.fixed_hosting import FakeControl

PATIENCE_S = 60
"""How long a test waits for what must come; only a broken service makes it wait so long."""
ROOT = Path(__file__).parents[2]


@dataclass
class Process:
    """A service process, its log as it is written, and a way to wait for a line of it."""

    popen: subprocess.Popen[str]
    lines: list[dict[str, Any]] = field(default_factory=list)
    arriving: queue.Queue[dict[str, Any] | None] = field(default_factory=queue.Queue)

    def read_log(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.arriving.put(json.loads(line) if line.startswith("{") else {"message": line.rstrip()})
        self.arriving.put(None)

    def wait_for(self, message: str) -> dict[str, Any]:
        """Return the next log line with that message."""
        return self.wait_for_all(message)[0]

    def wait_for_all(self, *messages: str) -> list[dict[str, Any]]:
        """Return the next log lines with these messages, in the order in which they were written."""
        missing, found = list(messages), []
        while missing:
            line = self.arriving.get(timeout=PATIENCE_S)
            assert line is not None, f"the service ended without {missing}: {self.lines}"
            self.lines.append(line)
            if line["message"] in missing:
                missing.remove(line["message"])
                found.append(line)
        return found

    def end(self) -> int:
        """Return the exit status of a process that is ending."""
        return self.popen.wait(timeout=PATIENCE_S)

    def rest_of_log(self) -> list[dict[str, Any]]:
        """Return the lines that nobody has waited for; the process has ended."""
        return list(iter(lambda: self.arriving.get(timeout=PATIENCE_S), None))

    @property
    def grpc_address(self) -> str:
        address: str = next(line["grpc"] for line in self.lines if line["message"] == "listening")
        return address

    @property
    def port(self) -> int:
        url = next(line["url"] for line in self.lines if line["message"] == "listening")
        return int(re.search(r":(\d+)$", url)[1])  # type: ignore[index]


@contextlib.contextmanager
def service_process(
    repository: Path, *options: str, prefix: tuple[str, ...] = (), module: str = "service"
) -> Iterator[Process]:
    """Run `python -m service` on a free port until it is ready; killed at the end if it still runs.

    `module` may be another that does as it does, but for a fault.
    """
    arguments = ["--repository", str(repository), "--port", "0", "--log-format", "json", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAT_")}
    popen = subprocess.Popen(
        [*prefix, sys.executable, "-m", module, *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process = Process(popen)
    reader = threading.Thread(target=process.read_log)
    reader.start()
    try:
        process.wait_for("listening")
        process.wait_for("ready")
        yield process
    finally:
        popen.kill()
        popen.wait(timeout=PATIENCE_S)
        reader.join(timeout=PATIENCE_S)
        assert popen.stderr is not None
        popen.stderr.close()


@dataclass(frozen=True)
class Threaded:
    """A service in a thread of the test's process."""

    parts: Parts
    session: GatedSession
    port: int
    server: Server
    thread: threading.Thread
    grpc_address: str
    """Where gRPC is, if it was asked for."""

    def queued_event(self) -> threading.Event:
        """Return an event that is set when the next images are given to the engine."""
        queued = threading.Event()
        engine = self.parts.engine
        infer = engine.infer

        def watch(*images: Any, **terms: Any) -> Coroutine[object, object, list[Answer]]:
            queued.set()  # the images enter the queue in this same step of the event loop
            return infer(*images, **terms)

        engine.infer = watch  # type: ignore[method-assign]
        return queued

    def request_ended_event(self, status: int) -> threading.Event:
        """Return an event that is set when the next request with that status has ended."""
        ended = threading.Event()
        metrics = self.parts.metrics
        count = metrics.request_ended

        def watch(request: EndedRequest) -> None:
            count(request)
            if request.status == status:
                ended.set()

        metrics.request_ended = watch  # type: ignore[method-assign]
        return ended


@contextlib.contextmanager
def service_thread(
    model: ModelDirectory,
    *,
    others: Sequence[ModelDirectory] = (),
    control: FakeControl | None = None,
    **settings: object,
) -> Iterator[Threaded]:
    """Serve a gated session, and other models beside it, on a real socket; ready when this is entered."""
    session = GatedSession()
    ready = threading.Event()

    async def serve() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await served.started.wait()
        ready.set()
        await serving

    parts = make_parts(model, lambda _: session, others=others, control=control, **settings)
    served = parts.app.state.service
    grpc_port = reserve_port(served.settings)
    beside = None if grpc_port is None else grpc_server(served, grpc_port.address)
    server = Server(parts.app, served.settings, give_up=served.in_flight.give_up, beside=beside)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield Threaded(parts, session, port, server, thread, "" if grpc_port is None else grpc_port.address)
    finally:
        session.gate.set()
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def process(repository: Path) -> Iterator[Process]:
    """One service process for the tests that leave it as it was."""
    with service_process(repository, "--max-body-bytes", "1000000", "--receive-timeout-ms", "300") as running:
        yield running


class Connection:
    """One connection that speaks HTTP/1.1 by hand."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self, path: str = "/v1/classify", *headers: str, method: str = "POST") -> None:
        """Send a request's head."""
        lines = [f"{method} {path} HTTP/1.1", "Host: service", *headers, "", ""]
        self.send("\r\n".join(lines).encode())

    def response_head(self) -> tuple[int, dict[str, str]]:
        """Read a status line and headers."""
        status = int(self._file.readline().split()[1])
        headers = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return status, headers

    def response(self) -> tuple[int, dict[str, str], Any]:
        """Read a whole response with a JSON body."""
        status, headers = self.response_head()
        return status, headers, json.loads(self._file.read(int(headers["content-length"])))

    def closed(self) -> bool:
        """Wait for the server to close; false if it sends more instead."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True
