"""`tune` as a process: real servers are started, asked and ended, and the server reads what it writes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import load_settings
from tests.integration.conftest import PATIENCE_S, ROOT, service_process
from tests.integration.conftest import model as model
from tests.integration.conftest import repository as repository
from tests.service import tiny_model

SHORT = ("--seconds", "0.1", "--rounds", "2", "--concurrency", "1,2", "--image-size", "80x60")
FIXED = ("--device", "cpu", "--batch-buckets", "1,2", "--workers", "1", "--decode-threads", "1")
"""What is left to try are instances and threads, and of these the first only where there is more than one core."""


@contextlib.contextmanager
def tuning(*options: object) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAT_")}
    popen = subprocess.Popen(
        [sys.executable, "-m", "service", "tune", *map(str, options)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield popen
    finally:
        popen.kill()
        popen.communicate(timeout=PATIENCE_S)


def children_of(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}


def wait_for_servers(popen: subprocess.Popen[str]) -> set[int]:
    """Return the processes of two servers when both are up, or about to be."""
    assert popen.stdout is not None
    while not (line := popen.stdout.readline()).startswith("tried"):
        assert line, "it ended before it had begun"
    give_up_s = time.monotonic() + PATIENCE_S
    while len(found := children_of(popen.pid)) < 2:
        assert time.monotonic() < give_up_s, "no servers were started"
        time.sleep(0.02)
    return found


def test_what_it_finds_is_written_for_the_server_that_reads_it(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned.toml"
    with tuning("--repository", repository, "--output", output, *SHORT, *FIXED, "--threads", "1") as popen:
        stdout, stderr = popen.communicate(timeout=2 * PATIENCE_S)
    assert popen.returncode == 0, stderr
    assert f"written: {output}" in stderr
    assert "Traceback" not in stderr
    assert "the defaults, twice" in stdout
    comment = [line for line in output.read_text().splitlines() if line.startswith("#")]
    assert "python -m service tune" in comment[0]
    assert "tiny on cpu" in comment[1]
    assert "1, 2 requests in flight; made photos of 80x60" in comment[2]
    settings = load_settings({"settings": output}, environment={})
    assert (settings.repository, settings.device, settings.batch_buckets) == (repository, "cpu", (1, 2))
    assert (settings.workers, settings.threads, settings.of_model(tiny_model.NAME).threads) == (1, 1, 1)
    with service_process(repository, "--settings", str(output)):
        pass


def test_several_models_are_tuned_for_latency_by_photos_of_a_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tiny_model.write(tmp_path / "models", name=name, explain=False)
    output = tmp_path / "tuned.toml"
    with tuning(
        "--repository", tmp_path / "models", "--model", "two,one", "--output", output, *SHORT[:6], *FIXED,
        "--instances", "1", "--images", ROOT / "examples" / "images", "--goal", "latency",
    ) as popen:  # fmt: skip
        stdout, stderr = popen.communicate(timeout=2 * PATIENCE_S)
    assert popen.returncode == 0, stderr
    tried = [line for line in stdout.splitlines() if line.startswith(("one: ", "two: "))]
    if os.cpu_count() != 1:
        assert [line.partition(":")[0] for line in tried[:2]] == ["two", "one"]
    assert load_settings({"settings": output}, environment={}).model == ("two", "one")


def test_ctrl_c_leaves_no_server_and_no_file(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned.toml"
    with tuning("--repository", repository, "--output", output, "--seconds", "60", *FIXED) as popen:
        servers = wait_for_servers(popen)
        popen.send_signal(signal.SIGINT)
        _, stderr = popen.communicate(timeout=PATIENCE_S)
    assert popen.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert [pid for pid in servers if Path(f"/proc/{pid}").exists()] == []
    assert list(tmp_path.iterdir()) == []


def test_servers_end_with_a_tuner_that_is_killed(repository: Path, tmp_path: Path) -> None:
    with tuning("--repository", repository, "--output", tmp_path / "x.toml", "--seconds", "60", *FIXED) as popen:
        servers = wait_for_servers(popen)
    give_up_s = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in servers):
        assert time.monotonic() < give_up_s, "servers run on"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        (("--seconds", "0"), 2, "0 is not above 0"),
        (("--concurrency", "1,0"), 2, "0 is not above 0"),
        (("--image-size", "640"), 2, "'640' is not WIDTHxHEIGHT"),
        (("--images", "no-folder"), 2, "no-folder"),
        (("--model", "nobody"), 1, "nobody"),
        (("--device", "cuda:7"), 1, "cuda"),
    ],
)
def test_what_cannot_be_done_is_named(
    options: tuple[str, ...], status: int, reason: str, repository: Path, tmp_path: Path
) -> None:
    output = tmp_path / "tuned.toml"
    with tuning("--repository", repository, "--output", output, *options) as popen:
        stdout, stderr = popen.communicate(timeout=PATIENCE_S)
    assert (popen.returncode, stdout) == (status, "")
    assert reason in stderr
    assert not output.exists()


def test_a_file_that_is_there_stays(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned.toml"
    output.write_text("threads = 1\n")
    with tuning("--repository", repository, "--output", output) as popen:
        _, stderr = popen.communicate(timeout=PATIENCE_S)
    assert popen.returncode == 2
    assert "--force" in stderr
    assert output.read_text() == "threads = 1\n"
