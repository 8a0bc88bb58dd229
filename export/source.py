"""Where the weights of an export come from: a published file, or a seed for trials.

Both give a model in evaluation mode together with what the manifest records of its origin.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from export.errors import ExportError
from models.checkpoint import load_model
from models.config import DATConfig
from models.dat import DAT
from service.model.directory import sha256_of

_TABLES = ("rpe_table", "rpb", "relative_position_bias_table")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its origin: the weights' file name or seed, and their sha256."""

    model: DAT
    weights_source: str
    weights_sha256: str
    notes: tuple[str, ...] = ()
    """Sentences for the user about choices that were made."""


def from_file(
    path: Path,
    config: DATConfig,
    *,
    image_size: tuple[int, int] | None,
    window: int | None = None,
    key: str | None = None,
) -> LoadedModel:
    """Load a weight file, or what lies in it under a key; raises what `models.checkpoint.load_model` raises.

    Raises ExportError where there is no such file.
    """
    if not path.exists():
        raise ExportError(f"the weights {path} do not exist")
    notes: list[str] = []
    model = load_model(path, config, image_size=image_size, window=window, weights_key=key, note=notes.append)
    return LoadedModel(model, path.name, sha256_of(path), tuple(notes))


def from_seed(
    seed: int, config: DATConfig, *, image_size: tuple[int, int] | None, window: int | None = None
) -> LoadedModel:
    """Build a model with random weights: useless answers, but every path through the network is exercised."""
    model = DAT(config if image_size is None else config.at_size(image_size, window), image_size)
    generator = torch.Generator().manual_seed(seed)
    digest = hashlib.sha256()
    weights = {}
    for name, value in sorted(model.state_dict().items()):
        weights[name] = _random_like(name, value, generator)
        digest.update(name.encode())
        digest.update(weights[name].numpy().tobytes())
    model.load_state_dict(weights)
    return LoadedModel(model.eval(), f"random weights of seed {seed}", digest.hexdigest())


def _random_like(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    """Return random values for a parameter, of a scale at which signals neither die nor explode with depth."""
    noise = torch.randn(value.shape, generator=generator)
    leaf = name.rsplit(".", 1)[-1]
    if leaf in _TABLES:
        return noise / 2
    if value.ndim >= 2:
        return noise / (2 * math.sqrt(math.prod(value.shape[1:])))
    return noise / 10 if leaf == "bias" else 1 + noise / 10
