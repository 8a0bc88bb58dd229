"""Neighbourhood attention against `models.neighborhood_attention` in float64, whose products are given."""

from __future__ import annotations

import pytest
import torch

from kernels.neighborhood import neighborhood_attention
from models.neighborhood_attention import NeighborhoodAttention
from tests.kernels.bounds import assert_close, halves
from tests.kernels.given import Given, tokens_in_order


@pytest.mark.parametrize(
    ("height", "width", "kernel", "heads", "head_dim"),
    [
        (14, 14, 7, 1, 32),
        (28, 28, 7, 1, 32),
        (7, 7, 7, 3, 32),
        (16, 16, 7, 1, 16),
        (4, 11, 7, 2, 16),
        (9, 17, 5, 2, 16),
    ],
)
def test_attention_equals_the_models(
    generator: torch.Generator, height: int, width: int, kernel: int, heads: int, head_dim: int
) -> None:
    dim = heads * head_dim
    layer = NeighborhoodAttention(dim, heads, kernel=kernel, map_size=(height, width)).double()
    positions = halves(generator, *layer.rpb.shape)
    layer.rpb.data = positions.double()
    qkv, bias = halves(generator, 2, height, width, 3 * dim), halves(generator, 3 * dim)
    layer.qkv = Given(qkv.double().flatten(0, 2), bias.double())
    layer.proj = torch.nn.Identity()
    with torch.inference_mode():
        expected = layer(tokens_in_order(2, height, width, dim))
    out = torch.full((2, height, width, dim), torch.nan).half()
    neighborhood_attention[(-(-height // 8) * -(-width // 8), heads, 2)](
        out,
        qkv,
        bias,
        positions,
        head_dim**-0.5,
        height=height,
        width=width,
        heads=heads,
        head_dim=head_dim,
        kernel=kernel,
        tile=8,
        block_keys=32,
    )
    assert_close(out, expected)
