"""Starting the server and the exporter in processes of their own, and what /proc says of processes."""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_START_TIMEOUT_S = 300.0


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started and that live."""
    children = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        children += [int(child) for child in (task / "children").read_text().split()]
    return children


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds, user and system, that a process and its living descendants have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return own_s + sum(cpu_seconds(child) for child in children_of(pid))


def resident_bytes(pid: int) -> int:
    """Return the memory that a process and its living descendants hold; what they share counts for each in part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    own_kib = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return own_kib * 1024 + sum(resident_bytes(child) for child in children_of(pid))


def export_command(variant: str, seed: int, repository: Path, name: str, args: str) -> list[str]:
    """Return the command that exports a variant with random weights; it prints the model directory."""
    command = [sys.executable, "-m", "export", variant, "--random-weights", str(seed)]
    return [*command, "--repository", str(repository), "--name", name, *shlex.split(args)]


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that is ready."""

    host: str
    port: int
    pid: int


@contextlib.contextmanager
def server(repository: Path, model: str, *, port: int, options: Sequence[str] = ()) -> Iterator[RunningServer]:
    """Run a server until it is ready, and end it afterwards; raises RuntimeError where it does not come up.

    The port must be free: another server there would be measured in this one's place.
    """
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise RuntimeError(f"port {port} is taken by another server; choose one with --port")
    command = [sys.executable, "-m", "service", "--repository", str(repository), "--model", model]
    command += ["--port", str(port), "--log-level", "warning", *options]
    with subprocess.Popen(command) as process:
        try:
            _wait_until_ready("127.0.0.1", port, process)
            yield RunningServer("127.0.0.1", port, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _wait_until_ready(host: str, port: int, process: subprocess.Popen[bytes]) -> None:
    give_up_s = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < give_up_s:
        connection = http.client.HTTPConnection(host, port)
        try:
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            pass  # not listening yet
        finally:
            connection.close()
        time.sleep(0.1)
    raise RuntimeError(f"the server did not become ready (exit status {process.poll()})")
