"""SIGTERM while something is under way that lasts: what the client is told, and that the service ends in time.

What lasts is made to by `sitecustomize`, which Python imports first in every process of the service.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.load import metric, pid_of, until
from tests.integration.conftest import PATIENCE_S, ROOT, Connection, Process, service_process
from tests.service.pictures import photo

PHOTO = photo("JPEG")
JPEG = "Content-Type: image/jpeg"
FOR_LONG = str(10 * PATIENCE_S * 1000)
LEFT_ALONE = ("--heartbeat-timeout-ms", FOR_LONG, "--hang-timeout-ms", FOR_LONG)
"""What hangs is ended by the signal alone."""
STUCK = f"""
import asyncio, os, sys, threading

sys.path.insert(0, {str(ROOT)!r})

def forever(*_, **__):
    threading.Event().wait()

if os.environ["STUCK"] == "decode":
    from service.calls.upload import Upload
    Upload.write = forever
elif os.environ["STUCK"] == "thread":
    to_thread = asyncio.to_thread
    asyncio.to_thread = lambda *_, **__: to_thread(forever)
"""


@contextlib.contextmanager
def served(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, workers: str, stuck: str = ""
) -> Iterator[Process]:
    (tmp_path / "sitecustomize.py").write_text(STUCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("STUCK", stuck)
    options = ["--workers", workers, "--drain-timeout-ms", "300", "--decode-threads", "1"]
    with service_process(repository, "--device", "cpu", *LEFT_ALONE, *options) as process:
        yield process


def assert_ends(process: Process) -> None:
    """What lasts, lasts longer than a test waits: a service that waited for it would not end."""
    assert process.end() == 0
    assert [line for line in process.rest_of_log() if line.get("level") == "error" or "Trace" in line["message"]] == []


def assert_given_up(connection: Connection) -> None:
    status, headers, problem = connection.response()
    assert (status, headers["content-type"]) == (503, "application/problem+json")
    assert (problem["code"], problem["request_id"]) == ("not_ready", headers["x-request-id"])
    assert int(headers["retry-after"]) > 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_upload_that_outlasts_the_drain_time_is_503(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    with served(repository, tmp_path, monkeypatch, workers=workers) as process, Connection(process.port) as connection:
        connection.head("/v1/classify", JPEG, "Content-Length: 100000", "Expect: 100-continue")
        assert connection.response_head()[0] == 100
        connection.send(b"abc")
        process.popen.send_signal(signal.SIGTERM)
        assert_given_up(connection)
        assert_ends(process)


@pytest.mark.parametrize(("workers", "stuck"), [("1", "decode"), ("1", "thread"), ("2", "decode")])
def test_thread_that_never_ends_keeps_neither_the_answer_nor_the_service_from_ending(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str, stuck: str
) -> None:
    body = json.dumps({"images": [base64.b64encode(PHOTO).decode()]}).encode()
    with served(repository, tmp_path, monkeypatch, workers=workers, stuck=stuck) as process:
        head = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        with Connection(process.port) as late:
            late.head("/v1/classify?timeout_ms=200", *head)
            late.send(body)
            status, _, problem = late.response()
            assert (status, problem["code"]) == (504, "deadline_exceeded")
        if stuck == "decode":
            assert metric(process.port, "dat_abandoned_decodes") == 1
        with Connection(process.port) as connection:
            connection.head("/v1/classify", *head, "Expect: 100-continue")
            assert connection.response_head()[0] == 100
            connection.send(body)
            if stuck == "decode":
                until(lambda: metric(process.port, "dat_admitted_images") == 2)
            process.popen.send_signal(signal.SIGTERM)
            assert_given_up(connection)
            assert_ends(process)


def test_client_that_does_not_read_its_answers_keeps_the_service_from_ending_no_longer(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(repository, tmp_path, monkeypatch, workers="1") as process, Connection(process.port) as connection:
        for _ in range(400):  # far more than the buffers on the way hold
            connection.head("/openapi.json", method="GET")
        assert connection.response_head()[0] == 200
        process.popen.send_signal(signal.SIGTERM)
        assert_ends(process)


def test_second_signal_answers_what_is_under_way_at_once(repository: Path) -> None:
    with (
        service_process(repository, "--drain-timeout-ms", FOR_LONG) as process,
        Connection(process.port) as connection,
    ):
        connection.head("/v1/classify", JPEG, "Content-Length: 100000", "Expect: 100-continue")
        assert connection.response_head()[0] == 100
        process.popen.send_signal(signal.SIGTERM)
        process.wait_for("Waiting for connections to close. (CTRL+C to force quit)")
        process.popen.send_signal(signal.SIGTERM)
        assert_given_up(connection)
        assert_ends(process)


@pytest.mark.parametrize("name", ["worker-1", "engine-0"])
def test_process_that_does_nothing_any_more_is_killed_in_time(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with served(repository, tmp_path, monkeypatch, workers="2") as process:
        os.kill(pid_of(process, name), signal.SIGSTOP)
        process.popen.send_signal(signal.SIGTERM)
        assert_ends(process)
