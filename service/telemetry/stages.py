"""Where a request's time went: the one home of it for its answer, the access line, the metrics and its trace."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from service.engine.types import Answer, Run
from service.images.preprocessing import ImageTimings


@dataclass(slots=True)
class Stages:
    """When a request's images passed which stage, as far as they came; times on time.monotonic."""

    started_s: float
    """Arrival of the headers."""
    decoding: Collection[ImageTimings] = ()
    runs: Sequence[Run] = ()
    postprocessed_s: tuple[float, float] | None = None
    """From when to when the answer was made; None where none was."""
    durations_s: Mapping[str, float] = field(default_factory=dict)
    """By the stage; empty until the answer is made."""
    durations_ms: Mapping[str, float] = field(default_factory=dict)
    """The same, rounded as answers and the log have them."""

    def inferred(self, answers: Iterable[Answer]) -> None:
        """Note what the engine's answers say of their runs; the outputs themselves may be large and are let go."""
        self.runs = [answer.run for answer in answers]

    def postprocessed(self, began_s: float) -> None:
        """Note that postprocessing lasted from a time until now, in any thread, and how long each stage took.

        Images pass through decode, preprocess, queue and inference side by side: of each it is the longest time that
        any of them spent there.
        """
        now_s = time.monotonic()
        decoding, runs = self.decoding, self.runs
        self.postprocessed_s = (began_s, now_s)
        self.durations_s = {
            "decode": max([image.decode_s for image in decoding], default=0.0),
            "preprocess": max([image.preprocess_s for image in decoding], default=0.0),
            "queue": max([run.queue_s for run in runs], default=0.0),
            "inference": max([run.inference_s for run in runs], default=0.0),
            "postprocess": now_s - began_s,
            "total": now_s - self.started_s,
        }
        self.durations_ms = {stage: round(duration_s * 1000, 3) for stage, duration_s in self.durations_s.items()}
