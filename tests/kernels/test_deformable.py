"""Sampling and deformable attention against `models` in float64."""

from __future__ import annotations

import pytest
import torch

from kernels.deformable import deformable_attention
from kernels.sampling import feature_sampling
from models.deformable_attention import query_coordinates
from models.sampling import GRID
from tests.kernels.bounds import assert_close, halves


def positions(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Around the map and up to half a map beyond it, with the corners among them."""
    position = torch.rand(*shape, 2, generator=generator) * 3 - 1.5
    position[:, :, 0, 0] = torch.tensor([-1.0, 1.0])
    position[:, :, -1, -1] = torch.tensor([1.0, -1.0])
    return position


@pytest.mark.parametrize(
    ("height", "width", "groups", "channels", "key_height", "key_width"),
    [
        (56, 56, 1, 64, 7, 7),
        (28, 28, 2, 96, 7, 7),
        (14, 14, 3, 128, 7, 7),
        (14, 14, 3, 32, 14, 14),
        (7, 7, 6, 48, 7, 7),
        (5, 9, 2, 24, 3, 5),
    ],
)
def test_features_equal_the_samplers(
    generator: torch.Generator, height: int, width: int, groups: int, channels: int, key_height: int, key_width: int
) -> None:
    x = halves(generator, 2, height, width, groups * channels)
    position, keys = positions(generator, 2, groups, key_height, key_width), key_height * key_width
    out = torch.full((2, keys, groups * channels), torch.nan).half()
    feature_sampling[(-(-keys // 16), groups, 2)](
        out,
        x,
        position,
        keys,
        height=height,
        width=width,
        groups=groups,
        channels=channels,
        block_keys=16,
        block_channels=1 << (channels - 1).bit_length(),
    )
    assert_close(out, GRID.features(x.double(), position.double()))


def test_features_far_outside_are_zero(generator: torch.Generator) -> None:
    x, position = halves(generator, 1, 4, 4, 16), torch.full((1, 1, 2, 3, 2), 1e20)
    position[:, :, 0] = -1e20
    out = torch.full((1, 6, 16), torch.nan).half()
    feature_sampling[(1, 1, 1)](
        out, x, position, 6, height=4, width=4, groups=1, channels=16, block_keys=16, block_channels=16
    )
    assert not out.any()


@pytest.mark.parametrize(("generation", "table_size"), [(1, None), (2, None), (2, (3, 9)), (1, (0, 0))])
@pytest.mark.parametrize(
    ("height", "width", "heads", "groups", "head_dim", "key_height", "key_width"),
    [
        (14, 14, 2, 2, 32, 14, 14),
        (7, 7, 4, 2, 32, 7, 7),
        (28, 28, 1, 1, 32, 7, 7),
        (9, 5, 4, 2, 16, 1, 1),
        (4, 9, 1, 1, 32, 23, 26),
    ],
)
def test_attention_equals_the_models(
    generator: torch.Generator,
    height: int,
    width: int,
    heads: int,
    groups: int,
    head_dim: int,
    key_height: int,
    key_width: int,
    generation: int,
    table_size: tuple[int, int] | None,
) -> None:
    cells, keys = height * width, key_height * key_width
    query = halves(generator, 2, cells, heads, head_dim)
    key, value = (halves(generator, 2, keys, heads, head_dim) for _ in range(2))
    # that of the map; one of another size, as the second generation has for larger images; none
    table_height, table_width = table_size or (2 * height - 1, 2 * width - 1)
    table = halves(generator, heads, table_height, table_width)
    position = positions(generator, 2, groups, key_height, key_width)
    out = torch.full_like(query, torch.nan)
    deformable_attention[(-(-cells // 64), heads, 2)](
        out,
        query,
        key,
        value,
        position,
        table,
        head_dim**-0.5,
        height=height,
        width=width,
        keys=keys,
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        generation=generation,
        table_height=table_height,
        table_width=table_width,
        block_queries=64,
        block_keys=32,
    )
    scores = torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double()) * head_dim**-0.5
    if table_height:
        rows, columns = (query_coordinates(length, generation).double() for length in (height, width))
        grouped = table.double().reshape(groups, heads // groups, *table.shape[1:])
        scores += GRID.bias(grouped, rows, columns, position.double())
    assert_close(out, torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value.double()))
