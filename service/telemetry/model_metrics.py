"""What is counted of one version of a model, and what is told of a request that has ended.

The engine's observer is here; `telemetry.metrics` makes one for each version, and counts requests.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.core import DropReason
from service.images.preprocessing import ImageTimings
from service.telemetry.predictions import PredictionSeries
from service.telemetry.series import Batches, Images, Predictions, Requests

_FAILED = "failed"
"""The reason of images that left the queue for a run that failed."""


class RequestSeries:
    """The series of how requests to one version of a model ended, or of those to none."""

    def __init__(self, requests: Requests, *labels: str) -> None:
        self.ended = requests.ended.under(*labels)
        self.duration_s = requests.duration_s.under(*labels)
        self.failed_s = requests.failed_s.under(*labels)


class EndedRequest(NamedTuple):
    """An answered, or dropped, request; of which version of which model it was, if of any."""

    route: str
    status: int
    code: str
    duration_s: float
    model: ModelMetrics | None = None
    decoding: Sequence[ImageTimings] = ()
    """Of its images, those that could be decoded."""
    stages_s: Mapping[str, float] | None = None
    """Where its time went, of one that inferred and was answered."""
    logits: Sequence[NDArray[np.float32]] = ()
    """Of its images (classes,), where it was answered and its run gave them."""


class ModelMetrics:
    """What is counted of one version of a model; the engine's observer, and told of its requests' images."""

    def __init__(
        self,
        requests: Requests,
        images: Images,
        batches: Batches,
        predictions: Predictions,
        *,
        name: str,
        version: int,
        class_names: Sequence[str] = (),
        most_classes: int = 0,
        temperature: float | None = None,
    ) -> None:
        self.labels = labels = (name, str(version))
        """The values of `model` and `version`."""
        self.requests = RequestSeries(requests, *labels)
        self._request_stage_s = requests.stage_s.under(*labels)
        self._images_ended = images.ended.under(*labels)
        self._lookups = images.lookups.under(*labels)
        self._stage_s = images.stage_s.under(*labels)
        self._runs_ended = batches.ended.under(*labels)
        self._run_s = batches.run_s.under(*labels)
        self._dropped = batches.dropped.under(*labels)
        self.predictions = PredictionSeries(
            predictions,
            labels,
            class_names=class_names,
            most_classes=most_classes if class_names else 0,
            temperature=temperature,
        )
        # There from the start: what has never run is not what nobody knows of, and Prometheus sees no rise in what
        # begins at 1.
        for reason in (*DropReason, _FAILED):
            self._dropped.of(str(reason))
        self._size = batches.size.metric.labels(*labels)
        self._last_run = batches.last_run.metric.labels(*labels)

    def images_ended(self, outcome: str, count: int = 1) -> None:
        """Count images by how they ended."""
        self._images_ended.of(outcome).inc(count)

    def looked_up(self, *, hits: int, misses: int) -> None:
        """Count images that were looked for in the cache of answers."""
        self._lookups.of("hit").inc(hits)
        self._lookups.of("miss").inc(misses)

    def requests_inferred(self, stages_s: Sequence[Mapping[str, float]]) -> None:
        """Record where the time of answered inference requests went."""
        for stage in ("postprocess", "total"):
            self._stage_s.of(stage).observe_all([each[stage] for each in stages_s])
        for stage in stages_s[0]:
            self._request_stage_s.of(stage).inc(sum([each[stage] for each in stages_s]))

    def images_decoded(self, timings: Sequence[ImageTimings]) -> None:
        """Record how long images took to be decoded and preprocessed."""
        self._stage_s.of("decode").observe_all([each.decode_s for each in timings])
        self._stage_s.of("preprocess").observe_all([each.preprocess_s for each in timings])

    def batch_ran(self, *, bucket: int, queue_s: Sequence[float], inference_s: float) -> None:
        """Record a run of the model; `queue_s` has one entry an image."""
        self._runs_ended.of(str(bucket), "ok").inc()
        self._run_s.of(str(bucket)).inc(inference_s)
        self._last_run.set(time.time())
        self._size.observe(len(queue_s))
        self._stage_s.of("queue").observe_all(queue_s)
        self._stage_s.of("inference").observe_all([inference_s] * len(queue_s))

    def batch_failed(self, *, bucket: int, images: int) -> None:
        """Record a run that failed and took its images with it."""
        self._runs_ended.of(str(bucket), "failed").inc()
        self._dropped.of(_FAILED).inc(images)

    def dropped(self, reason: DropReason, images: int) -> None:
        """Record images that left the queue unanswered."""
        self._dropped.of(reason.value).inc(images)
