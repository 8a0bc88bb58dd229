"""A service of several workers that keeps a sample: beside each other, and killed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import PATIENCE_S, service_process
from tests.service.conftest import repository as repository
from tests.service.pictures import photo

PNG = {"Content-Type": "image/png"}


def kept(folder: Path) -> Counter[str]:
    """Return how many rows there are of each request; every file must be whole."""
    files = sorted(folder.glob("*.parquet"))
    return Counter(id_ for path in files for id_ in pq.read_table(path)["request_id"].to_pylist())


def ask(port: int, prefix: str, *, requests: int = 40) -> set[str]:
    """Send requests, each on a connection of its own, so that all workers get some."""
    ids = {f"{prefix}-{number}" for number in range(requests)}
    for id_ in ids:
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/classify",
            content=photo(), headers={**PNG, "X-Request-ID": id_}, timeout=PATIENCE_S,
        )  # fmt: skip
        assert answer.status_code == 200
    return ids


def test_workers_share_a_folder_and_a_kill_leaves_whole_files(repository: Path, tmp_path: Path) -> None:
    options = ("--workers", "2", "--threads", "1", "--sample-requests", str(tmp_path / "s"), "--sample-rate", "1")
    with service_process(repository, *options) as process:
        asked = ask(process.port, "first")
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 0
    assert kept(tmp_path / "s") == Counter(asked)  # each once: what waited was written at the end
    assert len(list((tmp_path / "s").glob("*.parquet"))) <= 2  # one may have got all connections
    (tmp_path / "s" / ".20261128T102233Z-tiny-3-00000000.parquet.unfinished").write_bytes(b"PAR1")
    with service_process(repository, *options) as process:
        again = ask(process.port, "second")
        os.kill(process.popen.pid, signal.SIGKILL)
        process.popen.wait(PATIENCE_S)
    assert kept(tmp_path / "s").keys() - again == asked


def test_a_folder_that_cannot_be_had_ends_the_start(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(AssertionError, match="cannot be written in"),
        service_process(repository, "--sample-requests", str(tmp_path / "file" / "s")),
    ):
        pass
