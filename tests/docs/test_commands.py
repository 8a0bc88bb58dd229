"""The commands and programs of the documentation do what it says: each is run as it stands, against a live server.

They run in a directory that is laid out like a fresh clone after `make serve`, and have no file that is not there; of a
command, only the port of the server is another, and `python` is the tests' own.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ExportOnce
from tests.docs.pages import BLOCKS, PAGES, ROOT, RUN, Block, blocks_run_by
from tests.docs.running import lay_out, run_block
from tests.integration.conftest import PATIENCE_S, service_process

TO_RUN = [block for block in BLOCKS if block.language in RUN and block.mark is None]


@pytest.fixture(scope="module")
def server(exported: ExportOnce) -> Iterator[int]:
    """Serve the demo model, and give the port."""
    with service_process(exported("dat_demo"), "--threads", "1") as process:
        yield process.port


@pytest.fixture
def checkout(exported: ExportOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay out a checkout with a model, and no setting but the pages'."""
    for name in [name for name in os.environ if name.startswith("DAT_")]:
        monkeypatch.delenv(name)
    repository = exported("dat_demo")
    lay_out(tmp_path)
    (tmp_path / "model-repository").symlink_to(repository)
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to/model.onnx").symlink_to(repository / "dat_demo/1/model.onnx")
    return tmp_path


def errors_answered(port: int) -> float:
    """Return how many requests the server has answered with an error, which curl does not tell by its status."""
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S).text
    (requests,) = (each for each in text_string_to_metric_families(metrics) if each.name == "dat_requests")
    return sum(each.value for each in requests.samples if each.labels.get("status", "") >= "400")


@pytest.mark.parametrize("block", TO_RUN, ids=lambda block: block.place)
def test_block_is_run_as_it_stands(block: Block, server: int, checkout: Path) -> None:
    errors_before = errors_answered(server)
    ended = run_block(block, directory=checkout, port=server)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert errors_answered(server) == errors_before, ended.stdout
    assert "Traceback" not in ended.stderr, ended.stderr
    for written in re.findall(r"(?:-o|--out|>) (\w+\.\w+)$", block.text, re.MULTILINE):
        assert (checkout / written).stat().st_size > 0


@pytest.mark.parametrize("path", sorted({block.run_by for block in BLOCKS if block.run_by is not None}))
def test_module_that_is_to_run_blocks_asks_for_them(path: str) -> None:
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    assert module.blocks_run_by is blocks_run_by


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
