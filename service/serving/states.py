"""How each version of each model is: records that pass between processes and are shown to users."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from service.engine.runtime.selfcheck import Parity
from service.model.manifest import GraphForm


class ModelState(enum.StrEnum):
    """The life of a version, in order; one that cannot be loaded, or differs from what the CPU computes, FAILED."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    UNLOADED = "unloaded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version of a model, as those who ask are told of it."""

    name: str
    version: int
    state: ModelState
    reason: str = ""
    """Why it FAILED, in a sentence; of one that is served, why what has taken its place on the disk cannot be."""
    is_default: bool = False
    """Whether it answers where the model is asked for without a version."""
    devices: tuple[str, ...] = ()
    """What it runs on; empty until that is known."""
    graphs: tuple[GraphForm, ...] = ()
    """The form of its graph that each of these runs."""
    parity: Parity | None = None
    """None before it was loaded, and where it runs on the CPU alone, which is what others are compared with."""
