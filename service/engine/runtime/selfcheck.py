"""Whether a device computes what the CPU does: a loaded model is believed only after it has shown it.

Builds have been seen that sample the wrong pixels, or take one shape's engine for another's, without any error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from service.engine.runtime.options import Precision
from service.engine.types import Outputs, Pixels

TOLERANCES: Mapping[Precision, float] = {"fp32": 5e-3, "fp16": 3e-2, "int8": 1e-1}
"""Largest relative error, as the norm of the difference over the norm of the CPU's output. Float32 kernels agree to
1e-6; the room is for tensor cores that multiply in fewer bits, where somebody asks for these."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far what a device computes is from what the CPU does: the largest relative error of any output."""

    error: float
    tolerance: float


_IMAGES = 2
_SEED = 20


def check_images(shape: tuple[int, int, int]) -> Pixels:
    """Return the images to compare on, which are the same at every start: uint8 (2, height, width, 3)."""
    return np.random.default_rng(_SEED).integers(0, 256, (_IMAGES, *shape), np.uint8)


def tiled(rows: Outputs, batch: int) -> Outputs:
    """Return what a batch must give whose images are those of `check_images` in turn, from what they give alone."""
    return {name: values[np.arange(batch) % _IMAGES] for name, values in rows.items()}


def differences(expected: Outputs, actual: Outputs, tolerance: float) -> tuple[list[str], float]:
    """Return a complaint for each output that is not what it should be, and the largest relative error of any."""
    complaints, largest = [], 0.0
    for name, wanted in expected.items():
        given = actual[name]
        if given.shape != wanted.shape:
            complaints.append(f"{name} has the shape {given.shape}, not {wanted.shape}")
        elif not np.isfinite(given).all():
            complaints.append(f"{name} is not finite")
        else:
            norm = float(np.linalg.norm(wanted))
            error = float(np.linalg.norm(given - wanted)) / (norm or 1.0)
            largest = max(largest, error)
            if error > tolerance:
                complaints.append(f"{name} differs by {error:.2g} of its norm, where {tolerance:.2g} is allowed")
    return complaints, largest
