"""What an image costs by the images of its request: the scenario, run for moments."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def test_scenario_tells_every_form_and_number_of_images(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks", "images-a-request", "--duration-s", "0.3", "--rounds", "1"]
    command += ["--port", str(port), "--results", str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    result = json.loads((tmp_path / "images-a-request-dat_null.json").read_text())
    assert [(row["form"], row["images"]) for row in result["rows"]] == [
        ("raw", 1), ("form", 1), ("form", 8), ("form", 64), ("json", 1), ("json", 8), ("json", 64),
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["images"] * row["requests_in_flight"] == result["images_in_flight"]
        assert 0 < row["threads_ms"]["main"] < row["cpu_ms"]
        besides = sum(used_ms for thread, used_ms in row["threads_ms"].items() if thread != "decode")
        assert row["beside_decoding_ms"] == pytest.approx(besides, abs=0.01)
    raw = result["rows"][0]
    assert raw["rate_over_alone"] == raw["beside_decoding_over_alone"] == 1
    assert "images-a-request (dat_null)" in told.stdout
