"""`make serve`, as README.md has it, serves what the commands after it ask."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import httpx

from tests.conftest import ExportOnce
from tests.docs.pages import ROOT, blocks_run_by
from tests.integration.conftest import PATIENCE_S

INSTALLED = (".venv/bin/python", ".venv/.export", ".venv/.dev", ".venv/serve/bin/python", ".venv/serve/.installed")
"""What make takes as it is: setting it up is how this test came to be run."""


def test_make_serve_serves_the_demo_model(exported: ExportOnce, tmp_path: Path) -> None:
    (block,) = blocks_run_by(__file__)
    for name in (".venv", "requirements", "service"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "model-repository").symlink_to(exported("dat_demo"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    make = " ".join(["make", "PORT=0", *(f"-o {path}" for path in INSTALLED)])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DAT_", "MAKE", "MFLAGS"))}
    running = subprocess.Popen(
        ["bash", "-ec", block.text.replace("make", make, 1)], cwd=tmp_path, env=environment, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert running.stderr is not None
    addresses: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_find_address, args=(running.stderr, addresses))
    reader.start()
    try:
        address = addresses.get(timeout=PATIENCE_S)
        assert address is not None, "make ended"
        assert httpx.get(f"{address}/v1/models", timeout=PATIENCE_S).json()["models"][0]["name"] == "dat_demo"
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.wait(timeout=PATIENCE_S)
        reader.join(timeout=PATIENCE_S)
        running.stderr.close()


def _find_address(lines: object, addresses: queue.Queue[str | None]) -> None:
    """Put the address into the queue that a server's log names, then None at its end."""
    for line in lines:  # type: ignore[attr-defined]
        if (found := re.search(r"url=(http://\S+)", line)) is not None:
            addresses.put(found[1])
    addresses.put(None)
