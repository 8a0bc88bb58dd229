"""Each operator's reference beside what it stands for: torch's functions, and the modules of `models/`, in float64.

Inputs are float16 in both, so that what differs is rounding: of the output, half a unit in its last place, and in
float32 between. Values reach about 4, where that is 2e-3.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from models.config import StageConfig
from models.deformable_attention import DeformableAttention, query_coordinates
from models.layers import ResidualDepthwiseConv, patch_embedding
from models.neighborhood_attention import NeighborhoodAttention
from models.sampling import GRID
from models.window_attention import WindowAttention
from tests.operators.conftest import Run, half

BOUND = 2e-3


def double(value: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(value.astype(np.float64))


def assert_close(given: NDArray[np.float16], expected: torch.Tensor) -> None:
    assert given.shape == tuple(expected.shape)
    assert abs(given.astype(np.float64) - expected.numpy()).max() < BOUND


@pytest.mark.parametrize("shape", [(5, 96), (2, 3, 7, 37), (1, 1), (3, 1000)])
def test_the_sum_and_its_norm(run: Run, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    residual, x = half(generator, *shape), half(generator, *shape)
    bias, gain, shift = (half(generator, shape[-1], scale=0.5) for _ in range(3))
    inputs = {"residual": residual, "x": x, "bias": bias, "gain": gain, "shift": shift}
    total, normed = run("ResidualLayerNorm", inputs, 2, epsilon=1e-5)
    expected = double(residual) + double(x) + double(bias)
    assert_close(total, expected)
    norm = F.layer_norm(expected, shape[-1:], double(gain), double(shift), 1e-5)
    assert abs(normed.astype(np.float64) - norm.numpy()).max() < BOUND


def test_a_norm_far_from_zero_loses_nothing(run: Run) -> None:
    """Of 1000 and a little a variance by squares would be noise."""
    x = (1000 + np.arange(64) % 4).astype(np.float16)[None]
    none, one = np.zeros(64, np.float16), np.ones(64, np.float16)
    inputs = {"residual": np.zeros_like(x), "x": x, "bias": none, "gain": one, "shift": none}
    assert_close(run("ResidualLayerNorm", inputs, 2, epsilon=1e-5)[1], F.layer_norm(double(x), (64,), eps=1e-5))


def test_gelu_of_a_sum(run: Run) -> None:
    generator = np.random.default_rng(1)
    x, bias = half(generator, 3, 5, 33, scale=2), half(generator, 33)
    assert_close(run("BiasGelu", {"x": x, "bias": bias})[0], F.gelu(double(x) + double(bias)))


@pytest.mark.parametrize("size", [(14, 14), (7, 7), (10, 9), (3, 17)])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("window", [7, 4])
def test_window_attention_is_that_of_the_model(run: Run, size: tuple[int, int], shifted: bool, window: int) -> None:
    generator = np.random.default_rng(2)
    dim, heads = 12, 3
    module = WindowAttention(dim, heads, window=window, map_size=size, shifted=shifted).double().eval()
    with torch.no_grad():
        module.relative_position_bias_table.copy_(double(half(generator, (2 * window - 1) ** 2, heads)))
        module.proj_qkv.weight.copy_(torch.cat([torch.eye(dim)] * 3))
        module.proj_qkv.bias.copy_(double(half(generator, 3 * dim, scale=0.5)))
        module.proj_out.weight.copy_(torch.eye(dim))
        module.proj_out.bias.zero_()
        x = half(generator, 2, *size, dim, scale=0.7)
        expected = module(double(x))
        tokens = window**2
        table = module.relative_position_bias_table[module.relative_index].reshape(tokens, tokens, heads)
    inputs = {
        "qkv": np.concatenate([x] * 3, -1),  # as the module's product has it, exactly
        "bias": module.proj_qkv.bias.detach().numpy().astype(np.float16),
        "position_bias": table.permute(2, 0, 1).numpy().astype(np.float16),
    }
    assert_close(run("WindowAttention", inputs, heads=heads, window=window, shift=module.shift)[0], expected)


@pytest.mark.parametrize(
    ("size", "kernel"), [((14, 14), 7), ((7, 7), 7), ((5, 9), 7), ((3, 4), 7), ((9, 11), 5), ((1, 1), 3), ((18, 17), 3)]
)
def test_neighborhood_attention_is_that_of_the_model(run: Run, size: tuple[int, int], kernel: int) -> None:
    generator = np.random.default_rng(5)
    dim, heads = 12, 3
    module = NeighborhoodAttention(dim, heads, kernel=kernel, map_size=size).double().eval()
    with torch.no_grad():
        module.rpb.copy_(double(half(generator, *module.rpb.shape)))
        module.qkv.weight.copy_(torch.cat([torch.eye(dim)] * 3))
        module.qkv.bias.copy_(double(half(generator, 3 * dim, scale=0.5)))
        module.proj.weight.copy_(torch.eye(dim))
        module.proj.bias.zero_()
        x = half(generator, 2, *size, dim, scale=0.7)
        expected = module(double(x))
    inputs = {
        "qkv": np.concatenate([x] * 3, -1),  # as the module's product has it, exactly
        "bias": module.qkv.bias.detach().numpy().astype(np.float16),
        "position_bias": module.rpb.detach().numpy().astype(np.float16),
    }
    assert_close(run("NeighborhoodAttention", inputs, heads=heads, kernel=kernel)[0], expected)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("activated", [False, True])
def test_a_depthwise_convolution_of_a_sum(run: Run, skip: bool, activated: bool) -> None:
    generator = np.random.default_rng(6)
    layer = ResidualDepthwiseConv(12).double()
    layer.has_skip = skip
    x, added, bias = half(generator, 2, 7, 5, 12), half(generator, 12, scale=0.5), half(generator, 12, scale=0.5)
    weight = half(generator, 3, 3, 12, scale=0.3)
    with torch.no_grad():
        layer.weight.copy_(double(weight).permute(2, 0, 1)[:, None])
        layer.bias.copy_(double(bias))
        expected = layer(double(x) + double(added))
    inputs = {"x": x, "added": added, "weight": weight, "bias": bias}
    given = run("DepthwiseConvolution", inputs, stride=1, padding=1, skip=int(skip), gelu=int(activated))[0]
    assert_close(given, F.gelu(expected) if activated else expected)


@pytest.mark.parametrize("size", [(7, 5), (1, 2), (14, 14)])
def test_a_sum_that_is_convolved_and_its_norm(run: Run, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(10)
    unit = ResidualDepthwiseConv(24).double()
    residual, x = half(generator, 2, *size, 24, scale=0.6), half(generator, 2, *size, 24, scale=0.6)
    added, bias, gain, shift = (half(generator, 24, scale=0.5) for _ in range(4))
    weight = half(generator, 3, 3, 24, scale=0.2)
    with torch.no_grad():
        unit.weight.copy_(double(weight).permute(2, 0, 1)[:, None])
        unit.bias.copy_(double(bias))
        expected = unit(double(residual) + double(x) + double(added))
    inputs = {
        "residual": residual,
        "x": x,
        "added": added,
        "weight": weight,
        "bias": bias,
        "gain": gain,
        "shift": shift,
    }
    total, normed = run("PerceptionNorm", inputs, 2, epsilon=1e-5)
    assert_close(total, expected)
    assert_close(normed, F.layer_norm(expected, (24,), double(gain), double(shift), 1e-5))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "groups"),
    [((16, 24), 9, 8, 4, 1), ((9, 13), 5, 2, 2, 2), ((7, 7), 3, 1, 1, 4), ((8, 8), 4, 4, 0, 2), ((3, 3), 1, 2, 0, 1)],
)
def test_groups_of_channels_are_convolved_with_the_same_weights(
    run: Run, size: tuple[int, int], kernel: int, stride: int, padding: int, groups: int
) -> None:
    generator = np.random.default_rng(7)
    channels = 8 // groups
    x = half(generator, 2, *size, 8)
    weight, bias = half(generator, kernel, kernel, channels, scale=0.7 / kernel), half(generator, channels)
    grouped = double(x).reshape(2, *size, groups, channels).permute(0, 3, 4, 1, 2).flatten(0, 1)
    kernels = double(weight).permute(2, 0, 1)[:, None]
    expected = F.conv2d(grouped, kernels, double(bias), stride, padding, groups=channels)
    expected = expected.unflatten(0, (2, groups)).permute(0, 3, 4, 1, 2).flatten(3)
    inputs = {"x": x, "added": np.zeros(8, np.float16), "weight": weight, "bias": bias}
    given = run("DepthwiseConvolution", inputs, stride=stride, padding=padding, skip=0, gelu=0)[0]
    assert_close(given, expected)


@pytest.mark.parametrize(
    ("size", "convolutional"), [((16, 24), True), ((9, 7), True), ((12, 8), False), ((4, 4), False)]
)
def test_patches_are_embedded_as_in_the_model(run: Run, size: tuple[int, int], convolutional: bool) -> None:
    """Mean 120 to 130 and standard deviation about 60 are in the weights, and in what lies beyond the image."""
    generator = np.random.default_rng(9)
    stem = patch_embedding(40, 4, convolutional=convolutional).double()
    conv, norm = stem[0], stem[1].norm
    channels, _, kernel, _ = conv.weight.shape
    beyond, deviation = np.array([-4.5, 0.0, 2.25], np.float16), np.array([58.4, 57.1, 57.4])
    weight = half(generator, kernel, kernel, 3, channels, scale=0.3 / 60)
    bias, gain, shift = (half(generator, channels, scale=0.5) for _ in range(3))
    with torch.no_grad():
        conv.weight.copy_(double(weight).permute(3, 2, 0, 1) * torch.from_numpy(deviation)[:, None, None])
        # a weight is for pixel - 128, and the model's for the pixel less its mean
        conv.bias.copy_(double(bias) + torch.einsum("yxio,i->o", double(weight), double(beyond)))
        norm.weight.copy_(double(gain))
        norm.bias.copy_(double(shift))
        image = generator.integers(0, 256, (2, *size, 3), dtype=np.uint8)
        normalised = (image.astype(np.float64) - 128 - beyond.astype(np.float64)) / deviation
        expected = stem[: 3 if convolutional else 2](torch.from_numpy(normalised))
    inputs = {"image": image, "beyond": beyond, "weight": weight, "bias": bias, "gain": gain, "shift": shift}
    given = run(
        "PatchEmbedding",
        inputs,
        stride=conv.stride[0],
        padding=conv.padding[0],
        gelu=int(convolutional),
        epsilon=norm.eps,
    )[0]
    assert_close(given, expected)


@pytest.mark.parametrize("groups", [1, 3])
def test_features_are_sampled_as_the_model_samples(run: Run, groups: int) -> None:
    generator = np.random.default_rng(3)
    x = half(generator, 2, 9, 6, 12)
    positions = generator.uniform(-1.4, 1.4, (2, groups, 5, 1, 2)).astype(np.float32)
    positions[0, 0, 0] = [-1, 1]  # a corner
    expected = GRID.features(double(x), double(positions))
    assert_close(run("SampleFeatures", {"x": x, "positions": positions[:, :, :, 0]})[0], expected)


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize(("heads", "groups", "keys"), [(4, 2, 49), (3, 3, 1), (6, 1, 10)])
def test_deformable_attention_has_the_position_bias_of_the_model(
    run: Run, generation: int, heads: int, groups: int, keys: int
) -> None:
    generator = np.random.default_rng(4)
    height, width, size = 5, 8, 8
    query, key, value = (half(generator, 2, *shape, heads * size) for shape in ((height, width), (keys,), (keys,)))
    positions = generator.uniform(-1.2, 1.2, (2, groups, keys, 1, 2)).astype(np.float32)
    table = half(generator, heads, 2 * height - 1, 2 * width - 1)
    rows, columns = (query_coordinates(length, generation).double() for length in (height, width))
    bias = GRID.bias(double(table).reshape(groups, -1, *table.shape[1:]), rows, columns, double(positions))
    q, k, v = (double(each).reshape(2, -1, heads, size).transpose(1, 2) for each in (query, key, value))
    weights = (q @ k.transpose(-1, -2) * size**-0.5 + bias).softmax(-1)
    expected = (weights @ v).transpose(1, 2).reshape(2, height, width, heads * size)
    inputs = {"query": query, "key": key, "value": value, "positions": positions[:, :, :, 0], "table": table}
    assert_close(run("DeformableAttention", inputs, heads=heads, generation=generation)[0], expected)


def test_deformable_attention_without_a_table_has_no_position_bias(run: Run) -> None:
    generator = np.random.default_rng(8)
    query, key, value = (half(generator, 2, *shape, 12) for shape in ((3, 4), (5,), (5,)))
    inputs = {
        "query": query,
        "key": key,
        "value": value,
        "positions": np.full((2, 1, 5, 2), np.nan, np.float32),
        "table": np.zeros((3, 0, 0), np.float16),
    }
    q, k, v = (double(each).reshape(2, -1, 3, 4).transpose(1, 2) for each in (query, key, value))
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 3, 4, 12)
    assert_close(run("DeformableAttention", inputs, heads=3, generation=2)[0], expected)


@pytest.mark.parametrize(
    ("generation", "factor", "bound"), [(1, 2, 1), (1, 0, 0), (1, -1, 2), (2, 2, 1), (2, 0, 1), (2, -1, 2)]
)
@pytest.mark.parametrize(("size", "kernel", "stride"), [((8, 11), 5, 2), ((6, 4), 3, 1)])
def test_positions_are_those_of_the_model(
    run: Run, generation: int, factor: float, bound: int, size: tuple[int, int], kernel: int, stride: int
) -> None:
    generator = np.random.default_rng(11)
    stage = StageConfig(
        dim=12, layers=("D",), heads=3, groups=3, stride=stride, offset_kernel=kernel, offset_range_factor=factor
    )
    module = DeformableAttention(stage, generation=generation, map_size=size, table_size=size).double()
    module.proj_q = torch.nn.Identity()
    conv, norm, _, projection = module.conv_offset
    weight = half(generator, kernel, kernel, 4, scale=0.3)
    bias, gain, shift = (half(generator, 4) for _ in range(3))
    columns, query = half(generator, 2, 4, scale=0.3), half(generator, 2, *size, 12)
    with torch.no_grad():
        conv.weight.copy_(double(weight).permute(2, 0, 1)[:, None])
        conv.bias.copy_(double(bias))
        norm.norm.weight.copy_(double(gain))
        norm.norm.bias.copy_(double(shift))
        projection.weight.copy_(double(columns)[:, :, None, None])
        expected = module(double(query))[1].position.flatten(2, 3)
    inputs = {"query": query, "weight": weight, "bias": bias, "gain": gain, "shift": shift, "projection": columns}
    inputs["scale"] = (module.kept_cell * factor).numpy().astype(np.float32)
    attributes = {"stride": stride, "padding": conv.padding[0], "generation": generation, "bound": bound}
    given = run("SamplingPositions", inputs, gives=1, epsilon=norm.norm.eps, **attributes)[0]
    assert given.dtype == np.float32
    assert given.shape == tuple(expected.shape)
    assert abs(given - expected.numpy()).max() < 1e-5
