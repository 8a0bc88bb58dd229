"""What the service counts and times, in Prometheus terms, with a registry of its own for each application.

Implements the engine's observer: those methods are called in the engine's thread, the others on the event loop;
prometheus_client's metrics are safe in both. Durations are in seconds. `code` is `ok` or the stable code of an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from service.engine.core import DropReason
from service.engine.types import EngineState
from service.repository import Manifest

STAGE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class EngineGauges(Protocol):
    """What is read from an engine whenever the metrics are."""

    @property
    def state(self) -> EngineState: ...  # noqa: D102
    @property
    def queue_depth(self) -> int: ...  # noqa: D102
    @property
    def slots_in_use(self) -> int: ...  # noqa: D102


class Metrics:
    """All metrics of one application."""

    def __init__(self, *, buckets: Sequence[int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "dat_requests",
            "Requests answered, by route, HTTP status and code.",
            ("route", "status", "code"),
            registry=self.registry,
        )
        self._request_duration = Histogram(
            "dat_request_duration_seconds",
            "From a request's headers to the end of its response.",
            ("route",),
            buckets=STAGE_BUCKETS_S,
            registry=self.registry,
        )
        self._in_flight = Gauge("dat_requests_in_flight", "Requests being answered.", registry=self.registry)
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
        self._dropped = Counter(
            "dat_dropped_images",
            "Images that left the queue unanswered, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self._model = Info("dat_model", "The model that is served.", registry=self.registry)
        # To look a metric up by its labels costs more than to count; each has a few values, which stay.
        self._requests_of = cache(self._requests.labels)
        self._request_duration_of = cache(self._request_duration.labels)
        self._images_of = cache(self._images.labels)
        self._stage = cache(self._stages.labels)
        self._batches_of = cache(self._batches.labels)

    def watch(self, engine: EngineGauges) -> None:
        """Read an engine's gauges at every scrape."""
        queued = Gauge("dat_queued_images", "Images that wait for the device.", registry=self.registry)
        queued.set_function(lambda: engine.queue_depth)
        admitted = Gauge("dat_admitted_images", "Images admitted and not yet answered.", registry=self.registry)
        admitted.set_function(lambda: engine.slots_in_use)
        state = Gauge("dat_engine_state", "1 for the state that the engine is in.", ("state",), registry=self.registry)
        for candidate in EngineState:
            state.labels(candidate.value).set_function(partial(_is_in, engine, candidate))

    def describe(self, manifest: Manifest) -> None:
        """Name the model that is served."""
        self._model.info(
            {
                "name": manifest.name,
                "version": str(manifest.version),
                "variant": manifest.variant,
                "precision": manifest.precision,
            }
        )

    def request_began(self) -> None:
        """Count a request in flight."""
        self._in_flight.inc()

    def request_ended(self, *, route: str, status: int, code: str, duration_s: float) -> None:
        """Count an answered, or dropped, request."""
        self._in_flight.dec()
        self._requests_of(route, str(status), code).inc()
        self._request_duration_of(route).observe(duration_s)

    def images_ended(self, outcome: str, count: int = 1) -> None:
        """Count images by how they ended."""
        self._images_of(outcome).inc(count)

    def stage_took(self, stage: str, duration_s: float) -> None:
        """Record one duration of a stage."""
        self._stage(stage).observe(duration_s)

    def batch_ran(self, *, bucket: int, queue_s: Sequence[float], inference_s: float) -> None:
        """Record a run of the model; `queue_s` has one entry an image."""
        self._batches_of(str(bucket), "ok").inc()
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

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)


def _is_in(engine: EngineGauges, state: EngineState) -> float:
    return float(engine.state is state)
