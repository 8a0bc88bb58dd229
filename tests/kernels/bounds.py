"""How far float16 kernels may be from float64.

float16 has 11 bits, so that writing a result alone costs 2^-11 of it. Values of unit variance are rounded on the way
two or three times more (queries, keys and values with their bias; softmax weights), each by at most as much, and errors
of a sum of n terms grow slower than the sum. Hence 2^-10 of the value, and 2e-3 for what cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor

ABSOLUTE = 2e-3
RELATIVE = 2**-10


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float16
    assert expected.dtype == torch.float64
    error = (actual.double() - expected).abs()
    assert actual.shape == expected.shape
    assert bool((error <= ABSOLUTE + RELATIVE * expected.abs()).all()), f"largest error {error.max():.2e}"


def halves(generator: torch.Generator, *shape: int) -> Tensor:
    """Unit-variance float16 values."""
    return torch.randn(*shape, generator=generator).half()
