"""What the page on several models has its readers do is done to a server that answers all the while."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.docs.pages import ROOT, Block, blocks_run_by
from tests.docs.running import lay_out, run_block
from tests.integration.conftest import PATIENCE_S, service_process
from tests.service import tiny_model

BLOCKS = blocks_run_by(__file__)
IMAGE = (ROOT / "examples" / "images" / "7.png").read_bytes()


class Asking:
    """Asks the default model without end, and counts the answers by status and version."""

    def __init__(self, port: int) -> None:
        self.answers: Counter[tuple[int, str | None]] = Counter()
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._ending.is_set():
            answer = self._client.post("/v1/classify", content=IMAGE, headers={"Content-Type": "image/png"})
            self.answers[answer.status_code, answer.headers.get("X-Model-Version")] += 1


@pytest.fixture(params=[1, 2], ids="workers={}".format)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """Serve two models as the page does, and give the folder that it is done in and the port."""
    lay_out(tmp_path)
    repository = tmp_path / "model-repository"
    tiny_model.write(repository, name="dat_tiny", version=1)
    tiny_model.write(repository, name="dat_base", version=1, size=2 * tiny_model.SIZE)
    options = ("--model", "dat_tiny", "--model", "dat_base", "--model-control", "--device", "cpu")
    with service_process(repository, *options, "--threads", "1", "--workers", str(request.param)) as process:
        yield tmp_path, process.port


def version_of(port: int) -> int:
    return int(httpx.get(f"http://127.0.0.1:{port}/v1/models/dat_tiny", timeout=PATIENCE_S).json()["version"])


def run(block: Block, directory: Path, port: int) -> str:
    ended = run_block(block, directory=directory, port=port)
    assert ended.returncode == 0, f"{block.place}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def test_every_way_of_the_page_replaces_and_loses_nothing(server: tuple[Path, int]) -> None:
    directory, port = server
    ask, *ways, back, unload = BLOCKS
    with Asking(port) as asking:
        assert '"name":"dat_base"' in run(ask, directory, port)
        for version, way in enumerate(ways, start=2):
            tiny_model.write(directory / "model-repository", name="dat_tiny", version=version, seed=version)
            run(way, directory, port)
            assert version_of(port) == version
        for version in range(3, 2 + len(ways)):  # the page goes back from 2
            (directory / "model-repository" / "dat_tiny" / str(version)).rename(directory / str(version))
        run(back, directory, port)
        assert version_of(port) == 1
        assert "unloaded" in run(unload, directory, port)
    assert len(ways) == 3
    assert {status for status, _ in asking.answers} == {200}
    assert {version for _, version in asking.answers} == {"1", "2", "3", "4"}
