"""Trying a version where its failure hurts nobody: in a process that loads it, runs it, and ends.

Whatever a version may do that is broken, truncated or lying, or asks for more memory than there is, it does here first.
The process has no privilege over the memory that the service needs: where memory runs out, the kernel ends it before
all others; on the CPU it is, besides, refused more than is available when it begins. It leaves the processors to others
where these want them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.engine.control import ControlSocket, Start
from service.engine.runtime.session import OnnxSession, resolve_device
from service.engine.types import Outputs, Pixels
from service.errors import StartupError
from service.model.loading import SessionLoader, graphs_of, warmed_up
from service.processes.processor_time import processor_ticks
from service.processes.spawning import how_it_ended, spawn
from service.serving.registry import Candidate

_log = logging.getLogger(__name__)

_NICENESS = 5
"""Leaves a third of an ordinary process's share where all processors are busy: the last would leave a seventieth, and
under full load a trial of seconds would take minutes."""
_FIRST_TO_GO = "1000"
"""The score that has the kernel choose a process first where memory runs out."""
_LOOKS = 4
"""At a trial's processor time, within the time that it may compute nothing."""
_SPARED = 0.9
"""Part of the available memory that a trial may take."""
_UNLIMITED_BYTES = 1 << 60
"""What control groups write where there is no limit is more than this."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a trial has shown: why the version cannot be served, None where it can."""

    reason: str | None


async def try_candidate(candidate: Candidate) -> None:
    """Try a candidate on each of its devices; raises StartupError, with the reason, where it cannot be served."""
    process, ours = await spawn()
    try:
        try:
            ours.send(Start(run_trial, (candidate,)))
            status = await _end_of(process, idle_s=candidate.settings.hang_timeout_ms / 1000)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        received = ours.receive()
    finally:
        ours.close()
    if received is None:
        raise StartupError(_how_it_ended(status, candidate.settings.hang_timeout_ms))
    verdict, _ = received
    assert isinstance(verdict, Verdict)
    if verdict.reason is not None:
        raise StartupError(verdict.reason)


async def _end_of(process: asyncio.subprocess.Process, *, idle_s: float) -> int:
    """Return the status of a trial's process when it has ended; raises StartupError where it computes nothing for long.

    How long it computes is its own business: TensorRT builds for minutes.
    """
    ended = asyncio.create_task(process.wait())
    looks, ticks = 0, 0
    while not (await asyncio.wait({ended}, timeout=idle_s / _LOOKS))[0]:
        before, ticks = ticks, processor_ticks(process.pid)
        looks = looks + 1 if ticks == before else 0
        if looks > _LOOKS:
            ended.cancel()
            raise StartupError(f"The process that tried it has computed nothing for {idle_s:g} s.")
    return ended.result()


def _how_it_ended(status: int, longest_ms: int) -> str:
    match -status:
        case signal.SIGALRM:
            return f"A single run of it lasted more than {longest_ms / 1000:g} s."
        case signal.SIGKILL:
            return "The process that tried it was killed, as happens where memory does not suffice."
        case _:
            return f"The process that tried it {how_it_ended(status)}."


class _Bounded:
    """A session whose runs the kernel ends, and the process with them, when they last too long."""

    def __init__(self, session: OnnxSession, *, longest_s: float) -> None:
        self._session = session
        self._longest_s = longest_s

    def staging(self, size_bytes: int) -> Pixels:
        return self._session.staging(size_bytes)

    def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
        signal.setitimer(signal.ITIMER_REAL, self._longest_s)
        try:
            return self._session.run(images, outputs)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def run_trial(control: ControlSocket, descriptors: Sequence[int], candidate: Candidate) -> int:  # noqa: ARG001
    """Be the process of a trial; returns the exit status."""
    os.nice(_NICENESS)
    try:
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    except OSError as error:
        _log.warning("a trial is not the first to go where memory runs out: %s", error)
    settings = candidate.settings
    reason: str | None = None
    try:
        devices = [resolve_device(device) for device in settings.devices or (settings.device,)]
        if set(devices) == {"cpu"}:
            _limit_memory()
        for device in dict.fromkeys(devices):
            _try(candidate, device)
    except StartupError as error:
        reason = str(error)
    except MemoryError:
        reason = "It takes more memory than there is."
    control.send(Verdict(reason))
    return 0


def _try(candidate: Candidate, device: str) -> None:
    """Load and warm up a candidate on a device as an engine does; raises StartupError."""
    model, settings = candidate.model, candidate.settings
    load = SessionLoader(model, device=device, settings=settings, threads=1)
    longest_s = settings.hang_timeout_ms / 1000
    graphs = graphs_of(model, settings, buckets=settings.buckets_for(device))
    warmed_up(model, graphs, lambda graph: _Bounded(load(graph), longest_s=longest_s))


def _limit_memory() -> None:
    """Have this process refused more memory than most of what is available; a GPU's driver maps far more than that."""
    used = _kilobytes("/proc/self/status", "VmSize") * 1024
    most = used + int(_available_bytes() * _SPARED)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _available_bytes() -> int:
    """Return the memory that can be had: the machine's, or what the control group has left where that is less."""
    available = _kilobytes("/proc/meminfo", "MemAvailable") * 1024
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            text = (group / limit).read_text().strip()
            if text != "max" and int(text) < _UNLIMITED_BYTES:
                available = min(available, int(text) - int((group / used).read_text()))
        except OSError as error:
            _log.debug("no limit of memory is known from %s: %s", limit, error)
    return available


def _kilobytes(file: str, key: str) -> int:
    for line in Path(file).read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise RuntimeError(f"{file} says nothing of {key}")
