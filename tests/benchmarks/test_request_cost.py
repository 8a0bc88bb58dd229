"""What a request costs: the scenario, run for moments, and the accounts of threads that it stands on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.processes import ThreadUse, thread_uses
from service.engine.named_thread import NamedThread


def free_port_before_a_free_one() -> int:
    """A port that is free as the next one is."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def test_threads_are_accounted_for_by_their_names() -> None:
    before = thread_uses(os.getpid()).get("busy", ThreadUse(0.0, 0))
    seen: list[ThreadUse] = []

    def work() -> None:
        while time.thread_time() < 0.2:
            pass
        seen.append(thread_uses(os.getpid())["busy"])

    threads = [NamedThread(target=work, name=f"busy-{number}") for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    used = seen[-1] - before
    assert 0.15 < used.cpu_s < 5
    assert used.switches >= 0
    assert thread_uses(os.getpid())["main"].cpu_s > 0


def test_scenario_tells_the_threads_and_the_floors(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "request-cost", "--duration-s", "0.5", "--rounds", "1"]
    command += ["--concurrency", "4", "--port", str(free_port_before_a_free_one()), "--results", str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    (row,) = json.loads((tmp_path / "request-cost-dat_null.json").read_text())["rows"]
    assert {"main", "decode", "engine"} <= row["threads_ms"].keys()
    assert 0 < row["threads_ms"]["main"] < row["cpu_ms"]
    assert row["bare_ms"] > 0
    assert row["beyond_over_bare"] == pytest.approx(row["beyond_ms"] / row["bare_ms"], rel=0.02)
    assert row["share_of_decoder"] < row["share_of_decoder_left"]
    assert "request-cost (dat_null)" in told.stdout
