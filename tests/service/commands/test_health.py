from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from service.__main__ import main
from service.commands import health

READY = (200, b'{"status": "ready"}')


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[tuple[int, list[str]]]:
    """Answer every GET alike, and give the port and the list of the paths that were asked for."""
    asked: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Keep the tests' output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1], asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of one that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def asked_with(port: int, *options: str) -> int:
    return main(["health", "--port", str(port), *options])


def test_ready_service_passes(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(*READY) as (port, asked):
        assert asked_with(port) == 0
    assert asked == ["/health/ready"]
    assert capsys.readouterr().out == f"http://127.0.0.1:{port} is ready.\n"


def test_what_listens_on_every_address_is_asked_on_the_loopback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAT_HOST", "0.0.0.0")
    with answering(*READY) as (port, _):
        monkeypatch.setenv("DAT_PORT", str(port))
        assert main(["health"]) == 0
    assert capsys.readouterr().out == f"http://127.0.0.1:{port} is ready.\n"


def test_address_of_the_sixth_version_is_written_in_brackets(
    free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked_with(free_port, "--host", "::") == 1
    assert capsys.readouterr().err.startswith(f"http://[::1]:{free_port} is not ready: ")


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (503, b'{"status": 503, "detail": "The engine is loading."}', "The engine is loading."),
        (502, b"<html>no gateway</html>", "the answer's status is 502."),
        (503, b"[]", "the answer's status is 503."),
        (503, b'{"detail": 7}', "the answer's status is 503."),
    ],
)
def test_service_that_is_not_ready_fails_with_its_own_reason(
    capsys: pytest.CaptureFixture[str], status: int, body: bytes, reason: str
) -> None:
    with answering(status, body) as (port, _):
        assert asked_with(port) == 1
    assert capsys.readouterr().err == f"http://127.0.0.1:{port} is not ready: {reason}\n"


def test_nobody_at_the_port_fails(free_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked_with(free_port) == 1
    assert capsys.readouterr().err == f"http://127.0.0.1:{free_port} is not ready: Connection refused.\n"


def test_service_that_does_not_answer_fails_in_time(
    silent: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(health, "TIMEOUT_S", 0.05)
    assert asked_with(silent) == 1
    assert "no answer within 0.05 s." in capsys.readouterr().err


def test_port_that_only_the_service_knows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked_with(0) == 2
    assert "--port: 0 takes a free port" in capsys.readouterr().err
