from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from service.telemetry.metrics_directory import metrics_directory

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from service.telemetry.metrics_directory import metrics_directory
with metrics_directory(Path(sys.argv[1])) as directory:
    print(directory, flush=True)
    sys.stdin.read()
"""


def test_the_directory_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    with metrics_directory(tmp_path) as directory:
        (directory / "counter_1.db").write_bytes(b"")
        assert directory.parent == tmp_path
        assert directory.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_service_left_behind_goes_and_what_another_uses_stays(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        left_behind = Path(other.stdout.readline().strip())
        (left_behind / "counter_1.db").write_bytes(b"")
        with metrics_directory(tmp_path):
            assert left_behind.exists()
        os.kill(other.pid, signal.SIGKILL)
    assert left_behind.exists()
    with metrics_directory(tmp_path) as directory:
        assert list(tmp_path.iterdir()) == [directory]
