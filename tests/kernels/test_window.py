"""Attention in windows against `models.window_attention` in float64, whose products are given."""

from __future__ import annotations

import pytest
import torch

from kernels.window import window_attention
from models.window_attention import WindowAttention
from tests.kernels.bounds import assert_close, halves
from tests.kernels.given import Given, tokens_in_order


@pytest.mark.parametrize(
    ("height", "width", "window", "heads", "head_dim", "block_keys"),
    [
        (14, 14, 7, 3, 32, 64),
        (7, 7, 7, 6, 32, 64),
        (28, 14, 7, 2, 32, 64),
        (12, 24, 12, 2, 32, 32),
        (24, 24, 12, 1, 32, 32),
        (15, 8, 12, 1, 16, 64),
        (9, 16, 7, 2, 16, 64),
        (9, 16, 7, 2, 16, 16),
    ],
)
@pytest.mark.parametrize("shifted", [False, True])
def test_attention_equals_the_models(
    generator: torch.Generator,
    height: int,
    width: int,
    window: int,
    heads: int,
    head_dim: int,
    block_keys: int,
    shifted: bool,
) -> None:
    dim, tokens = heads * head_dim, window**2
    layer = WindowAttention(dim, heads, window=window, map_size=(height, width), shifted=shifted).double()
    table = halves(generator, *layer.relative_position_bias_table.shape)
    layer.relative_position_bias_table.data = table.double()
    qkv, bias = halves(generator, 2, height, width, 3 * dim), halves(generator, 3 * dim)
    layer.proj_qkv = Given(qkv.double().flatten(0, 2), bias.double())
    layer.proj_out = torch.nn.Identity()
    with torch.inference_mode():
        expected = layer(tokens_in_order(2, height, width, dim))
    positions = table[layer.relative_index].reshape(tokens, tokens, heads).permute(2, 0, 1).contiguous()
    out = torch.full((2, height, width, dim), torch.nan).half()
    windows = -(-height // window) * -(-width // window)
    window_attention[(2 * windows, -(-tokens // 64), heads)](
        out,
        qkv,
        bias,
        positions,
        head_dim**-0.5,
        height=height,
        width=width,
        heads=heads,
        head_dim=head_dim,
        window=window,
        shift=layer.shift,
        block_queries=64,
        block_keys=block_keys,
    )
    assert_close(out, expected)
