"""A checkout for those who generate clients: the document and what the documentation names, and a way to run commands.

The generators of the TypeScript client are installed beforehand, by `make`, so that no test needs a network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = Path("examples", "typescript")
PATIENCE_S = 180
"""How long a command may take; only a broken one takes so long."""


def checkout(directory: Path) -> Path:
    """Copy what a client is made from into `directory`, and return it."""
    tools = ROOT / EXAMPLE / "node_modules"
    assert tools.is_dir(), "the TypeScript tools are not installed: run `make typescript-tools`"
    shutil.copy(ROOT / "openapi.json", directory)
    shutil.copytree(ROOT / "docs", directory / "docs")
    generated = shutil.ignore_patterns("node_modules", "client", "dist")
    shutil.copytree(ROOT / EXAMPLE, directory / EXAMPLE, ignore=generated)
    (directory / EXAMPLE / "node_modules").symlink_to(tools)
    return directory


def run(
    *command: object, directory: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a directory, with the tools of the development environment before all others."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(
        list(map(str, command)), cwd=directory, env={**os.environ, "PATH": path, **(environment or {})},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
