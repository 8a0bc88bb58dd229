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
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
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
class ThreadUse:
    """What threads have used since they began."""

    cpu_s: float
    switches: int
    """Times that one of them gave up the processor, or lost it."""

    def __add__(self, other: ThreadUse) -> ThreadUse:
        return ThreadUse(self.cpu_s + other.cpu_s, self.switches + other.switches)

    def __sub__(self, other: ThreadUse) -> ThreadUse:
        return ThreadUse(self.cpu_s - other.cpu_s, self.switches - other.switches)


def thread_uses(pid: int) -> dict[str, ThreadUse]:
    """Return what the threads of a process and its living descendants have used, by the names that the kernel has.

    Threads whose names differ in a number at their end alone are counted together. A process's first thread, whose
    name is the program's, is `main`.
    """
    uses: dict[str, ThreadUse] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            name = "main" if task.name == str(pid) else (task / "comm").read_text().strip().rstrip("0123456789-")
            cpu_ns = int((task / "schedstat").read_text().split()[0])
            status = (task / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        switches = sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
        uses[name] = uses.get(name, ThreadUse(0.0, 0)) + ThreadUse(cpu_ns / 1e9, switches)
    for child in children_of(pid):
        for name, use in thread_uses(child).items():
            uses[name] = uses.get(name, ThreadUse(0.0, 0)) + use
    return uses


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that is ready."""

    host: str
    port: int
    pid: int


@contextlib.contextmanager
def server(repository: Path, model: str, *, port: int, options: Sequence[str] = ()) -> Iterator[RunningServer]:
    """Run the service until it is ready, and end it afterwards; raises as `running` does."""
    command = [sys.executable, "-m", "service", "--repository", str(repository), "--model", model]
    with running([*command, "--log-level", "warning", *options], port=port) as target:
        yield target


@contextlib.contextmanager
def running(command: Sequence[str], *, port: int) -> Iterator[RunningServer]:
    """Run a server, which is told `--port`, until it is ready, and end it afterwards.

    Raises RuntimeError where it does not come up. The port must be free: another server there would be measured in this
    one's place.
    """
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise RuntimeError(f"port {port} is taken by another server; choose one with --port")
    with subprocess.Popen([*command, "--port", str(port)]) as process:
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
