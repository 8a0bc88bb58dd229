"""What the service counts and times, in Prometheus terms, with a registry of its own for each application.

Implements the engine's observer: those methods are called in the engine's thread, the others on the event loop;
prometheus_client's metrics are safe in both. Durations are in seconds. `code` is `ok` or the stable code of an error.

A service of several processes counts into files of a directory that all share (`metrics_directory`), which is
prometheus_client's way, and any of its processes renders the sums. What is read rather than counted, such as the
engines' states, comes from what the processes share anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.engine.core import DropReason
from service.engine.types import EngineState
from service.model.manifest import Manifest

STAGE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class EngineGauges(Protocol):
    """What is read from an engine whenever the metrics are."""

    @property
    def states(self) -> Sequence[EngineState]: ...  # noqa: D102
    @property
    def queue_depth(self) -> int: ...  # noqa: D102
    @property
    def slots_in_use(self) -> int: ...  # noqa: D102


class Metrics:
    """All metrics of one application.

    `directory` is where the processes of one service count together; every process of it gives the same `buckets`,
    and has the directory in its environment when prometheus_client is imported.
    """

    def __init__(self, *, buckets: Sequence[int], directory: Path | None = None) -> None:
        self.registry = CollectorRegistry()
        """What this process counts."""
        self._shown = self.registry
        if directory is None:
            ProcessCollector(registry=self.registry)
        else:
            self._shown = CollectorRegistry()
            MultiProcessCollector(self._shown, str(directory))  # type: ignore[no-untyped-call]
        PlatformCollector(registry=self._shown)
        self._requests = Counter(
            "dat_requests",
            "Requests answered, by route, HTTP status and code.",
            ("route", "status", "code"),
            registry=self.registry,
        )
        self._key_requests = Counter(
            "dat_key_requests",
            "Requests that bore an API key, by its name and code.",
            ("key", "code"),
            registry=self.registry,
        )
        self._request_duration = Histogram(
            "dat_request_duration_seconds",
            "From a request's headers to the end of its response.",
            ("route",),
            buckets=STAGE_BUCKETS_S,
            registry=self.registry,
        )
        self._failed_request_seconds = Counter(
            "dat_failed_request_seconds",
            "Time spent on requests that ended in an error, of dat_request_duration_seconds.",
            ("route",),
            registry=self.registry,
        )
        self._request_stage_seconds = Counter(
            "dat_request_stage_seconds",
            "Time that answered inference requests spent in each stage: of each request, its slowest image's.",
            ("stage",),
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "dat_requests_in_flight", "Requests being answered.", multiprocess_mode="livesum", registry=self.registry
        )
        self._abandoned_decodes = Gauge(
            "dat_abandoned_decodes",
            "Decodings that go on in their threads although their requests have ended.",
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        self._images = Counter(
            "dat_images",
            "Images received in complete requests, by outcome: answered, or the code of what was wrong.",
            ("outcome",),
            registry=self.registry,
        )
        self._stages = Histogram(
            "dat_stage_duration_seconds",
            "Time that an image spent in decode, preprocess, queue and inference, a request in postprocess and total.",
            ("stage",),
            buckets=STAGE_BUCKETS_S,
            registry=self.registry,
        )
        self._batch_size = Histogram(
            "dat_batch_size", "Images of one run of the model.", buckets=tuple(buckets), registry=self.registry
        )
        self._batches = Counter(
            "dat_batches",
            "Runs of the model, by padded batch size and outcome (ok, failed).",
            ("bucket", "outcome"),
            registry=self.registry,
        )
        self._batch_seconds = Counter(
            "dat_batch_seconds",
            "Time of the runs of the model, by padded batch size.",
            ("bucket",),
            registry=self.registry,
        )
        self._last_run = Gauge(
            "dat_last_run_timestamp_seconds",
            "When the model last ran, in seconds since 1970.",
            multiprocess_mode="max",
            registry=self.registry,
        )
        self._dropped = Counter(
            "dat_dropped_images",
            "Images that left the queue unanswered, by reason.",
            ("reason",),
            registry=self.registry,
        )
        # To look a metric up by its labels costs more than to count; each has a few values, which stay.
        self._requests_of = cache(self._requests.labels)
        self._key_requests_of = cache(self._key_requests.labels)
        self._request_duration_of = cache(self._request_duration.labels)
        self._images_of = cache(self._images.labels)
        self._stage = cache(self._stages.labels)
        self._batches_of = cache(self._batches.labels)
        self._batch_seconds_of = cache(self._batch_seconds.labels)
        self._request_stage = cache(self._request_stage_seconds.labels)

    def watch(self, engine: EngineGauges) -> None:
        """Read an engine's gauges at every scrape."""
        self._shown.register(_Read(lambda: _engine_gauges(engine)))

    def watch_processes(self, pids: Callable[[], Mapping[str, int]]) -> None:
        """Show the memory, CPU time and descriptors of several processes, by their names."""
        self._shown.register(_Read(lambda: _process_metrics(pids())))

    def describe(self, manifest: Manifest) -> None:
        """Name the model that is served."""
        facts = {
            "name": manifest.name,
            "version": str(manifest.version),
            "variant": manifest.variant,
            "precision": manifest.precision,
        }
        self._shown.register(_Read(lambda: iter([InfoMetricFamily("dat_model", "The model that is served.", facts)])))

    def request_began(self) -> None:
        """Count a request in flight."""
        self._in_flight.inc()

    def request_ended(self, *, route: str, status: int, code: str, duration_s: float) -> None:
        """Count an answered, or dropped, request."""
        self._in_flight.dec()
        self._requests_of(route, str(status), code).inc()
        self._request_duration_of(route).observe(duration_s)
        if code != "ok":
            self._failed_request_seconds.labels(route).inc(duration_s)

    def key_used(self, *, key: str, code: str) -> None:
        """Count a request that bore an API key."""
        self._key_requests_of(key, code).inc()

    def images_ended(self, outcome: str, count: int = 1) -> None:
        """Count images by how they ended."""
        self._images_of(outcome).inc(count)

    def stage_took(self, stage: str, duration_s: float) -> None:
        """Record one duration of a stage."""
        self._stage(stage).observe(duration_s)

    def request_inferred(self, stages_s: Mapping[str, float]) -> None:
        """Record where the time of an answered inference request went."""
        for stage in ("postprocess", "total"):
            self.stage_took(stage, stages_s[stage])
        for stage, duration_s in stages_s.items():
            self._request_stage(stage).inc(duration_s)

    def decodes_abandoned(self, count: int) -> None:
        """Record how many decodings go on for nobody; any thread."""
        self._abandoned_decodes.set(count)

    def batch_ran(self, *, bucket: int, queue_s: Sequence[float], inference_s: float) -> None:
        """Record a run of the model; `queue_s` has one entry an image."""
        self._batches_of(str(bucket), "ok").inc()
        self._batch_seconds_of(str(bucket)).inc(inference_s)
        self._last_run.set(time.time())
        self._batch_size.observe(len(queue_s))
        for waited_s in queue_s:
            self._stage("queue").observe(waited_s)
            self._stage("inference").observe(inference_s)

    def batch_failed(self, *, bucket: int, images: int) -> None:
        """Record a run that failed and took its images with it."""
        self._batches_of(str(bucket), "failed").inc()
        self._dropped.labels("failed").inc(images)

    def dropped(self, reason: DropReason, images: int) -> None:
        """Record images that left the queue unanswered."""
        self._dropped.labels(reason.value).inc(images)

    def samples(self) -> Iterator[Sample]:
        """Yield every sample of all metrics, of all processes."""
        for metric in self._shown.collect():
            yield from metric.samples

    def render(self) -> bytes:
        """Return all metrics, of all processes, in Prometheus's text format."""
        return generate_latest(self._shown)


class _Read(Collector):
    """Metrics that are made whenever they are asked for."""

    def __init__(self, read: Callable[[], Iterator[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        return self._read()


def _engine_gauges(engine: EngineGauges) -> Iterator[Metric]:
    yield GaugeMetricFamily("dat_queued_images", "Images that wait for a device, or run.", engine.queue_depth)
    yield GaugeMetricFamily("dat_admitted_images", "Images admitted and not yet answered.", engine.slots_in_use)
    states = GaugeMetricFamily("dat_engine_state", "Engines in each state.", labels=("state",))
    present = list(engine.states)
    for state in EngineState:
        states.add_metric((state.value,), present.count(state))
    yield states


def _process_metrics(pids: Mapping[str, int]) -> Iterator[Metric]:
    """Yield the usual metrics of processes, with the process's name as a label."""
    families: dict[str, Metric] = {}
    for name, pid in pids.items():
        for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, sample.labels | {"process": name}, sample.value)
    yield from families.values()
