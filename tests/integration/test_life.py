"""The service as a process: how it starts, refuses to start, and ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.model.directory import ModelDirectory
from tests.api_keys import entry_of
from tests.integration.conftest import PATIENCE_S, ROOT, Connection, service_process, service_thread
from tests.service import tiny_model
from tests.service.pictures import photo

PHOTO = photo("JPEG")
HEAD = ("Content-Type: image/jpeg", f"Content-Length: {len(PHOTO)}", "Expect: 100-continue")


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAT_")}
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT, env=environment | variables, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def test_sigterm_finishes_what_is_in_flight_and_takes_nothing_new(repository: Path) -> None:
    with service_process(repository) as process, Connection(process.port) as connection:
        connection.head("/v1/classify", *HEAD)
        assert connection.response_head()[0] == 100
        process.popen.send_signal(signal.SIGTERM)
        process.wait_for("Shutting down")
        process.wait_for("Waiting for connections to close. (CTRL+C to force quit)")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", process.port), timeout=PATIENCE_S)
        connection.send(PHOTO)
        assert connection.response()[0] == 200
        assert process.end() == 0


def test_sigterm_ends_an_idle_service_with_status_0(repository: Path) -> None:
    with service_process(repository) as process:
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 0


def test_what_outlasts_the_drain_time_is_answered_503(model: ModelDirectory) -> None:
    with service_thread(model, drain_timeout_ms=1) as service, Connection(service.port) as connection:
        service.session.close()
        connection.head("/v1/classify", *HEAD)
        assert connection.response_head()[0] == 100
        connection.send(PHOTO)
        service.session.wait_for_run()
        service.server.should_exit = True
        status, _, problem = connection.response()
        assert (status, problem["code"]) == (503, "not_ready")


@pytest.mark.parametrize(
    ("arguments", "variables", "word", "status"),
    [
        (["--port", "http"], {}, "--port", 2),
        ([], {"DAT_PROT": "1"}, "DAT_PROT", 2),
        (["--workers", "2", "--repository", "/nowhere"], {}, "/nowhere", 1),
        (["--device", "cuda"], {}, "cuda", 1),
        (["--model", "other"], {}, "'other'", 1),
        (["check", "--model-version", "9"], {}, "version 9", 1),
    ],
)
def test_service_that_cannot_start_says_why_in_one_line(
    repository: Path, arguments: list[str], variables: dict[str, str], word: str, status: int
) -> None:
    result = command(*arguments, **{"DAT_REPOSITORY": str(repository), "DAT_LOG_LEVEL": "error"} | variables)
    assert result.returncode == status
    assert word in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_taken_port_is_named(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = command("--repository", str(repository), "--port", port)
    assert result.returncode == 1
    assert port in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_model_that_does_not_load_ends_the_service_rather_than_serving_503(tmp_path: Path, workers: str) -> None:
    directory = tiny_model.write(tmp_path)
    (directory / "model.onnx").write_bytes(b"not a graph")
    tiny_model.write_manifest(directory)
    result = command("--repository", str(tmp_path), "--port", "0", "--workers", workers)
    assert result.returncode == 1
    assert "model.onnx" in result.stderr.splitlines()[-1]


def test_model_whose_files_were_changed_is_refused(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "copy")
    with (tmp_path / "copy" / tiny_model.NAME / str(tiny_model.VERSION) / "labels.tsv").open("a") as labels:
        labels.write("7\tanother\n")
    result = command("check", "--repository", str(tmp_path / "copy"))
    assert result.returncode == 1
    assert "labels.tsv" in result.stderr


def test_check_says_what_would_be_served(repository: Path) -> None:
    result = command("check", "--repository", str(repository), "--device", "cpu", "--batch-buckets", "1,2")
    assert result.returncode == 0, result.stderr
    for word in ("tiny version 3", "cpu", "56 x 56", "logits, embedding", "bucket    1 ", "bucket    2 ", " ms"):
        assert word in result.stdout


def test_settings_are_printed_with_their_sources_applied() -> None:
    result = command("settings", "--port", "9001", DAT_TOP_K="3", DAT_API_KEYS=entry_of("hidden"))
    assert result.returncode == 0
    assert "port = 9001" in result.stdout
    assert "top_k = 3" in result.stdout
    assert "hidden" not in result.stdout


def test_service_listens_on_ipv6_too(repository: Path) -> None:
    with service_process(repository, "--host", "::1") as process:
        assert httpx.get(f"http://[::1]:{process.port}/health/ready").status_code == 200
