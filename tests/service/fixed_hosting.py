"""What hosts models in a test: engines that the test has made, in the test's process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from service.engine.graphs import Graph
from service.engine.in_process import InProcessEngine
from service.engine.room import Room
from service.engine.types import Session
from service.errors import LoadFailed, UnknownModel
from service.model.directory import ModelDirectory
from service.model.loading import graphs_of, input_shape, preprocessing_of
from service.model.manifest import GraphForm
from service.serving.answer_cache import AnswerCache, of_version
from service.serving.control import ModelControl
from service.serving.served import Served, ServedModels
from service.serving.states import ModelState, VersionStatus
from service.settings import Settings
from service.telemetry.metrics import Metrics


def engine_of(
    model: ModelDirectory, load: Callable[[Graph], Session], settings: Settings, metrics: Metrics
) -> InProcessEngine:
    """Return an engine for a model, not started, that is counted in `metrics`."""
    return InProcessEngine(
        graphs_of(model, settings, buckets=settings.buckets_for("cpu")),
        load,
        input_shape=input_shape(model.manifest),
        room=Room(settings.max_queued_images),
        max_wait_s=settings.max_wait_ms / 1000,
        hang_after_s=settings.hang_timeout_ms / 1000,
        observer=metrics.of_model(model.manifest.name, model.manifest.version),
    )


def served_by(
    engine: InProcessEngine,
    model: ModelDirectory,
    settings: Settings,
    metrics: Metrics,
    cache: AnswerCache | None = None,
) -> Served:
    """Return a model with its engine, as it is published."""
    return Served(
        model=model,
        settings=settings,
        engine=engine,
        preprocessing=preprocessing_of(model.manifest, settings),
        metrics=metrics.of_model(
            model.manifest.name,
            model.manifest.version,
            class_names=model.class_names,
            most_classes=settings.class_metrics,
            temperature=model.manifest.temperature,
        ),
        cache=of_version(cache),
    )


def status_of(served: Served, state: ModelState = ModelState.READY, *, is_default: bool = True) -> VersionStatus:
    """Return how a version on the CPU is."""
    return VersionStatus(
        served.name, served.version, state, is_default=is_default, devices=("cpu",), graphs=(GraphForm.STANDARD,)
    )


class FakeControl:
    """Has a FixedHosting serve its models or not, at once, and fails where `failures` has the reason."""

    def __init__(self) -> None:
        self.hosting: FixedHosting
        self.failures: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []

    async def load(self, name: str) -> None:
        self.asked.append(("load", name))
        self._check(name)
        if name in self.failures:
            raise LoadFailed(self.failures[name])
        self._serve({each.name for each in self.hosting.models.served} | {name})

    async def unload(self, name: str) -> None:
        self.asked.append(("unload", name))
        self._check(name)
        self._serve({each.name for each in self.hosting.models.served} - {name})

    def _check(self, name: str) -> None:
        if name not in {each.name for each in self.hosting.fixed}:
            raise UnknownModel(f"The repository has no model {name!r}.")

    def _serve(self, names: set[str]) -> None:
        fixed = self.hosting.fixed
        statuses = [
            status_of(each) if each.name in names else status_of(each, ModelState.UNLOADED, is_default=False)
            for each in fixed
        ]
        self.hosting.models.publish(statuses, [each for each in fixed if each.name in names])


class FixedHosting:
    """Serves these, each as its model's default version, the first as the default model; a test may publish others."""

    def __init__(self, served: Sequence[Served], *, control: FakeControl | None = None) -> None:
        self.models = ServedModels(default=served[0].name)
        self._control = control
        self.fixed = tuple(served)
        if control is not None:
            control.hosting = self

    @property
    def control(self) -> ModelControl | None:
        return self._control

    async def start(self) -> None:
        loading = [status_of(each, ModelState.LOADING, is_default=False) for each in self.fixed]
        self.models.publish(loading, [])
        for each in self.fixed:
            await each.engine.start()

    async def wait_ready(self) -> None:
        for each in self.fixed:
            await each.engine.wait_ready()
        self.models.publish([status_of(each) for each in self.fixed], self.fixed)

    async def stop(self, timeout_s: float) -> None:
        for each in self.fixed:
            await each.engine.stop(timeout_s)
