"""A stand-in for a layer's first product, so that kernel and model start from the same rounded numbers."""

from __future__ import annotations

import torch
from torch import Tensor


class Given(torch.nn.Module):
    """A product (tokens, channels) that was computed before, and its bias.

    Channel 0 of a token says which row it is, counted from 1; that of padding, 0, is a row of zeros.
    """

    def __init__(self, product: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.rows = torch.cat([torch.zeros_like(product[:1]), product])
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x[..., 0].long()] + self.bias


def tokens_in_order(batch: int, height: int, width: int, dim: int) -> Tensor:
    """The map whose tokens name the rows of a `Given` product in order."""
    numbers = torch.arange(1, batch * height * width + 1, dtype=torch.float64)
    return numbers.reshape(batch, height, width, 1).expand(-1, -1, -1, dim)
