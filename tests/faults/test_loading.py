"""Engines that take long to load, under a supervisor that has little patience."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.model.directory import ModelDirectory
from service.processes.plan import Plan
from service.processes.roles import EngineRole
from service.processes.supervisor import Supervisor
from service.processes.trial import try_candidate
from service.serving.registry import Candidate
from service.serving.repository import ModelRepository
from service.settings import load_settings
from tests.service.conftest import model as model
from tests.service.conftest import repository as repository

HANG_TIMEOUT_S = 2
LONG_S = HANG_TIMEOUT_S + 1
LOADED = 7


def compute(*_: object) -> int:
    """Load for long, as the runtime does: computing, and answering nobody."""
    while time.process_time() < LONG_S:
        pass
    return LOADED


def stop(*_: object) -> int:
    """Be stopped from outside while loading."""
    os.kill(os.getpid(), signal.SIGSTOP)
    return LOADED


def wait_for_ever(*_: object) -> int:
    """Wait for what never comes, as a load in a deadlock does."""
    threading.Event().wait()
    return LOADED


async def end_of(
    load: Callable[..., int], model: ModelDirectory, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str | None]:
    """Have a supervisor start an engine that does `load`, and return its status and why it was killed, if it was."""
    monkeypatch.setattr("service.processes.roles.run_engine", load)
    settings = load_settings({"workers": "2", "hang_timeout_ms": str(HANG_TIMEOUT_S * 1000)}, environment={})
    plan = Plan(settings, model.manifest.name, directory)
    with socket.socket() as listener:
        supervisor = Supervisor(
            plan,
            listener,
            [Candidate(model, settings)],
            ModelRepository(settings),
            resolve=lambda device: device,
            prove=try_candidate,
        )
        engine = EngineRole(plan, 0, "cpu")
        child = await supervisor._start(engine)
        try:
            return await supervisor._watch(engine, child), child.failure
        finally:
            child.kill()
            await child.process.wait()
            supervisor._forget(engine, child)


async def test_engine_that_computes_for_long_while_it_loads_is_left_alone(
    model: ModelDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await end_of(compute, model, tmp_path, monkeypatch) == (LOADED, None)


@pytest.mark.parametrize("load", [stop, wait_for_ever])
async def test_engine_that_stops_or_waits_for_ever_while_it_loads_is_killed(
    load: Callable[..., int], model: ModelDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await end_of(load, model, tmp_path, monkeypatch) == (-signal.SIGKILL, "did not answer for 2 s")
