"""The residual sum with its LayerNorm, and bias with GELU, against torch in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kernels.activation import bias_gelu
from kernels.norm import residual_layer_norm
from tests.kernels.bounds import assert_close, halves


@pytest.mark.parametrize(("rows", "channels"), [(1, 96), (50, 96), (13, 192), (7, 384), (3, 768), (5, 1024), (9, 33)])
def test_norm_of_a_sum(generator: torch.Generator, rows: int, channels: int) -> None:
    residual, x = halves(generator, rows, channels), halves(generator, rows, channels)
    bias, gain, shift = (halves(generator, channels) for _ in range(3))
    total, normed = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    block = 1 << (channels - 1).bit_length()
    residual_layer_norm[(-(-rows // 4),)](
        total, normed, residual, x, bias, gain, shift, rows, 1e-5, channels=channels, block_rows=4, block_channels=block
    )
    expected = residual.double() + x.double() + bias.double()
    assert_close(total, expected)
    assert_close(normed, F.layer_norm(expected, (channels,), gain.double(), shift.double(), 1e-5))


def test_variance_survives_a_large_mean(generator: torch.Generator) -> None:
    residual = halves(generator, 6, 96) + 100
    x, bias = torch.zeros_like(residual), torch.zeros(96).half()
    gain, shift = torch.ones(96).half(), torch.zeros(96).half()
    total, normed = torch.empty_like(x), torch.empty_like(x)
    residual_layer_norm[(2,)](
        total, normed, residual, x, bias, gain, shift, 6, 1e-5, channels=96, block_rows=4, block_channels=128
    )
    assert_close(normed, F.layer_norm(residual.double(), (96,), eps=1e-5))


@pytest.mark.parametrize(("rows", "channels"), [(1, 384), (11, 1536), (5, 33)])
def test_bias_and_gelu(generator: torch.Generator, rows: int, channels: int) -> None:
    x, bias = halves(generator, rows, channels) * 2, halves(generator, channels)
    out = torch.full_like(x, torch.nan)
    bias_gelu[(-(-x.numel() // 1024),)](out, x, bias, x.numel(), channels=channels, block=1024)
    assert_close(out, F.gelu(x.double() + bias.double()))
