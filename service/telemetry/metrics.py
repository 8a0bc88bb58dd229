"""What the service counts and times, in Prometheus terms, with a registry of its own for each application.

Implements the engine's observer: those methods are called in the engine's thread, the others on the event loop;
prometheus_client's metrics are safe in both. Durations are in seconds. `code` is `ok` or the stable code of an error.
What is of one version of a model says so in the labels `model` and `version`, which are empty where a request came to
none.

A service of several processes counts into files of a directory that all share (`metrics_directory`), which is
prometheus_client's way, and any of its processes renders the sums. What is read rather than counted, such as the
engines' states, is of `telemetry.collectors`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Generic, Literal, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

from service.engine.core import DropReason
from service.telemetry.collectors import (
    OF_MODEL,
    ModelGauges,
    ReadAtScrape,
    VersionGauges,
    engine_gauges,
    model_facts,
    process_metrics,
    version_gauges,
)

MetricT = TypeVar("MetricT", bound=MetricWrapperBase)

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Bounds of the histogram of batch sizes, the same for every model."""
STAGE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _Labelled(Generic[MetricT]):
    """A metric with labels. To look one up by their values costs more than to count; there are few, which stay."""

    def __init__(self, metric: MetricT) -> None:
        self.metric = metric
        self.of = cache(metric.labels)


class _Group:
    """Metrics that are counted together, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def _counter(self, name: str, documentation: str, *labels: str) -> _Labelled[Counter]:
        return _Labelled(Counter(name, documentation, labels, registry=self._registry))

    def _durations(self, name: str, documentation: str, *labels: str) -> _Labelled[Histogram]:
        return _Labelled(Histogram(name, documentation, labels, buckets=STAGE_BUCKETS_S, registry=self._registry))

    def _gauge(self, name: str, documentation: str, *, of_processes: Literal["livesum", "max"]) -> Gauge:
        return Gauge(name, documentation, multiprocess_mode=of_processes, registry=self._registry)


class _Requests(_Group):
    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.ended = self._counter(
            "dat_requests", "Requests answered, by route, HTTP status and code.", *OF_MODEL, "route", "status", "code"
        )
        self.by_key = self._counter(
            "dat_key_requests", "Requests that bore an API key, by its name and code.", "key", "code"
        )
        self.duration_s = self._durations(
            "dat_request_duration_seconds", "From a request's headers to the end of its response.", *OF_MODEL, "route"
        )
        self.failed_s = self._counter(
            "dat_failed_request_seconds",
            "Time spent on requests that ended in an error, of dat_request_duration_seconds.",
            *OF_MODEL,
            "route",
        )
        self.stage_s = self._counter(
            "dat_request_stage_seconds",
            "Time that answered inference requests spent in each stage: of each request, its slowest image's.",
            *OF_MODEL,
            "stage",
        )
        self.in_flight = self._gauge("dat_requests_in_flight", "Requests being answered.", of_processes="livesum")


class _Images(_Group):
    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.abandoned_decodes = self._gauge(
            "dat_abandoned_decodes",
            "Decodings that go on in their threads although their requests have ended.",
            of_processes="livesum",
        )
        self.ended = self._counter(
            "dat_images",
            "Images received in complete requests, by outcome: answered, or the code of what was wrong.",
            *OF_MODEL,
            "outcome",
        )
        self.stage_s = self._durations(
            "dat_stage_duration_seconds",
            "Time that an image spent in decode, preprocess, queue and inference, a request in postprocess and total.",
            *OF_MODEL,
            "stage",
        )


class _Batches(_Group):
    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.size = _Labelled(
            Histogram(
                "dat_batch_size", "Images of one run of a model.", OF_MODEL, buckets=BATCH_SIZES, registry=registry
            )
        )
        self.ended = self._counter(
            "dat_batches",
            "Runs of a model, by padded batch size and outcome (ok, failed).",
            *OF_MODEL,
            "bucket",
            "outcome",
        )
        self.run_s = self._counter(
            "dat_batch_seconds", "Time of the runs of a model, by padded batch size.", *OF_MODEL, "bucket"
        )
        self.last_run = _Labelled(
            Gauge(
                "dat_last_run_timestamp_seconds",
                "When a model last ran, in seconds since 1970.",
                OF_MODEL,
                multiprocess_mode="max",
                registry=registry,
            )
        )
        self.dropped = self._counter(
            "dat_dropped_images", "Images that left the queue unanswered, by reason.", *OF_MODEL, "reason"
        )


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


class ModelMetrics:
    """What is counted of one version of a model; the engine's observer, and told of its requests' images."""

    def __init__(self, requests: _Requests, images: _Images, batches: _Batches, *, name: str, version: int) -> None:
        self.labels = (name, str(version))
        self._requests = requests
        self._images = images
        self._batches = batches

    def images_ended(self, outcome: str, count: int = 1) -> None:
        """Count images by how they ended."""
        self._images.ended.of(*self.labels, outcome).inc(count)

    def stage_took(self, stage: str, duration_s: float) -> None:
        """Record one duration of a stage."""
        self._images.stage_s.of(*self.labels, stage).observe(duration_s)

    def request_inferred(self, stages_s: Mapping[str, float]) -> None:
        """Record where the time of an answered inference request went."""
        for stage in ("postprocess", "total"):
            self.stage_took(stage, stages_s[stage])
        for stage, duration_s in stages_s.items():
            self._requests.stage_s.of(*self.labels, stage).inc(duration_s)

    def batch_ran(self, *, bucket: int, queue_s: Sequence[float], inference_s: float) -> None:
        """Record a run of the model; `queue_s` has one entry an image."""
        self._batches.ended.of(*self.labels, str(bucket), "ok").inc()
        self._batches.run_s.of(*self.labels, str(bucket)).inc(inference_s)
        self._batches.last_run.of(*self.labels).set(time.time())
        self._batches.size.of(*self.labels).observe(len(queue_s))
        for waited_s in queue_s:
            self.stage_took("queue", waited_s)
            self.stage_took("inference", inference_s)

    def batch_failed(self, *, bucket: int, images: int) -> None:
        """Record a run that failed and took its images with it."""
        self._batches.ended.of(*self.labels, str(bucket), "failed").inc()
        self._batches.dropped.of(*self.labels, "failed").inc(images)

    def dropped(self, reason: DropReason, images: int) -> None:
        """Record images that left the queue unanswered."""
        self._batches.dropped.of(*self.labels, reason.value).inc(images)


_NO_MODEL = ("", "")


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
        self._requests = _Requests(self.registry)
        self._images = _Images(self.registry)
        self._batches = _Batches(self.registry)

    def of_model(self, name: str, version: int) -> ModelMetrics:
        """Return what counts for one version of a model."""
        return ModelMetrics(self._requests, self._images, self._batches, name=name, version=version)

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
        self._requests.in_flight.inc()

    def request_ended(
        self, *, route: str, status: int, code: str, duration_s: float, model: ModelMetrics | None = None
    ) -> None:
        """Count an answered, or dropped, request, and of which version of which model it was, if of any."""
        of_model = model.labels if model is not None else _NO_MODEL
        self._requests.in_flight.dec()
        self._requests.ended.of(*of_model, route, str(status), code).inc()
        self._requests.duration_s.of(*of_model, route).observe(duration_s)
        if code != "ok":
            self._requests.failed_s.of(*of_model, route).inc(duration_s)

    def key_used(self, *, key: str, code: str) -> None:
        """Count a request that bore an API key."""
        self._requests.by_key.of(key, code).inc()

    def decodes_abandoned(self, count: int) -> None:
        """Record how many decodings go on for nobody; any thread."""
        self._images.abandoned_decodes.set(count)

    def inference_totals(self, routes: Collection[str], *, name: str, version: int) -> InferenceTotals:
        """Return what was counted until now of a version's requests to `routes`, those that run it; takes a while."""
        shown: defaultdict[str, list[Sample]] = defaultdict(list)
        for family in self._shown.collect():
            for sample in family.samples:
                if (sample.labels.get("model"), sample.labels.get("version")) == (name, str(version)):
                    shown[sample.name].append(sample)

        def samples(metric: MetricWrapperBase, ending: str = "_total") -> list[Sample]:
            (family,) = metric.describe()
            return shown[family.name + ending]

        requests, images, batches = self._requests, self._images, self._batches
        asked = [each for each in samples(requests.ended.metric) if each.labels["route"] in routes]
        failed_s = [each for each in samples(requests.failed_s.metric) if each.labels["route"] in routes]
        answered = [each for each in samples(images.stage_s.metric, "_count") if each.labels["stage"] == "total"]
        runs = [each for each in samples(batches.ended.metric) if each.labels["outcome"] == "ok"]
        return InferenceTotals(
            answered=int(_sum(answered)),
            failed=int(_sum(each for each in asked if each.labels["code"] != "ok")),
            failed_s=_sum(failed_s),
            stages_s=_sums_by("stage", samples(requests.stage_s.metric)),
            images=int(_sum(samples(batches.size.metric, "_sum"))),
            runs={int(bucket): int(count) for bucket, count in _sums_by("bucket", runs).items()},
            runs_s={int(bucket): s for bucket, s in _sums_by("bucket", samples(batches.run_s.metric)).items()},
            last_run_s=_sum(samples(batches.last_run.metric, "")),
        )

    def render(self) -> bytes:
        """Return all metrics, of all processes, in Prometheus's text format."""
        return generate_latest(self._shown)


def _sum(samples: Iterable[Sample]) -> float:
    return sum(each.value for each in samples)


def _sums_by(label: str, samples: Iterable[Sample]) -> dict[str, float]:
    sums: defaultdict[str, float] = defaultdict(float)
    for each in samples:
        sums[each.labels[label]] += each.value
    return sums
