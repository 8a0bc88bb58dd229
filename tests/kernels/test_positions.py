"""The offset network and its positions against `models.deformable_attention` in float64."""

from __future__ import annotations

import pytest
import torch

from kernels.positions import sampling_positions
from models.config import StageConfig
from models.deformable_attention import DeformableAttention
from tests.kernels.bounds import halves

BOUND = 1e-5
"""Positions are float32 and at most some units large; the sums before them have up to 128 terms of a norm's values."""


@pytest.mark.parametrize(
    ("generation", "factor", "bound", "height", "width", "groups", "channels", "kernel", "stride"),
    [
        (1, 2, 1, 6, 7, 3, 128, 5, 1),
        (1, 2, 1, 7, 7, 2, 96, 3, 1),
        (1, 0, 0, 6, 9, 2, 16, 3, 2),
        (1, -1, 2, 6, 9, 2, 16, 3, 2),
        (2, -1, 2, 28, 28, 1, 64, 9, 8),
        (2, -1, 2, 7, 14, 4, 64, 5, 2),
        (2, 0, 1, 6, 9, 2, 24, 3, 2),
        (2, 3, 1, 8, 12, 1, 16, 4, 4),
    ],
)
def test_positions_are_those_of_the_models(
    generator: torch.Generator,
    generation: int,
    factor: float,
    bound: int,
    height: int,
    width: int,
    groups: int,
    channels: int,
    kernel: int,
    stride: int,
) -> None:
    stage = StageConfig(
        dim=groups * channels,
        layers=("D",),
        heads=groups,
        groups=groups,
        stride=stride,
        offset_kernel=kernel,
        offset_range_factor=factor,
    )
    layer = DeformableAttention(stage, generation=generation, map_size=(height, width), table_size=(height, width))
    layer = layer.double()
    layer.proj_q = torch.nn.Identity()
    query, weight = halves(generator, 1, height, width, stage.dim), halves(generator, kernel, kernel, channels) / kernel
    bias, gain, shift = (halves(generator, channels) for _ in range(3))
    projection = (torch.randn(2, channels, generator=generator) / channels**0.5).half()
    conv, norm, _, last = layer.conv_offset
    conv.weight.data, conv.bias.data = weight.double().permute(2, 0, 1)[:, None], bias.double()
    norm.norm.weight.data, norm.norm.bias.data = gain.double(), shift.double()
    last.weight.data = projection.double()[:, :, None, None]
    with torch.inference_mode():
        expected = layer(query.double())[1].position.flatten(2, 3)
    keys = expected.shape[2]
    out = torch.full(expected.shape, torch.nan)
    sampling_positions[(-(-keys // 16), groups, 1)](
        out,
        query,
        weight,
        bias,
        gain,
        shift,
        projection,
        (layer.kept_cell * factor).float(),
        norm.norm.eps,
        height=height,
        width=width,
        groups=groups,
        channels=channels,
        kernel=kernel,
        stride=stride,
        padding=conv.padding[0],
        generation=generation,
        bound=bound,
        block_keys=16,
        block_channels=1 << (channels - 1).bit_length(),
    )
    assert (out - expected).abs().max() < BOUND
