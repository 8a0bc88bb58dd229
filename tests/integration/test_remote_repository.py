"""The service as a process whose models lie on an S3 server."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import PATIENCE_S, ROOT, Process, service_process
from tests.object_store import SECRET, Bucket, ObjectStore, object_store
from tests.service import tiny_model
from tests.service.pictures import photo
from tests.web_server import web_server


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with object_store() as running:
        yield running


@pytest.fixture
def bucket(s3: ObjectStore, tmp_path: Path) -> Bucket:
    """A bucket with one version of the model `a`."""
    bucket = s3.bucket()
    put(bucket, tmp_path, version=1)
    return bucket


def put(bucket: Bucket, tmp_path: Path, *, version: int) -> None:
    folder = tmp_path / f"source-{version}"
    tiny_model.write(folder, name="a", version=version, seed=version)
    bucket.add(folder)


def options(bucket: Bucket, tmp_path: Path, *more: str) -> tuple[str, ...]:
    return "--repository", bucket.url, "--repository-cache", str(tmp_path / "cache"), *more


def answered_by(process: Process) -> str:
    response = httpx.post(
        f"http://127.0.0.1:{process.port}/v1/classify", content=photo("JPEG"), headers={"Content-Type": "image/jpeg"}
    )
    assert response.status_code == 200, response.text
    return response.headers["X-Model-Version"]


def files_in(lines: list[dict[str, Any]]) -> str:
    return "\n".join(str(line) for line in lines)


def test_new_versions_are_served_as_they_are_put_there_and_leave_as_they_go(bucket: Bucket, tmp_path: Path) -> None:
    watching = ("--model", "a", "--model-control", "--watch-repository", "--watch-interval-ms", "100")
    with service_process(Path(), *options(bucket, tmp_path, *watching, "--workers", "2")) as process:
        assert answered_by(process) == "1"
        put(bucket, tmp_path, version=2)
        process.wait_for("downloaded")
        process.wait_for("model unloaded")
        assert answered_by(process) == "2"
        bucket.remove("a/2/")
        process.wait_for("model unloaded")
        assert answered_by(process) == "1"
        process.popen.terminate()
        assert process.end() == 0
        log = files_in([*process.lines, *process.rest_of_log()])
    assert SECRET not in log
    assert bucket.url in log


def test_a_load_that_is_asked_for_looks_there(bucket: Bucket, tmp_path: Path) -> None:
    with service_process(Path(), *options(bucket, tmp_path, "--model", "a", "--model-control")) as process:
        url = f"http://127.0.0.1:{process.port}"
        index = httpx.post(f"{url}/v2/repository/index").json()
        assert [(each["name"], each["version"], each["state"]) for each in index] == [("a", "1", "READY")]
        put(bucket, tmp_path, version=2)
        content = (tmp_path / "source-2" / "a" / "2" / "model.onnx").read_bytes()
        bucket.put("a/2/model.onnx", content[:-1] + b"?")
        refused = httpx.post(f"{url}/v2/repository/models/a/load", timeout=PATIENCE_S)
        assert refused.status_code == 422
        assert "model.onnx has sha256" in refused.json()["error"]
        assert answered_by(process) == "1"
        bucket.put("a/2/model.onnx", content)
        assert httpx.post(f"{url}/v2/repository/models/a/load", timeout=PATIENCE_S).status_code == 200
        assert answered_by(process) == "2"


def test_servers_that_start_at_once_share_one_copy_which_serves_when_the_store_is_gone(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[str] = []
    downloads: list[int] = []

    def serve() -> None:
        with service_process(Path(), *options(bucket, tmp_path)) as process:
            answers.append(answered_by(process))
            downloads.append(sum(line["message"] == "downloaded" for line in process.lines))

    servers = [threading.Thread(target=serve) for _ in range(2)]
    for server in servers:
        server.start()
    for server in servers:
        server.join()
    assert answers == ["1", "1"]
    assert sum(downloads) == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with service_process(Path(), *options(bucket, tmp_path)) as process:
        assert answered_by(process) == "1"
        warning = next(line for line in process.lines if line["message"].startswith("the repository cannot be read"))
        assert "Connection refused" in warning["reason"]


def test_a_start_that_is_killed_while_it_copies_leaves_nothing_that_serves(tmp_path: Path) -> None:
    source = tiny_model.write(tmp_path / "source", name="a", version=1, explain=False)
    digest = hashlib.sha256((source / "manifest.json").read_bytes()).hexdigest()
    with web_server() as server:
        server.add(tmp_path / "source")
        arguments = ["--repository", server.url, "--repository-cache", str(tmp_path / "cache")]
        arguments += ["--model", f"a:1@sha256:{digest}", "--port", "0", "--log-format", "json"]
        server.gated = "a/1/labels.tsv"
        server.gate.clear()
        killed = subprocess.Popen([sys.executable, "-m", "service", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
        assert server.arrived.wait(PATIENCE_S)
        killed.terminate()
        assert killed.wait(PATIENCE_S) != 0
        server.gate.set()
        assert [path.name for path in (tmp_path / "cache").rglob("a/1/*") if path.stat().st_size] == ["model.onnx"]
        with service_process(Path(), *arguments) as process:
            assert answered_by(process) == "1"
        assert len(server.gets("a/1/model.onnx")) == 1
