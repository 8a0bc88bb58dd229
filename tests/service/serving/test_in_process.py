"""A host in one process: another engine takes the place of one that broke, whatever else goes on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.engine.graphs import Graph
from service.engine.types import EngineState
from service.errors import NotReady, StartupError
from service.model.directory import open_model
from service.model.loading import LoadFacts
from service.model.manifest import GraphForm
from service.serving import in_process
from service.serving.in_process import InProcessHosting
from service.serving.registry import Candidate
from service.serving.served import Served
from service.serving.states import ModelState
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.service import tiny_model
from tests.service.conftest import GatedSession, until


class Lethal(BaseException):
    """What no session should raise, and the engine does not survive."""


@dataclass
class Loads:
    """The loads of a test's model: what each comes to, or why it fails."""

    forms: Sequence[GraphForm] = (GraphForm.STANDARD,)
    failures: list[Exception] = field(default_factory=list)
    sessions: list[GatedSession] = field(default_factory=list)

    def loader(self, *_: object, **__: object) -> Loads:
        return self

    def __call__(self, graph: Graph) -> GatedSession:
        if self.sessions and self.failures:
            raise self.failures.pop(0)
        self.sessions.append(GatedSession())
        return self.sessions[-1]

    @property
    def facts(self) -> LoadFacts:
        return LoadFacts(self.forms[min(len(self.sessions), len(self.forms)) - 1], None)

    def have_the_next_run_break(self) -> None:
        self.sessions[-1].failure = Lethal()  # type: ignore[assignment]


@dataclass
class Hosted:
    hosting: InProcessHosting
    hung: list[str]
    metrics: Metrics

    @property
    def served(self) -> Served:
        (served,) = self.hosting.models.served
        return served

    @property
    def graphs(self) -> tuple[GraphForm, ...]:
        (status,) = self.hosting.models.statuses
        return status.graphs

    @property
    def restarts(self) -> float | None:
        return self.metrics.registry.get_sample_value("dat_restarts_total", {"process": "engine"})

    async def ask(self) -> None:
        with self.served.engine.reserve(1) as reservation:
            with reservation.writing(0) as pixels:
                pixels[:] = 0
            await reservation.infer([0], frozenset({"logits"}))

    async def until_ready(self) -> None:
        await until(lambda: self.served.engine.state is EngineState.READY)


@contextlib.asynccontextmanager
async def hosted(folder: Path, monkeypatch: pytest.MonkeyPatch, loads: Loads, **settings: Any) -> AsyncIterator[Hosted]:
    monkeypatch.setattr(in_process, "SessionLoader", loads.loader)
    chosen = Settings(device="cpu", batch_buckets=(1,), max_restart_delay_ms=1, explain=False, **settings)
    candidate = Candidate(open_model(tiny_model.write(folder, explain=False)), chosen)
    hung: list[str] = []
    metrics = Metrics()

    async def prove(_: Candidate) -> None:
        """Every candidate can be served."""

    hosting = InProcessHosting(chosen, [candidate], Only(candidate), metrics=metrics, prove=prove, on_hung=hung.append)
    await hosting.start()
    await hosting.wait_ready()
    try:
        yield Hosted(hosting, hung, metrics)
    finally:
        for session in loads.sessions:
            session.gate.set()
        await hosting.stop(1.0)


class Only:
    """A repository of one version."""

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate

    def listed(self) -> dict[str, tuple[int, ...]]:
        return {self._candidate.name: (self._candidate.version,)}

    def wanted(self, name: str) -> Sequence[int]:
        return (self._candidate.version,)

    def open(self, name: str, version: int) -> Candidate:
        return self._candidate


async def test_an_engine_that_breaks_is_replaced_and_what_the_new_one_runs_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(forms=(GraphForm.FUSED, GraphForm.STANDARD))
    async with hosted(tmp_path, monkeypatch, loads) as host:
        await host.ask()
        assert (host.graphs, host.restarts) == ((GraphForm.FUSED,), 0)
        loads.have_the_next_run_break()
        with pytest.raises(NotReady):
            await host.ask()
        with pytest.raises(NotReady):
            host.served.check_ready()
        await host.until_ready()
        await host.ask()
        host.served.check_ready()
        await until(lambda: host.graphs == (GraphForm.STANDARD,))
        assert (host.restarts, host.hung, host.served.engine.slots_in_use) == (1, [], 0)


async def test_an_engine_that_cannot_be_loaded_again_is_tried_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(failures=[StartupError("no memory"), ValueError("surprise")])
    async with hosted(tmp_path, monkeypatch, loads) as host:
        loads.have_the_next_run_break()
        with pytest.raises(NotReady):
            await host.ask()
        await host.until_ready()
        await host.ask()
        assert (host.restarts, loads.failures) == (3, [])


async def test_an_engine_that_was_ended_is_replaced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosted(tmp_path, monkeypatch, Loads()) as host:
        await host.served.engine.stop(0)
        await until(lambda: host.restarts)
        await host.until_ready()
        await host.ask()
        assert host.hung == []


async def test_an_engine_that_cannot_even_be_made_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, failures = Loads(), [OSError(24, "Too many open files"), RuntimeError("can't start new thread")]

    def loader(*_: object, **__: object) -> Loads:
        if failures:
            raise failures.pop(0)
        return loads

    async with hosted(tmp_path, monkeypatch, loads) as host:
        monkeypatch.setattr(in_process, "SessionLoader", loader)
        loads.have_the_next_run_break()
        with pytest.raises(NotReady):
            await host.ask()
        await host.until_ready()
        await host.ask()
        assert host.restarts == 3


async def test_a_model_is_unloaded_and_loaded_though_its_engine_never_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(failures=[StartupError("no device")] * 1000)
    async with hosted(tmp_path, monkeypatch, loads, model_control=True) as host:
        loads.have_the_next_run_break()
        with pytest.raises(NotReady):
            await host.ask()
        await until(lambda: host.restarts)
        control = host.hosting.control
        assert control is not None
        await control.unload(tiny_model.NAME)
        restarts, (status,) = host.restarts, host.hosting.models.statuses
        assert status.state is ModelState.UNLOADED
        loads.failures.clear()
        await control.load(tiny_model.NAME)
        await host.ask()
        assert host.restarts == restarts


async def test_an_engine_that_hangs_is_told_of_once_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads()
    async with hosted(tmp_path, monkeypatch, loads, hang_timeout_ms=50) as host:
        loads.sessions[-1].close()
        with pytest.raises(NotReady):
            await host.ask()
        await until(lambda: host.hung)
        assert host.served.engine.state is EngineState.DEAD
        loads.sessions[-1].gate.set()
        await asyncio.sleep(0)
        (sentence,) = host.hung
        assert "hangs" in sentence
        assert (host.restarts, len(loads.sessions)) == (0, 1)
