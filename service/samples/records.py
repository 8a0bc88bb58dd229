"""What is kept of a request that is sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.model.directory import ModelDirectory

File: TypeAlias = bytes | bytearray | memoryview


class SampledImage(NamedTuple):
    """What is kept of one image."""

    place: int
    """Its place in the request."""
    outputs: Mapping[str, NDArray[np.float32]]
    """The logits and the embedding, where its run gave them."""
    file: File | None
    """The file as it was sent; None where it was not, or is not kept."""
    name: str | None
    """The file's name, the same."""


class SampledRequest(NamedTuple):
    """What is kept of a request that has been answered."""

    at_s: float
    """When it ended, in seconds since 1970."""
    request_id: str
    route: str
    model: ModelDirectory
    top_k: int
    images: Sequence[SampledImage]
