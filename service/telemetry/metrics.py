"""What the service counts and times, in Prometheus terms, with a registry of its own for each application.

Implements the engine's observer: those methods are called in the engine's thread, the others on the event loop;
prometheus_client's metrics are safe in both. Requests are counted as they end where nothing else is in flight, and
several together under load: to count each would be a tenth of what a request costs beside its image. Durations are in
seconds. `code` is `ok` or the stable code of an error.

What is of one version of a model (`telemetry.model_metrics`) says so in the labels `model` and `version`, which are
empty where a request came to none. Prometheus takes an empty label for an absent one.

A service of several processes counts into files of a directory that all share (`metrics_directory`), which is
prometheus_client's way, and any of its processes renders the sums. What is read rather than counted, such as the
engines' states, is of `telemetry.collectors`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

from service.telemetry.collectors import (
    ModelGauges,
    ReadAtScrape,
    VersionGauges,
    engine_gauges,
    model_facts,
    process_metrics,
    version_gauges,
)
from service.telemetry.model_metrics import EndedRequest, ModelMetrics, RequestSeries
from service.telemetry.series import Batches, Images, Loads, Predictions, Requests, Restarts

_SETTLED_REQUESTS = 64
"""How many are counted together at most."""
_SETTLED_VALUES = 1 << 20
"""How many logits wait to be counted at most, which is 4 MiB, beside those of the request that comes last."""
_SETTLED_S = 1.0
"""How long the first of them waits at most, while others end: what other processes show is so old."""

KeyT = TypeVar("KeyT")
LoadOutcome = Literal["loaded", "failed", "unloaded"]


@dataclass(frozen=True, slots=True)
class InferenceTotals:
    """What the requests to a version of a model, and its runs, did since the service started, in all processes."""

    answered: int
    """Requests that were answered."""
    failed: int
    """Requests that ended in an error."""
    failed_s: float
    """How long these took in all."""
    stages_s: Mapping[str, float]
    """How long those that were answered spent in each stage, in all."""
    images: int
    """Images that the model was run on."""
    runs: Mapping[int, int]
    """Runs of the model that did not fail, by padded batch size."""
    runs_s: Mapping[int, float]
    """How long these took in all."""
    last_run_s: float
    """When the model last ran, in seconds since 1970; 0 where it never has."""
    cache_hits: int = 0
    """Images whose answers were kept."""
    cache_misses: int = 0
    """Images that were looked for in the cache of answers, and not found."""


class Metrics:
    """All metrics of one application.

    `directory` is where the processes of one service count together; every process of it has the directory in its
    environment when prometheus_client is imported.
    """

    def __init__(self, *, directory: Path | None = None) -> None:
        self.registry = CollectorRegistry()
        """What this process counts."""
        self._shown = self.registry
        if directory is None:
            ProcessCollector(registry=self.registry)
        else:
            self._shown = CollectorRegistry()
            MultiProcessCollector(self._shown, str(directory))  # type: ignore[no-untyped-call]
        PlatformCollector(registry=self._shown)
        self._has_processes = directory is not None
        self._requests = Requests(self.registry)
        self._images = Images(self.registry)
        self._batches = Batches(self.registry)
        self._predictions = Predictions(self.registry)
        self._loads = Loads(self.registry)
        self._restarts = Restarts(self.registry)
        self._leaving: set[tuple[str, int]] = set()
        self._removing = threading.Lock()
        self._to_no_model = RequestSeries(self._requests, "", "")
        self._in_flight = 0
        self._ended: deque[EndedRequest] = deque()
        self._ended_values = 0
        self._counting = threading.Lock()
        self._settle_at_s = 0.0

    def of_model(
        self,
        name: str,
        version: int,
        *,
        class_names: Sequence[str] = (),
        most_classes: int = 0,
        temperature: float | None = None,
    ) -> ModelMetrics:
        """Return what counts for one version of a model, and at most so many of its classes by themselves.

        `temperature` is the model's, by which its scores are those of its answers.
        """
        for outcome in get_args(LoadOutcome):
            self._loads.ended.of(name, outcome)  # at 0, since Prometheus sees no rise in what begins at 1
        with self._removing:
            self._leaving.discard((name, version))
            return ModelMetrics(
                self._requests,
                self._images,
                self._batches,
                self._predictions,
                name=name,
                version=version,
                class_names=class_names,
                most_classes=most_classes,
                temperature=temperature,
            )

    def forget(self, name: str, version: int) -> None:
        """Show a version that is gone once more, and then no longer: a service that replaces models must stay small.

        With several processes the series stay until the service ends: the files in which these count have no way to
        take one out.
        """
        if not self._has_processes:
            with self._removing:
                self._leaving.add((name, version))

    def _remove(self, shown: Collection[tuple[str, int]]) -> None:
        """Let go of the series of versions whose last counts were shown, unless they have come back since."""
        with self._removing:
            for name, version in self._leaving.intersection(shown):
                for group in (self._requests, self._images, self._batches, self._predictions):
                    for metric in group.of_versions:
                        metric.remove_by_labels({"model": name, "version": str(version)})
            self._leaving.difference_update(shown)

    def watch(self, models: Callable[[], Iterable[ModelGauges]]) -> None:
        """Read the engines' gauges, and what the models are, at every scrape; `models` gives those that take work."""
        self._shown.register(ReadAtScrape(lambda: engine_gauges(models())))
        self._shown.register(ReadAtScrape(lambda: model_facts(models())))

    def watch_versions(self, versions: Callable[[], Iterable[VersionGauges]]) -> None:
        """Read the state of every version of every model at every scrape."""
        self._shown.register(ReadAtScrape(lambda: version_gauges(versions())))

    def watch_processes(self, pids: Callable[[], Mapping[str, int]]) -> None:
        """Show the memory, CPU time and descriptors of several processes, by their names."""
        self._shown.register(ReadAtScrape(lambda: process_metrics(pids())))

    def request_began(self) -> None:
        """Count a request in flight."""
        self._in_flight += 1
        self._requests.in_flight.inc()

    def request_ended(self, request: EndedRequest) -> None:
        """Count a request that has ended: now where no other is in flight, or some time has passed, else with more."""
        self._in_flight -= 1
        self._requests.in_flight.dec()
        self._ended.append(request)
        self._ended_values += sum([each.size for each in request.logits])
        if (
            self._in_flight == 0
            or len(self._ended) >= _SETTLED_REQUESTS
            or self._ended_values >= _SETTLED_VALUES
            or time.monotonic() >= self._settle_at_s
        ):
            self.settle()

    def settle(self) -> None:
        """Count the requests that have ended and are not counted yet; any thread."""
        self._settle_at_s = time.monotonic() + _SETTLED_S
        self._ended_values = 0
        ended: list[EndedRequest] = []
        while self._ended:  # which another thread may be emptying too
            with contextlib.suppress(IndexError):
                ended.append(self._ended.popleft())
        for requests, of_version in _grouped(ended, lambda each: each.model and each.model.requests):
            self._count(requests or self._to_no_model, of_version)
        for model, of_model in _grouped(ended, lambda each: each.model):
            if model is None:
                continue
            if timings := [timings for each in of_model for timings in each.decoding]:
                model.images_decoded(timings)
            if stages_s := [each.stages_s for each in of_model if each.stages_s is not None]:
                model.requests_inferred(stages_s)
            if logits := [logits for each in of_model for logits in each.logits]:
                with self._counting:
                    model.predictions.count(logits)

    @staticmethod
    def _count(requests: RequestSeries, ended: Sequence[EndedRequest]) -> None:
        for (route, status, code), same in _grouped(ended, lambda each: (each.route, each.status, each.code)):
            requests.ended.of(route, str(status), code).inc(len(same))
            durations_s = [each.duration_s for each in same]
            requests.duration_s.of(route).observe_all(durations_s)
            if code != "ok":
                requests.failed_s.of(route).inc(sum(durations_s))

    def key_used(self, *, key: str, code: str) -> None:
        """Count a request that bore an API key."""
        self._requests.by_key.of(key, code).inc()

    def load_ended(self, *, model: str, outcome: LoadOutcome, duration_s: float = 0.0) -> None:
        """Count a version of a model that takes work now, could not be loaded, or was let go of.

        `duration_s` is what a load that succeeded took. Of several processes it is counted in one alone, which must be
        of those that have the directory.
        """
        self._loads.ended.of(model, outcome).inc()
        if outcome == "loaded":
            self._loads.duration_s.of(model).observe(duration_s)
            self._loads.last.of(model).set(time.time())

    def may_restart(self, *names: str) -> None:
        """Show that nothing of these names was started again yet: Prometheus sees no rise in what begins at 1."""
        for name in names:
            self._restarts.ended.of(name)

    def restarted(self, name: str, times: int = 1) -> None:
        """Count that what has this name was started again; of several processes in one alone, as `load_ended`."""
        self._restarts.ended.of(name).inc(times)

    def images_sampled(self, outcome: str, count: int) -> None:
        """Count images of sampled requests by what became of them; any thread."""
        self._images.sampled.of(outcome).inc(count)

    def cache_holds(self, *, images: int, size_bytes: int) -> None:
        """Record how many answers this process keeps, and the memory that they take."""
        self._images.cache_images.set(images)
        self._images.cache_bytes.set(size_bytes)

    def cache_evicted(self, images: int) -> None:
        """Count kept answers that had to leave for others."""
        self._images.evictions.inc(images)

    def decodes_abandoned(self, count: int) -> None:
        """Record how many decodings go on for nobody; any thread."""
        self._images.abandoned_decodes.set(count)

    def inference_totals(self, routes: Collection[str], *, name: str, version: int) -> InferenceTotals:
        """Return what was counted until now of a version's requests to `routes`, those that run it.

        It reads every metric, which takes a while: not on an event loop.
        """
        self.settle()
        of_version = (name, str(version))
        shown: defaultdict[str, list[Sample]] = defaultdict(list)
        for family in self._shown.collect():
            for sample in family.samples:
                if (sample.labels.get("model"), sample.labels.get("version")) == of_version:
                    shown[sample.name].append(sample)

        def samples(metric: MetricWrapperBase, ending: str = "_total") -> list[Sample]:
            (family,) = metric.describe()
            return shown[family.name + ending]

        requests, images, batches = self._requests, self._images, self._batches
        asked = [each for each in samples(requests.ended.metric) if each.labels["route"] in routes]
        failed_s = [each for each in samples(requests.failed_s.metric) if each.labels["route"] in routes]
        answered = [each for each in samples(images.stage_s.metric, "_count") if each.labels["stage"] == "total"]
        runs = [each for each in samples(batches.ended.metric) if each.labels["outcome"] == "ok"]
        lookups = _sums_by("outcome", samples(images.lookups.metric))
        return InferenceTotals(
            answered=int(_sum(answered)),
            failed=int(_sum(each for each in asked if each.labels["code"] != "ok")),
            failed_s=_sum(failed_s),
            stages_s=_sums_by("stage", samples(requests.stage_s.metric)),
            images=int(_sum(samples(batches.size.metric, "_sum"))),
            runs={int(bucket): int(count) for bucket, count in _sums_by("bucket", runs).items()},
            runs_s={int(bucket): s for bucket, s in _sums_by("bucket", samples(batches.run_s.metric)).items()},
            last_run_s=_sum(samples(batches.last_run.metric, "")),
            cache_hits=int(lookups.get("hit", 0)),
            cache_misses=int(lookups.get("miss", 0)),
        )

    def render(self) -> bytes:
        """Return all metrics, of all processes, in Prometheus's text format; takes a while: not on an event loop."""
        with self._removing:
            leaving = tuple(self._leaving)
        self.settle()
        text = generate_latest(self._shown)
        self._remove(leaving)
        return text


def _grouped(
    ended: Iterable[EndedRequest], key: Callable[[EndedRequest], KeyT]
) -> Iterable[tuple[KeyT, list[EndedRequest]]]:
    """Return requests by what `key` gives for them, in the order in which it first does."""
    groups: defaultdict[KeyT, list[EndedRequest]] = defaultdict(list)
    for each in ended:
        groups[key(each)].append(each)
    return groups.items()


def _sum(samples: Iterable[Sample]) -> float:
    return sum(each.value for each in samples)


def _sums_by(label: str, samples: Iterable[Sample]) -> dict[str, float]:
    sums: defaultdict[str, float] = defaultdict(float)
    for each in samples:
        sums[each.labels[label]] += each.value
    return sums
