"""What is known of one request, from its headers' arrival to its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.types import Scope

from service.access.keys import ApiKey
from service.http.in_flight import Work
from service.samples.records import SampledImage
from service.samples.sampler import Sampler
from service.serving.served import Served
from service.telemetry.stages import Stages


@dataclass(slots=True)
class RequestContext:
    """Made by the middleware around every request; what answers the request fills in the rest."""

    request_id: str
    stages: Stages
    """Where the time goes; of an inference request it counts if it is answered."""
    work: Work
    """What there is to do until the answer begins, and how it is ended before."""
    path: str = ""
    """The path as received, with the root path or without; that of the scope may be rewritten on the way."""
    root_path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """As `headers_of` gives them."""
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


def context_of(request: Request) -> RequestContext:
    """Return the context that the middleware made for a request."""
    context: RequestContext = request.scope["state"]["context"]
    return context


def headers_of(scope: Scope) -> dict[str, str]:
    """Return a request's headers by their names in lower case: of one that was sent several times the first.

    Looked at a dozen times a request, which costs a scan of them all each time where the framework does it.
    """
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
