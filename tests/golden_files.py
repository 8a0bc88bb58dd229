"""The golden files: which there are, and the models and inputs that they were computed from."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from models.config import DATConfig
from models.dat import DAT
from models.variants import VARIANTS
from tests.golden import synthetic

FOLDER = Path(__file__).parent / "golden"
PARITY_TOLERANCE = 1e-4
"""Allowed difference as a multiple of max(1, standard deviation)."""


class GoldenFile(NamedTuple):
    """What the published code computes for one variant, input size and seed."""

    variant: str
    height: int
    width: int
    seed: int
    path: Path

    @property
    def id(self) -> str:
        return f"{self.variant}-{self.height}x{self.width}"

    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path) as archive:
            return dict(archive)


def golden_files() -> list[GoldenFile]:
    found = []
    for path in sorted(FOLDER.glob("*.npz")):
        match = re.fullmatch(r"(.+)_(\d+)x(\d+)_seed(\d+)", path.stem)
        assert match is not None, path
        found.append(GoldenFile(match[1], int(match[2]), int(match[3]), int(match[4]), path))
    return found


@lru_cache
def description(variant: str) -> dict[str, Any]:
    """The published configuration and state dict of a variant."""
    return json.loads((FOLDER / f"{variant}.json").read_text())


def published_state_dict(variant: str, seed: int) -> dict[str, torch.Tensor]:
    """Synthetic weights under the published names, derived buffers included as zeros."""
    state = {}
    for name, shape, dtype, kind in description(variant)["state_dict"]:
        if kind == "parameter":
            state[name] = torch.from_numpy(synthetic.tensor(name, tuple(shape), seed))
        else:
            state[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
    return state


def synthetic_weights(names_and_shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(synthetic.tensor(name, tuple(shape), seed)) for name, shape in names_and_shapes.items()
    }


def synthetic_model(config: DATConfig, image_size: tuple[int, int] | None, *, seed: int = 1) -> DAT:
    """A model of any configuration with synthetic weights."""
    model = DAT(config, image_size)
    model.load_state_dict(synthetic_weights({name: value.shape for name, value in model.state_dict().items()}, seed))
    return model.eval()


def golden_model(golden: GoldenFile) -> DAT:
    size = (golden.height, golden.width)
    return synthetic_model(VARIANTS[golden.variant].config.at_size(size), size, seed=golden.seed)


def synthetic_input(seed: int, count: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(synthetic.normalise(synthetic.images(seed, count, height, width)))


def relative_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a multiple of max(1, standard deviation)."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.abs(actual - expected).max() / max(1.0, float(expected.std())))
