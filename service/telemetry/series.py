"""The metrics that are counted, each with its name, its labels and what it means; `telemetry.metrics` counts them.

What is of one version of a model begins with the labels `model` and `version`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Sequence
from functools import cache, partial
from typing import Generic, Literal, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics import MetricWrapperBase

from service.telemetry.collectors import OF_MODEL

MetricT = TypeVar("MetricT", bound=MetricWrapperBase)

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Bounds of the histogram of batch sizes, the same for every model."""
SCORES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Bounds of the histogram of scores."""
ENTROPIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Bounds of the histogram of entropies, in parts of the largest that there can be."""
STAGE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LOAD_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


class Histogram(prometheus_client.Histogram):
    """A histogram that takes several amounts at once, which costs little more than one does."""

    def observe_all(self, amounts: Sequence[float]) -> None:
        """Record amounts, numbers of any size."""
        self._raise_if_not_observable()  # type: ignore[no-untyped-call]
        self._sum.inc(sum(amounts))
        places = Counts([bisect_left(self._upper_bounds, amount) for amount in amounts])
        for place, count in places.items():
            self._buckets[place].inc(count)


class Labelled(Generic[MetricT]):
    """A metric with labels, the first of which may be given. To look one up costs more than to count: it is kept."""

    def __init__(self, metric: MetricT, *first: str) -> None:
        self.metric = metric
        self.of = cache(partial(metric.labels, *first))
        """Return the series of the labels' other values; there are few, which stay for as long as this does."""

    def under(self, *first: str) -> Labelled[MetricT]:
        """Return the same metric with the values of its first labels given."""
        return Labelled(self.metric, *first)


class _Group:
    """Metrics that are counted together, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.of_versions: list[MetricWrapperBase] = []
        """Those of them that have series for each version of a model."""

    def _counter(self, name: str, documentation: str, *labels: str) -> Labelled[Counter]:
        return self._labelled(Counter(name, documentation, labels, registry=self._registry), labels)

    def _plain_counter(self, name: str, documentation: str) -> Counter:
        return Counter(name, documentation, registry=self._registry)

    def _histogram(
        self, name: str, documentation: str, *labels: str, buckets: tuple[float, ...] = STAGE_BUCKETS_S
    ) -> Labelled[Histogram]:
        return self._labelled(Histogram(name, documentation, labels, buckets=buckets, registry=self._registry), labels)

    def _latest(self, name: str, documentation: str, *labels: str) -> Labelled[Gauge]:
        """Return a gauge of a moment, of which that of the process that was last is shown."""
        gauge = Gauge(name, documentation, labels, multiprocess_mode="max", registry=self._registry)
        return self._labelled(gauge, labels)

    def _gauge(self, name: str, documentation: str, *, of_processes: Literal["livesum"]) -> Gauge:
        return Gauge(name, documentation, multiprocess_mode=of_processes, registry=self._registry)

    def _labelled(self, metric: MetricT, labels: tuple[str, ...]) -> Labelled[MetricT]:
        if labels[: len(OF_MODEL)] == OF_MODEL:
            self.of_versions.append(metric)
        return Labelled(metric)


class Requests(_Group):
    """What is counted of requests; without a model where they came to none."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.ended = self._counter(
            "dat_requests", "Requests answered, by route, HTTP status and code.", *OF_MODEL, "route", "status", "code"
        )
        self.by_key = self._counter(
            "dat_key_requests", "Requests that bore an API key, by its name and code.", "key", "code"
        )
        self.duration_s = self._histogram(
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


class Images(_Group):
    """What is counted of images."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.abandoned_decodes = self._gauge(
            "dat_abandoned_decodes",
            "Decodings that go on in their threads although their requests have ended.",
            of_processes="livesum",
        )
        self.lookups = self._counter(
            "dat_cache_lookups",
            "Images looked for in the cache of answers, by outcome: hit, miss.",
            *OF_MODEL,
            "outcome",
        )
        self.cache_images = self._gauge("dat_cache_images", "Answers that are kept.", of_processes="livesum")
        self.cache_bytes = self._gauge("dat_cache_bytes", "Memory that kept answers take.", of_processes="livesum")
        self.evictions = self._plain_counter("dat_cache_evictions", "Kept answers that had to make room.")
        self.ended = self._counter(
            "dat_images",
            "Images received in complete requests, by outcome: answered, or the code of what was wrong.",
            *OF_MODEL,
            "outcome",
        )
        self.sampled = self._counter(
            "dat_sampled_images",
            "Images of the requests that were sampled, by outcome: written, dropped or failed.",
            "outcome",
        )
        self.stage_s = self._histogram(
            "dat_stage_duration_seconds",
            "Time that an image spent in decode, preprocess, queue and inference, a request in postprocess and total.",
            *OF_MODEL,
            "stage",
        )


class Batches(_Group):
    """What is counted of the runs of models."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.size = self._histogram("dat_batch_size", "Images of one run of a model.", *OF_MODEL, buckets=BATCH_SIZES)
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
        self.last_run = self._latest(
            "dat_last_run_timestamp_seconds",
            "When a model last ran, in seconds since 1970; 0 where it never has.",
            *OF_MODEL,
        )
        self.dropped = self._counter(
            "dat_dropped_images", "Images that left the queue unanswered, by reason.", *OF_MODEL, "reason"
        )


class Restarts(_Group):
    """What is counted of ends that were not asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.ended = self._counter(
            "dat_restarts",
            "Processes, and engines of a service of one process, that were started again because they broke or hung.",
            "process",
        )


class Predictions(_Group):
    """What is counted of the answers' classes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.score = self._histogram(
            "dat_prediction_score",
            "Softmax probability of the class that was put first, of images whose classes a request asked for.",
            *OF_MODEL,
            buckets=SCORES,
        )
        self.entropy = self._histogram(
            "dat_prediction_entropy",
            "Entropy of an image's softmax probabilities, divided by the logarithm of the number of classes.",
            *OF_MODEL,
            buckets=ENTROPIES,
        )
        self.classes = self._counter(
            "dat_predictions",
            "Images by the class that was put first, where the settings want classes counted.",
            *OF_MODEL,
            "class_id",
            "label",
        )


class Loads(_Group):
    """What is counted of the loading of models, and of letting go of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.ended = self._counter(
            "dat_model_loads",
            "Versions of a model that were loaded, failed to be, or were unloaded, by outcome.",
            "model",
            "outcome",
        )
        self.duration_s = self._histogram(
            "dat_model_load_duration_seconds",
            "From the start of a version's load to its taking work, of those that came to it.",
            "model",
            buckets=LOAD_BUCKETS_S,
        )
        self.last = self._latest(
            "dat_last_load_timestamp_seconds",
            "When a version of a model was last loaded, in seconds since 1970.",
            "model",
        )
