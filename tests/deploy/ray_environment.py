"""An environment to start Ray in, of which nothing is left afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.integration.conftest import ROOT

BIN = ROOT / ".venv/ray/bin"
MISSING = "there is no .venv/ray; make test makes it"
MARK = "RAY_TMPDIR"
"""Every process of Ray inherits it, and by its value the last of them are found."""


@contextlib.contextmanager
def ray_environment(**more: str) -> Iterator[dict[str, str]]:
    """Yield the variables; at the end every process that has them is killed, and its files are removed.

    Ray keeps its files, and the address of its cluster, in a directory of their own, and its token in no file.
    """
    directory = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # Ray's sockets want short paths
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DAT_", "RAY_"))}
    own = {MARK: directory, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    try:
        yield inherited | own | more
    finally:
        for pid in _marked(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)


def _marked(directory: str) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={directory}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found
