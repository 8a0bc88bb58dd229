"""Runs blocks of the documentation in a directory that is laid out like a checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import ROOT, Block
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
