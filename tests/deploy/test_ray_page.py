"""The commands of docs/deploy/ray.md and the configuration that they deploy, as they stand, on this machine's ports."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import ExportOnce
from tests.deploy.ray_environment import BIN, MISSING, ray_environment
from tests.docs.pages import blocks_run_by
from tests.faults.load import until
from tests.integration.conftest import PATIENCE_S, ROOT

ALONE, CLUSTER, END = (block.text for block in blocks_run_by(__file__))
URL = "http://127.0.0.1:8000"

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not BIN.exists(), reason=MISSING),
]


@pytest.fixture
def environment(exported: ExportOnce, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What the commands find: a checkout with the demo model in its repository, and no Ray."""
    for entry in ("deploy", "service", ".venv"):
        (tmp_path / entry).symlink_to(ROOT / entry)
    (tmp_path / "model-repository").symlink_to(exported("dat_demo"))
    with ray_environment(RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE="1", PWD=str(tmp_path)) as variables:
        yield variables


def ready() -> bool:
    try:
        return httpx.get(f"{URL}/health/ready", timeout=PATIENCE_S).status_code == 200
    except httpx.TransportError:
        return False


def test_one_machine_is_served_until_ctrl_c(environment: dict[str, str]) -> None:
    serving = subprocess.Popen(
        ["bash", "-ec", f"exec {ALONE}"], cwd=environment["PWD"], env=environment, start_new_session=True
    )
    try:
        until(lambda: ready() or serving.poll() is not None)
        assert httpx.get(f"{URL}/v1/models", timeout=PATIENCE_S).json()["models"][0]["name"] == "dat_demo"
        assert httpx.get(f"{URL}/nothing", timeout=PATIENCE_S).json()["code"] == "not_found"
    finally:
        os.kill(serving.pid, signal.SIGINT)
        serving.wait(PATIENCE_S)


def test_a_cluster_is_deployed_to_from_the_configuration_and_ended(environment: dict[str, str]) -> None:
    def run(commands: str) -> str:
        return subprocess.run(
            ["bash", "-ec", commands],
            cwd=environment["PWD"], env=environment, check=True, capture_output=True, text=True, timeout=2 * PATIENCE_S,
        ).stdout  # fmt: skip

    run(CLUSTER)
    until(ready)
    assert "RUNNING: 2" in run(".venv/ray/bin/serve status")
    replicas = 'dat_replicas{shown="true"} 2.0'
    assert replicas in httpx.get(f"{URL}/metrics", timeout=PATIENCE_S).text
    run(END)
    until(lambda: not ready())
