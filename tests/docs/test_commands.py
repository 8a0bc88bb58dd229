"""The commands and programs of the documentation do what it says: each is run as it stands, against a live server.

They run in a directory that is laid out like a checkout, with the files that they name; of a command, only the port of
the server is another, and `python` is the tests' own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from models.demo.digits import training_and_held_out
from tests.docs.pages import BLOCKS, ROOT, RUN, Block
from tests.generated import run
from tests.integration.conftest import service_process
from tests.service.images import photo

LINKED = ("benchmarks", "docs", "examples", "export", "models", "requirements", "service", "tests")
COPIED = ("Makefile", "README.md", "openapi.json", "pyproject.toml")
TO_RUN = [block for block in BLOCKS if block.language in RUN and block.mark is None]
RUN_ELSEWHERE = [block for block in BLOCKS if block.run_by is not None]

pytestmark = pytest.mark.xdist_group("demo")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Export the demo model as docs/export.md has it, once a run however many processes run it."""
    (block,) = (block for block in RUN_ELSEWHERE if block.run_by == f"tests/docs/{Path(__file__).name}")
    shared = tmp_path_factory.getbasetemp()
    directory = (shared if worker_id == "master" else shared.parent) / "documentation"
    with FileLock(directory.with_suffix(".lock")):
        if not directory.exists():
            directory.mkdir()
            lay_out(directory)
            ended = run_block(block, directory=directory)
            assert ended.returncode == 0, ended.stderr
            assert "dat_pp_base_384" in ended.stdout
            assert ended.stdout.endswith("my-models/dat_demo/1\n")
    return directory / "my-models"


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[int]:
    """Serve the demo model, and give the port."""
    with service_process(repository, "--threads", "1") as process:
        yield process.port


def lay_out(directory: Path) -> None:
    """Lay out a checkout in which nothing that a page's command writes reaches the real one."""
    for name in LINKED:
        (directory / name).symlink_to(ROOT / name)
    for name in COPIED:
        shutil.copy(ROOT / name, directory)


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """Lay out a checkout, with the files that the pages name."""
    lay_out(tmp_path)
    (tmp_path / "model-repository").symlink_to(repository)
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to/model.onnx").symlink_to(repository / "dat_demo/1/model.onnx")
    held_out = training_and_held_out()[1]
    for digit in (3, 7):
        (tmp_path / "validation" / str(digit)).mkdir(parents=True)
        for number, pixels in enumerate(held_out.images[held_out.classes == digit][:2]):
            Image.fromarray(pixels).save(tmp_path / "validation" / str(digit) / f"{number}.png")
        shutil.copy(tmp_path / "validation" / str(digit) / "0.png", tmp_path / f"{digit}.png")
    shutil.copy(tmp_path / "3.png", tmp_path / "digit.png")
    for path in ("cat.jpg", "dog.jpg", "photos/cat.jpg", "more/dog.jpg"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(photo("JPEG", width=640, height=480))
    return tmp_path


def run_block(block: Block, *, directory: Path, port: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a block in a directory; the first command that fails ends it."""
    text = re.sub(r"\b(127\.0\.0\.1|localhost):8000\b", rf"\1:{port}", block.text)
    command = [sys.executable, "-c", text] if block.language == "python" else ["bash", "-ec", text]
    return run(*command, directory=directory, environment={"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("block", TO_RUN, ids=lambda block: block.place)
def test_block_is_run_as_it_stands(block: Block, server: int, checkout: Path) -> None:
    ended = run_block(block, directory=checkout, port=server)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
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


def test_a_command_that_fails_in_the_middle_fails_its_block(tmp_path: Path) -> None:
    block = Block(ROOT / "README.md", 1, "sh", "false\ntrue\n", None)
    assert run_block(block, directory=tmp_path).returncode != 0
