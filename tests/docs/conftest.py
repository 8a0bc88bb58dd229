"""A checkout for the documentation's commands, and the demo model exported as docs/export.md has it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.docs.pages import BLOCKS, ROOT, Block
from tests.generated import run


def lay_out(directory: Path) -> None:
    """Lay out a checkout with its environment: folders as links, files as copies, which commands may write over."""
    for entry in ROOT.iterdir():
        if entry.name.startswith(".") or entry.name == "model-repository":
            continue
        if entry.is_dir():
            (directory / entry.name).symlink_to(entry)
        else:
            shutil.copy(entry, directory)
    (directory / ".venv").symlink_to(sys.prefix)


def run_block(block: Block, *, directory: Path, port: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a block in a directory; the first command that fails ends it."""
    text = re.sub(r"\b(127\.0\.0\.1|localhost):8000\b", rf"\1:{port}", block.text)
    command = [sys.executable, "-c", text] if block.language == "python" else ["bash", "-ec", text]
    return run(*command, directory=directory, environment={"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Export the demo model as docs/export.md has it, once a run however many processes run it."""
    (block,) = (block for block in BLOCKS if block.run_by == f"tests/docs/{Path(__file__).name}")
    shared = tmp_path_factory.getbasetemp()
    directory = (shared if worker_id == "master" else shared.parent) / "documentation"
    with FileLock(directory.with_suffix(".lock")):
        if not directory.exists():
            directory.mkdir()
            lay_out(directory)
            ended = run_block(block, directory=directory)
            assert ended.returncode == 0, ended.stderr
            assert ended.stdout.endswith("my-models/dat_demo/1\n")
    return directory / "my-models"
