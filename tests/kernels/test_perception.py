"""Sum, perception unit and norm against `models.layers` in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kernels.perception import perception_norm
from models.layers import ResidualDepthwiseConv
from tests.kernels.bounds import assert_close, halves


@pytest.mark.parametrize(
    ("height", "width", "channels", "tile", "block_cells"),
    [
        (14, 14, 64, (4, 7), 32),
        (7, 7, 96, (2, 7), 16),
        (3, 7, 512, (1, 7), 8),
        (5, 6, 192, (2, 8), 16),
        (1, 3, 32, (4, 8), 32),
        (2, 3, 1024, (1, 2), 2),
    ],
)
def test_a_sum_is_convolved_and_normed(
    generator: torch.Generator, height: int, width: int, channels: int, tile: tuple[int, int], block_cells: int
) -> None:
    residual, x = (halves(generator, 2, height, width, channels) for _ in range(2))
    added, bias, gain, shift = (halves(generator, channels) for _ in range(4))
    weight = halves(generator, 3, 3, channels) / 3
    unit = ResidualDepthwiseConv(channels).double()
    unit.weight.data, unit.bias.data = weight.double().permute(2, 0, 1)[:, None], bias.double()
    with torch.inference_mode():
        expected = unit(residual.double() + x.double() + added.double())
    total, normed = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    perception_norm[(-(-height // tile[0]) * -(-width // tile[1]), 2)](
        total,
        normed,
        residual,
        x,
        added,
        weight,
        bias,
        gain,
        shift,
        1e-5,
        height=height,
        width=width,
        channels=channels,
        kernel=3,
        tile_height=tile[0],
        tile_width=tile[1],
        block_cells=block_cells,
        block_channels=1 << (channels - 1).bit_length(),
    )
    assert_close(total, expected)
    assert_close(normed, F.layer_norm(expected, (channels,), gain.double(), shift.double(), 1e-5))
