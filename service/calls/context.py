"""What is known of one call, from its head's arrival to its end, whatever carries it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.access.keys import ApiKey
from service.calls.in_flight import Work
from service.samples.records import SampledImage
from service.samples.sampler import Sampler
from service.serving.served import Served
from service.telemetry.stages import Stages

_REQUEST_ID = re.compile(r"[!-~]{1,128}")


@dataclass(slots=True)
class RequestContext:
    """Made around every request; what answers the request fills in the rest."""

    request_id: str
    stages: Stages
    """Where the time goes; of an inference request it counts if it is answered."""
    work: Work
    """What there is to do until the answer begins, and how it is ended before."""
    path: str = ""
    """The path as received, with the root path or without; that of the scope may be rewritten on the way."""
    root_path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """By their names in lower case: of one that was sent several times the first."""
    code: str = "ok"
    key: ApiKey | None = None
    """The API key that it bears, where keys are configured."""
    at_end: Callable[[], None] | None = None
    """Called when the request has ended."""
    images: int | None = None
    served: Served | None = None
    """What it asks, kept until it has ended; None where it came to no model."""
    logits: Sequence[NDArray[np.float32]] = ()
    """Of its images (classes,), where the run gave them."""
    sampler: Sampler | None = None
    """What keeps its answers, where it is one of those that are sampled."""
    sampled: Sequence[SampledImage] = ()
    """What is to be kept of its images."""

    def keep(self, served: Served) -> None:
        """Note what the request asks, which stays until it has ended; once."""
        assert self.served is None, "a request asks one version of one model"
        served.keep()
        self.served = served

    def answer_within(self, timeout_ms: float) -> None:
        """Have the request answered within a time from its arrival, unless it is to be answered earlier anyway."""
        self.work.due_by(self.stages.started_s + timeout_ms / 1000)


def request_id_of(given: str) -> str:
    """Return the caller's request id where it is 1 to 128 visible ASCII characters, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
