"""Each attention layer, with every switch, against its definition written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.config import StageConfig
from models.deformable_attention import DeformableAttention
from models.neighborhood_attention import NeighborhoodAttention, axis_tiles
from models.window_attention import WindowAttention
from tests.golden_files import synthetic_weights
from tests.models import naive

DIM, HEADS = 12, 4
TOLERANCE = 2e-5


def with_weights(layer: nn.Module) -> nn.Module:
    layer.load_state_dict(synthetic_weights({name: value.shape for name, value in layer.state_dict().items()}, seed=3))
    return layer.eval()


def exact_weights(layer: nn.Module) -> naive.Weights:
    return {name: value.double() for name, value in layer.state_dict().items()}


def maps(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, height, width, DIM, generator=torch.Generator().manual_seed(height * 100 + width))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("height", "width", "window"), [(6, 9, 3), (4, 4, 4), (8, 4, 2), (5, 7, 3), (7, 7, 4)])
def test_window_attention_follows_its_definition(height: int, width: int, window: int, shifted: bool) -> None:
    layer = with_weights(WindowAttention(DIM, HEADS, window=window, map_size=(height, width), shifted=shifted))
    x = maps(height, width)
    with torch.inference_mode():
        actual = layer(x)
    for image, out in zip(x, actual, strict=True):
        expected = naive.window_attention(
            image.double(), exact_weights(layer), heads=HEADS, window=window, shifted=shifted
        )
        torch.testing.assert_close(out.double(), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "kernel"), [(7, 7, 7), (9, 12, 3), (17, 18, 3), (20, 5, 5), (3, 10, 7), (2, 2, 5), (19, 24, 7)]
)
def test_neighborhood_attention_follows_its_definition(height: int, width: int, kernel: int) -> None:
    layer = with_weights(NeighborhoodAttention(DIM, HEADS, kernel=kernel, map_size=(height, width)))
    x = maps(height, width)[:1]
    with torch.inference_mode():
        actual = layer(x)
    expected = naive.neighborhood_attention(x[0].double(), exact_weights(layer), heads=HEADS, kernel=kernel)
    torch.testing.assert_close(actual[0].double(), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 13), (17, 24)])
def test_neighborhood_attention_without_a_fixed_size_agrees_with_the_fixed_one(height: int, width: int) -> None:
    fixed = with_weights(NeighborhoodAttention(DIM, HEADS, kernel=7, map_size=(height, width)))
    free = with_weights(NeighborhoodAttention(DIM, HEADS, kernel=7, map_size=None))
    with torch.inference_mode():
        torch.testing.assert_close(free(maps(height, width)), fixed(maps(height, width)), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("fixed", [True, False])
def test_finite_bias_hides_keys_as_infinity_does(fixed: bool) -> None:
    height, width = 17, 18
    layer = with_weights(NeighborhoodAttention(DIM, HEADS, kernel=3, map_size=(height, width) if fixed else None))
    with torch.inference_mode():
        expected = layer(maps(height, width))
        layer.hide_by(-50.0)
        torch.testing.assert_close(layer(maps(height, width)), expected, atol=1e-6, rtol=0)
        bias = layer.bias(*layer.tiles(height, width))
    position_bias = layer.rpb.abs().max()
    assert bias.min() >= -50 - position_bias  # keys outside along both axes as well
    assert (bias <= -50 + position_bias).any()


@settings(deadline=None)
@given(length=st.integers(3, 60), kernel=st.sampled_from([3, 5, 7, 9]), tile=st.integers(1, 60))
def test_every_query_sees_exactly_its_window_once(length: int, kernel: int, tile: int) -> None:
    length = max(length, kernel)
    tiles = axis_tiles(length, kernel, min(tile, length))
    keys = tiles.key_index.reshape(tiles.tiles, tiles.keys)
    for query in range(length):
        at_tile, place = divmod(query, tiles.queries)
        seen = sorted(keys[at_tile][tiles.mask[at_tile, place] == 0].tolist())
        start = min(max(query - kernel // 2, 0), length - kernel)
        assert seen == list(range(start, start + kernel))


BASE = StageConfig(dim=DIM, heads=HEADS, layers=("D",), groups=2, stride=1, offset_kernel=3, use_pe=True)
CASES = {
    "table": BASE,
    "without bias": replace(BASE, use_pe=False),
    "strided": replace(BASE, stride=2, offset_kernel=5),
    "kernel as wide as the stride": replace(BASE, stride=2, offset_kernel=2),
    "range factor": replace(BASE, offset_range_factor=2),
    "zero range factor": replace(BASE, offset_range_factor=0),
    "no offsets": replace(BASE, no_offsets=True),
    "no offsets, strided": replace(BASE, no_offsets=True, stride=2, offset_range_factor=1),
    "no offsets, depthwise": replace(BASE, no_offsets=True, dwc_pe=True),
    "depthwise": replace(BASE, dwc_pe=True),
    "fixed": replace(BASE, fixed_pe=True, stride=2),
    "logarithmic": replace(BASE, log_cpb=True),
    "one group": replace(BASE, groups=1),
    "a group a head": replace(BASE, groups=HEADS),
}


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_deformable_attention_follows_its_definition(case: str, generation: int) -> None:
    stage, (height, width) = CASES[case], (6, 8)
    layer = with_weights(
        DeformableAttention(stage, generation=generation, map_size=(height, width), table_size=(height, width))
    )
    x = maps(height, width)
    with torch.inference_mode():
        actual, sampling = layer(x, with_attention=True)
        without, told = layer(x)
    assert torch.equal(without, actual)
    assert told.attention is None
    for index, image in enumerate(x):
        expected, position, attention = naive.deformable_attention(
            image.double(), exact_weights(layer), stage, generation
        )
        torch.testing.assert_close(actual[index].double(), expected, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(sampling.position[index].double(), position, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(sampling.attention[index].double(), attention, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", ["table", "logarithmic", "depthwise", "no offsets, strided"])
def test_deformable_attention_without_a_fixed_size_agrees_with_the_fixed_one(case: str) -> None:
    fixed = with_weights(DeformableAttention(CASES[case], generation=2, map_size=(6, 8), table_size=(4, 4)))
    free = with_weights(DeformableAttention(CASES[case], generation=2, map_size=None, table_size=(4, 4)))
    with torch.inference_mode():
        torch.testing.assert_close(free(maps(6, 8))[0], fixed(maps(6, 8))[0])


def test_a_position_bias_reads_the_table_beyond_its_border_as_zero() -> None:
    """Generation 2's last reference lies beyond 1, so displacements reach outside the table."""
    stage = replace(BASE, offset_range_factor=4)
    layer = with_weights(DeformableAttention(stage, generation=2, map_size=(4, 4), table_size=(4, 4)))
    x = maps(4, 4)
    with torch.inference_mode():
        actual, sampling = layer(x)
    assert float(sampling.position.abs().max()) > 1
    expected, *_ = naive.deformable_attention(x[0].double(), exact_weights(layer), stage, 2)
    torch.testing.assert_close(actual[0].double(), expected, atol=TOLERANCE, rtol=0)
