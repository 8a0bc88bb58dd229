"""What the registry decides, with a host and a repository that do as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from service.engine.runtime.selfcheck import Parity
from service.errors import LoadFailed, RepositoryError, SettingsError, StartupError, UnknownModel
from service.model.directory import open_model
from service.model.manifest import GraphForm
from service.serving.registry import Candidate, Loaded, Registry
from service.serving.states import ModelState, VersionStatus
from service.settings import Settings
from service.telemetry.metrics import LoadOutcome
from tests.service import tiny_model
from tests.service.conftest import until

READY, FAILED, UNLOADED = ModelState.READY, ModelState.FAILED, ModelState.UNLOADED


class FakeRepository:
    """Holds models below `root`; all versions that `policy` says are wanted, by default the highest."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.there: dict[str, list[int]] = {}
        self.broken: set[tuple[str, int]] = set()
        self.policy: Callable[[list[int]], list[int]] = lambda versions: versions[-1:]

    def add(self, name: str, version: int, *, seed: int = 1) -> Candidate:
        tiny_model.write(self._root, name=name, version=version, seed=seed, explain=False)
        self.there.setdefault(name, []).append(version)
        return self.open(name, version)

    def listed(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(versions) for name, versions in self.there.items()}

    def wanted(self, name: str) -> Sequence[int]:
        if name not in self.there:
            raise UnknownModel(f"no {name}")
        return self.policy(self.there[name])

    def open(self, name: str, version: int) -> Candidate:
        if (name, version) in self.broken:
            raise RepositoryError("its files are broken")
        return Candidate(open_model(self._root / name / str(version)), Settings())


class FakeHost:
    """Notes what it is asked, in order; a test may fail loads and hold unloads."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.loaded: dict[int, Candidate] = {}
        self.serving: list[str] = []
        self.statuses: list[VersionStatus] = []
        self.failure: str | None = None
        self.dead: set[int] = set()
        self.reload: dict[int, Callable[[Loaded], None]] = {}
        self.may_load = asyncio.Event()
        self.may_unload = asyncio.Event()
        self.may_load.set()
        self.may_unload.set()

    async def load(self, serial: int, candidate: Candidate, *, on_reloaded: Callable[[Loaded], None]) -> Loaded:
        self.asked.append(f"load {_name(candidate)}")
        await self.may_load.wait()
        if self.failure is not None:
            raise StartupError(self.failure)
        self.loaded[serial] = candidate
        self.reload[serial] = on_reloaded
        return Loaded(("cuda",), (GraphForm.FUSED,), Parity(1e-4, 5e-3))

    async def publish(self, statuses: Sequence[VersionStatus], serials: Sequence[int]) -> None:
        self.statuses = list(statuses)
        self.serving = [_name(self.loaded[serial]) for serial in serials]
        self.asked.append(f"publish {' '.join(self.serving)}")

    async def unload(self, serial: int) -> None:
        await self.may_unload.wait()
        self.asked.append(f"unload {_name(self.loaded.pop(serial))}")

    def is_well(self, serial: int) -> bool:
        return serial not in self.dead

    def states(self) -> dict[str, ModelState]:
        return {f"{each.name}:{each.version}": each.state for each in self.statuses}

    def status(self, version: int, name: str = "a") -> VersionStatus:
        return next(each for each in self.statuses if (each.name, each.version) == (name, version))


def _name(candidate: Candidate) -> str:
    return f"{candidate.name}:{candidate.version}"


class Counted:
    def __init__(self) -> None:
        self.loads: list[tuple[str, LoadOutcome]] = []

    def load_ended(self, *, model: str, outcome: LoadOutcome, duration_s: float = 0.0) -> None:
        assert duration_s >= 0
        self.loads.append((model, outcome))


async def _passes(_: Candidate) -> None:
    """Every candidate can be served."""


@pytest.fixture
def repository(tmp_path: Path) -> FakeRepository:
    return FakeRepository(tmp_path)


def registry_of(
    repository: FakeRepository,
    host: FakeHost,
    *,
    prove: Callable[[Candidate], Awaitable[None]] = _passes,
    observer: Counted | None = None,
    lists_repository: bool = True,
) -> Registry:
    return Registry(repository, host, prove=prove, observer=observer or Counted(), lists_repository=lists_repository)


async def test_models_of_the_start_are_served_in_order_and_shown_loading_before(repository: FakeRepository) -> None:
    candidates = [repository.add("b", 1), repository.add("a", 3)]
    repository.add("c", 1)
    host = FakeHost()
    registry = registry_of(repository, host)
    await registry.start(candidates)
    assert host.asked == ["publish ", "load b:1", "publish b:1", "load a:3", "publish b:1 a:3"]
    assert host.states() == {"b:1": READY, "a:3": READY, "c:1": UNLOADED}
    status = host.status(3)
    assert (status.is_default, status.devices, status.graphs) == (True, ("cuda",), ("fused",))
    assert status.parity == Parity(1e-4, 5e-3)


async def test_an_engine_that_was_loaded_again_is_shown_with_the_graph_that_it_runs_now(
    repository: FakeRepository,
) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    await registry.start([repository.add("a", 1)])
    asked = len(host.asked)
    host.reload[1](Loaded(("cuda",), (GraphForm.FUSED,), Parity(1e-4, 5e-3)))
    host.reload[1](Loaded(("cuda",), (GraphForm.STANDARD,), Parity(2e-4, 5e-3)))
    await until(lambda: len(host.asked) > asked)
    status = host.status(1)
    assert (status.state, status.is_default, status.graphs) == (READY, True, ("standard",))
    assert status.parity == Parity(2e-4, 5e-3)
    await registry.stop()
    assert host.asked[asked:] == ["publish a:1"]  # and nothing where all was as before


async def test_a_load_that_another_has_replaced_says_nothing_of_it_any_more(repository: FakeRepository) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    await registry.start([repository.add("a", 1)])
    host.dead.add(1)  # so that the same files are loaded again
    await registry.load("a")
    host.reload[1](Loaded(("cuda",), (GraphForm.STANDARD,), None))
    await asyncio.sleep(0)
    (status,) = registry.statuses
    assert status.graphs == ("fused",)


async def test_a_model_of_the_start_that_cannot_be_served_ends_it(repository: FakeRepository) -> None:
    host = FakeHost()
    host.failure = "no device"
    with pytest.raises(StartupError, match="no device"):
        await registry_of(repository, host).start([repository.add("a", 1)])


async def test_a_new_version_takes_over_in_one_step_and_the_old_one_drains_before_it_goes(
    repository: FakeRepository,
) -> None:
    host, counted = FakeHost(), Counted()
    tried: list[str] = []

    async def prove(candidate: Candidate) -> None:
        tried.append(_name(candidate))

    registry = registry_of(repository, host, prove=prove, observer=counted)
    await registry.start([repository.add("a", 1)])
    repository.add("a", 2)
    host.asked.clear()
    host.may_unload.clear()
    loading = asyncio.create_task(registry.load("a"))
    await until(lambda: host.states().get("a:1") is ModelState.DRAINING)
    assert host.serving == ["a:2"]
    assert (host.status(1).is_default, host.status(2).is_default) == (False, True)
    assert not loading.done()
    host.may_unload.set()
    await loading
    assert host.asked == ["publish a:1", "load a:2", "publish a:2", "unload a:1", "publish a:2"]
    assert host.states() == {"a:1": UNLOADED, "a:2": READY}
    assert tried == ["a:2"]  # what is served from the start hurts nobody who is served already
    assert counted.loads == [("a", "loaded"), ("a", "loaded"), ("a", "unloaded")]


@pytest.mark.parametrize("where", ["files", "trial", "load"])
async def test_a_version_that_fails_leaves_all_as_it_was_and_says_why(where: str, repository: FakeRepository) -> None:
    host, counted = FakeHost(), Counted()

    async def prove(candidate: Candidate) -> None:
        if where == "trial" and candidate.version == 2:
            raise StartupError("it differs")

    registry = registry_of(repository, host, prove=prove, observer=counted)
    await registry.start([repository.add("a", 1)])
    repository.add("a", 2)
    if where == "files":
        repository.broken.add(("a", 2))
    if where == "load":
        host.failure = "no memory"
    reason = {"files": "its files are broken.", "trial": "it differs.", "load": "no memory."}[where]
    with pytest.raises(LoadFailed, match=f"Version 2 of 'a' cannot be served: {reason}"):
        await registry.load("a")
    assert host.serving == ["a:1"]
    assert (host.status(1).state, host.status(1).is_default) == (READY, True)
    assert (host.status(2).state, host.status(2).reason) == (FAILED, reason)
    assert counted.loads[-1] == ("a", "failed")
    repository.broken.clear()
    host.failure = None
    where = "nowhere"
    await registry.load("a")
    assert (host.status(2).state, host.status(2).reason) == (READY, "")


async def test_what_is_served_and_unchanged_stays_and_what_has_changed_is_replaced(
    repository: FakeRepository, tmp_path: Path
) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    await registry.start([repository.add("a", 1)])
    host.asked.clear()
    await registry.load("a")
    assert [asked for asked in host.asked if not asked.startswith("publish")] == []
    directory = tmp_path / "a" / "1"
    (directory / "model.onnx").write_bytes(tiny_model.graph(seed=9).SerializeToString())
    tiny_model.write_manifest(directory, name="a", version=1)
    await registry.load("a")
    assert host.asked[-3:] == ["unload a:1", "publish a:1", "publish a:1"] or "unload a:1" in host.asked
    assert (len(host.loaded), host.serving) == (1, ["a:1"])
    repository.broken.add(("a", 1))
    with pytest.raises(LoadFailed):
        await registry.load("a")
    assert (host.status(1).state, host.status(1).reason) == (READY, "its files are broken.")


async def test_a_version_whose_engine_is_dead_is_loaded_anew(repository: FakeRepository) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    await registry.start([repository.add("a", 1)])
    host.dead.update(host.loaded)
    await registry.load("a")
    assert (host.asked.count("load a:1"), host.asked.count("unload a:1"), host.serving) == (2, 1, ["a:1"])


async def test_several_versions_may_be_wanted_and_the_highest_is_the_default(repository: FakeRepository) -> None:
    host = FakeHost()
    repository.policy = lambda versions: versions[-2:]
    registry = registry_of(repository, host)
    await registry.start([repository.add("a", 1), repository.add("a", 2)])
    repository.add("a", 3)
    await registry.load("a")
    assert host.serving == ["a:2", "a:3"]
    assert [each.version for each in host.statuses if each.is_default] == [3]


async def test_a_failed_version_that_is_gone_is_shown_no_more(repository: FakeRepository) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    await registry.start([repository.add("a", 1)])
    repository.add("a", 2)
    repository.broken.add(("a", 2))
    with pytest.raises(LoadFailed):
        await registry.load("a")
    repository.there["a"].remove(2)
    await registry.load("a")
    assert host.states() == {"a:1": READY}


@pytest.mark.parametrize("error", [SettingsError("a/settings.toml: no such setting"), RepositoryError("it is gone")])
async def test_a_model_of_which_it_cannot_be_said_what_is_wanted_stays_and_says_why(
    error: StartupError, repository: FakeRepository
) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    await registry.start([repository.add("a", 1)])

    def cannot(_: list[int]) -> list[int]:
        raise error

    repository.policy = cannot
    with pytest.raises(LoadFailed, match=str(error)):
        await registry.load("a")
    assert (host.serving, host.status(1).reason) == (["a:1"], f"{error}.")


async def test_an_unloaded_model_gets_nothing_and_can_come_back(repository: FakeRepository) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    await registry.start([repository.add("a", 1), repository.add("b", 1)])
    await registry.unload("a")
    assert (host.serving, host.states()) == (["b:1"], {"a:1": UNLOADED, "b:1": READY})
    await registry.unload("a")
    await registry.load("a")
    assert sorted(host.serving) == ["a:1", "b:1"]
    for change in (registry.load, registry.unload):
        with pytest.raises(UnknownModel):
            await change("nothing")


async def test_what_left_the_repository_is_shown_no_more(repository: FakeRepository) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    await registry.start([repository.add("a", 1)])
    for version in range(2, 6):
        repository.add("a", version)
        repository.there["a"] = [version]
        await registry.load("a")
    assert host.states() == {"a:5": READY}


async def test_a_change_goes_on_when_whoever_asked_for_it_goes(repository: FakeRepository) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    await registry.start([repository.add("a", 1)])
    repository.add("a", 2)
    host.may_load.clear()
    asking = asyncio.create_task(registry.load("a"))
    await until(lambda: "load a:2" in host.asked)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    host.may_load.set()
    await until(lambda: host.serving == ["a:2"])


async def test_changes_of_one_model_follow_each_other_and_of_two_go_side_by_side(repository: FakeRepository) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    await registry.start([repository.add("a", 1), repository.add("b", 1)])
    repository.add("a", 2)
    repository.add("b", 2)
    host.may_load.clear()
    changes = [asyncio.create_task(registry.load(name)) for name in ("a", "a", "b")]
    await until(lambda: {"load a:2", "load b:2"} <= set(host.asked))
    host.may_load.set()
    await asyncio.gather(*changes)
    assert host.asked.count("load a:2") == 1
    assert sorted(host.serving) == ["a:2", "b:2"]


@pytest.mark.parametrize("place", ["prove", "load"])
async def test_a_load_that_fails_as_nobody_expected_says_so_and_is_over(repository: FakeRepository, place: str) -> None:
    """No descriptors, no processes: the system says OSError."""
    host = FakeHost()

    async def cannot(*_: object, **__: object) -> None:
        if armed:
            raise OSError(24, "Too many open files")

    armed = False
    registry = registry_of(repository, host, prove=cannot)
    await registry.start([repository.add("a", 1)])
    armed = True
    if place == "load":
        host.load = cannot  # type: ignore[method-assign, assignment]
        registry._prove = lambda _: asyncio.sleep(0)  # type: ignore[assignment]
    repository.add("a", 2)
    with pytest.raises(LoadFailed, match="Too many open files"):
        await registry.load("a")
    assert host.states() == {"a:1": READY, "a:2": FAILED}


async def test_a_model_is_loaded_once_where_it_is_asked_for_while_the_service_starts(
    repository: FakeRepository,
) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    host.may_load.clear()
    starting = asyncio.create_task(registry.start([repository.add("a", 1)]))
    await until(lambda: host.asked.count("load a:1") == 1)
    asked = asyncio.create_task(registry.load("a"))
    await asyncio.sleep(0.1)
    host.may_load.set()
    await asyncio.gather(starting, asked)
    assert host.asked.count("load a:1") == 1
    await registry.unload("a")
    assert host.loaded == {}


async def test_a_model_that_is_unloaded_while_the_service_starts_is_not_served(repository: FakeRepository) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    host.may_load.clear()
    starting = asyncio.create_task(registry.start([repository.add("a", 1), repository.add("b", 1)]))
    await until(lambda: host.asked.count("load a:1") == 1)
    leaving = asyncio.create_task(registry.unload("b"))
    await asyncio.sleep(0.1)
    host.may_load.set()
    await asyncio.gather(starting, leaving)
    assert host.states() == {"a:1": READY, "b:1": UNLOADED}


async def test_of_several_wanted_versions_one_that_fails_leaves_all_as_it_was(repository: FakeRepository) -> None:
    host = FakeHost()
    registry = registry_of(repository, host)
    repository.policy = lambda versions: versions[-2:]
    await registry.start([repository.add("a", 1), repository.add("a", 2)])
    repository.add("a", 3)
    repository.add("a", 4)
    repository.broken.add(("a", 4))
    with pytest.raises(LoadFailed):
        await registry.load("a")
    assert host.serving == ["a:1", "a:2"]
    assert host.status(2).is_default
