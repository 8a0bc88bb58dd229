"""Depthwise convolution against `models.layers`, and against torch where groups share weights, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.convolution import depthwise_convolution
from models.layers import ResidualDepthwiseConv
from tests.kernels.bounds import assert_close, halves


def convolve(
    x: Tensor,
    added: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
    padding: int,
    has_skip: bool,
    has_gelu: bool,
    tile: tuple[int, int],
    block_channels: int,
) -> Tensor:
    (batch, height, width, channels), kernel = x.shape, weight.shape[0]
    rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    out = torch.full((batch, rows, columns, channels), torch.nan).half()
    depthwise_convolution[(-(-rows // tile[0]) * -(-columns // tile[1]), channels // block_channels, batch)](
        out,
        x,
        added,
        weight,
        bias,
        height=height,
        width=width,
        channels=channels,
        weight_channels=weight.shape[2],
        kernel=kernel,
        stride=stride,
        padding=padding,
        has_skip=has_skip,
        has_gelu=has_gelu,
        tile_height=tile[0],
        tile_width=tile[1],
        block_cells=32,
        block_channels=block_channels,
    )
    return out


@pytest.mark.parametrize(
    ("height", "width", "channels", "tile", "block_channels", "has_skip", "has_gelu"),
    [
        (14, 14, 64, (4, 7), 64, True, False),
        (14, 14, 64, (4, 7), 64, True, True),
        (7, 7, 128, (4, 7), 64, True, True),
        (12, 24, 96, (4, 8), 32, True, False),
        (5, 9, 32, (4, 8), 32, False, False),
        (5, 9, 32, (4, 8), 32, False, True),
        (1, 3, 16, (4, 8), 16, True, True),
    ],
)
def test_a_skip_a_bias_before_and_gelu_after(
    generator: torch.Generator,
    height: int,
    width: int,
    channels: int,
    tile: tuple[int, int],
    block_channels: int,
    has_skip: bool,
    has_gelu: bool,
) -> None:
    x, added, bias = (
        halves(generator, 2, height, width, channels),
        halves(generator, channels),
        halves(generator, channels),
    )
    weight = halves(generator, 3, 3, channels) / 3
    layer = ResidualDepthwiseConv(channels).double()
    layer.has_skip = has_skip
    layer.weight.data, layer.bias.data = weight.double().permute(2, 0, 1)[:, None], bias.double()
    with torch.inference_mode():
        expected = layer(x.double() + added.double())
    out = convolve(
        x,
        added,
        weight,
        bias,
        stride=1,
        padding=1,
        has_skip=has_skip,
        has_gelu=has_gelu,
        tile=tile,
        block_channels=block_channels,
    )
    assert_close(out, F.gelu(expected) if has_gelu else expected)


@pytest.mark.parametrize(
    ("height", "width", "groups", "channels", "kernel", "stride", "padding"),
    [
        (56, 56, 1, 64, 9, 8, 4),
        (28, 28, 2, 32, 7, 4, 3),
        (14, 14, 3, 32, 5, 2, 2),
        (7, 7, 3, 16, 5, 1, 2),
        (7, 7, 4, 16, 3, 1, 1),
        (9, 13, 2, 16, 4, 4, 0),
        (5, 3, 1, 16, 2, 3, 1),
    ],
)
def test_groups_of_channels_share_weights(
    generator: torch.Generator,
    height: int,
    width: int,
    groups: int,
    channels: int,
    kernel: int,
    stride: int,
    padding: int,
) -> None:
    x = halves(generator, 2, height, width, groups * channels)
    weight, bias = halves(generator, kernel, kernel, channels) / kernel, halves(generator, channels)
    grouped = x.double().reshape(2, height, width, groups, channels).permute(0, 3, 4, 1, 2).flatten(0, 1)
    kernels = weight.double().permute(2, 0, 1)[:, None]
    expected = F.conv2d(grouped, kernels, bias.double(), stride, padding, groups=channels)
    expected = expected.unflatten(0, (2, groups)).permute(0, 3, 4, 1, 2).flatten(3)
    out = convolve(
        x,
        torch.zeros(groups * channels).half(),
        weight,
        bias,
        stride=stride,
        padding=padding,
        has_skip=False,
        has_gelu=False,
        tile=(4, 7),
        block_channels=channels,
    )
    assert_close(out, expected)
