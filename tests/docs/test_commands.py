"""The commands and programs of the documentation do what it says: each is run as it stands, against a live server.

They run in a directory that is laid out like a fresh clone after `make serve`, and have no file that is not there; of a
command, only the port of the server is another, and `python` is the tests' own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.docs.conftest import lay_out, run_block
from tests.docs.pages import BLOCKS, PAGES, ROOT, RUN, Block
from tests.integration.conftest import PATIENCE_S, service_process

TO_RUN = [block for block in BLOCKS if block.language in RUN and block.mark is None]
RUN_ELSEWHERE = [block for block in BLOCKS if block.run_by is not None]

pytestmark = pytest.mark.xdist_group("demo")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[int]:
    """Serve the demo model, and give the port."""
    with service_process(repository, "--threads", "1") as process:
        yield process.port


@pytest.fixture
def checkout(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay out a checkout with a model, and no setting but the pages'."""
    for name in [name for name in os.environ if name.startswith("DAT_")]:
        monkeypatch.delenv(name)
    lay_out(tmp_path)
    (tmp_path / "model-repository").symlink_to(repository)
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to/model.onnx").symlink_to(repository / "dat_demo/1/model.onnx")
    return tmp_path


def errors_answered(port: int) -> float:
    """Return how many requests the server has answered with an error, which curl does not tell by its status."""
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S).text
    return sum(map(float, re.findall(r'^dat_requests_total\{.*status="[45]\d\d"\} (\S+)$', metrics, re.MULTILINE)))


@pytest.mark.parametrize("block", TO_RUN, ids=lambda block: block.place)
def test_block_is_run_as_it_stands(block: Block, server: int, checkout: Path) -> None:
    errors_before = errors_answered(server)
    ended = run_block(block, directory=checkout, port=server)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert errors_answered(server) == errors_before, ended.stdout
    assert "Traceback" not in ended.stderr, ended.stderr
    for written in re.findall(r"(?:-o|--out|>) (\w+\.\w+)$", block.text, re.MULTILINE):
        assert (checkout / written).stat().st_size > 0


@pytest.mark.parametrize("block", RUN_ELSEWHERE, ids=lambda block: block.place)
def test_block_that_is_run_elsewhere_is_named_there(block: Block) -> None:
    assert block.run_by is not None
    runner = ROOT / block.run_by
    assert runner.is_file(), f"there is no {block.run_by}"
    assert block.page.name in runner.read_text(encoding="utf-8"), f"{block.run_by} does not name {block.page.name}"


def test_every_mark_of_a_block_is_of_the_known_form() -> None:
    marked = [block for block in BLOCKS if block.language in RUN and block.mark is not None]
    assert marked
    assert [block.place for block in marked if block.run_by is None and block.why_not is None] == []


def test_no_block_is_hidden_from_these_tests_by_its_indentation() -> None:
    assert [
        page.name for page in PAGES if re.search(r"^[ \t]+```", page.read_text(encoding="utf-8"), re.MULTILINE)
    ] == []


def test_a_command_that_fails_in_the_middle_fails_its_block(tmp_path: Path) -> None:
    block = Block(ROOT / "README.md", 1, "sh", "false\ntrue\n", None)
    assert run_block(block, directory=tmp_path).returncode != 0
