"""A small node of each operator, and the constants of the kernel that it wants.

There are two images, and of nothing else that an axis of a grid counts: axes that change places are to be seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernels.table import Specialization
from tests.operators.conftest import Arrays, half
from tests.operators.fake_cuda.machine import KERNELS

GENERATOR = np.random.default_rng(11)
WARPS = 2


@dataclass(frozen=True)
class Case:
    operator: str
    kernel: str
    inputs: Arrays
    constants: dict[str, int]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    graph: dict[str, Any] = field(default_factory=dict)
    """What the graph of the node is built with besides."""

    @property
    def specialization(self) -> Specialization:
        kernel = KERNELS[self.kernel]
        names = [name for name in kernel.function.arg_names if name not in kernel.parameters]
        return Specialization(kernel, {name: self.constants[name] for name in names}, WARPS)


def positions(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Around the map and beyond it."""
    return GENERATOR.uniform(-1.3, 1.3, (*shape, 2)).astype(np.float32)


def norm(*shape: int) -> Case:
    channels = shape[-1]
    residual, x = half(GENERATOR, *shape), half(GENERATOR, *shape)
    vectors = {name: half(GENERATOR, channels) for name in ("bias", "gain", "shift")}
    constants = {"channels": channels, "block_rows": 4, "block_channels": 1 << (channels - 1).bit_length()}
    inputs = {"residual": residual, "x": x, **vectors}
    return Case("ResidualLayerNorm", "residual_layer_norm", inputs, constants, {"epsilon": 0.25}, 2)


def gelu(*shape: int) -> Case:
    inputs = {"x": half(GENERATOR, *shape, scale=2), "bias": half(GENERATOR, shape[-1])}
    return Case("BiasGelu", "bias_gelu", inputs, {"channels": shape[-1], "block": 64})


def window(height: int, width: int, shift: int) -> Case:
    heads, head_dim, side = 2, 16, 4
    attributes = {"heads": heads, "window": side, "shift": shift}
    constants = {"height": height, "width": width, "head_dim": head_dim, "block_queries": 16, "block_keys": 16}
    inputs = {
        "qkv": half(GENERATOR, 2, height, width, 3 * heads * head_dim),
        "bias": half(GENERATOR, 3 * heads * head_dim),
        "position_bias": half(GENERATOR, heads, side**2, side**2),
    }
    return Case("WindowAttention", "window_attention", inputs, attributes | constants, attributes)


def sampling(height: int, width: int, groups: int, keys: int) -> Case:
    inputs = {"x": half(GENERATOR, 2, height, width, groups * 12), "positions": positions(2, groups, keys)}
    constants = {"height": height, "width": width, "groups": groups, "channels": 12}
    return Case("SampleFeatures", "feature_sampling", inputs, constants | {"block_keys": 4, "block_channels": 16})


def deformable(height: int, width: int, generation: int, keys: int, table: tuple[int, int]) -> Case:
    heads, groups, head_dim = 4, 2, 16
    rows, columns = table
    inputs = {
        "query": half(GENERATOR, 2, height, width, heads * head_dim),
        "key": half(GENERATOR, 2, keys, heads * head_dim),
        "value": half(GENERATOR, 2, keys, heads * head_dim),
        "positions": positions(2, groups, keys),
        "table": half(GENERATOR, heads, rows, columns),
    }
    constants = {
        "height": height, "width": width, "keys": keys, "heads": heads, "groups": groups, "head_dim": head_dim,
        "generation": generation, "table_height": rows, "table_width": columns,
        "block_queries": 16, "block_keys": 16,
    }  # fmt: skip
    attributes = {"heads": heads, "generation": generation}
    return Case("DeformableAttention", "deformable_attention", inputs, constants, attributes)


def neighborhood(height: int, width: int, kernel: int) -> Case:
    heads, head_dim = 3, 16
    attributes = {"heads": heads, "kernel": kernel}
    constants = {"height": height, "width": width, "head_dim": head_dim, "tile": 4, "block_keys": 16}
    inputs = {
        "qkv": half(GENERATOR, 2, height, width, 3 * heads * head_dim),
        "bias": half(GENERATOR, 3 * heads * head_dim),
        "position_bias": half(GENERATOR, heads, 2 * kernel - 1, 2 * kernel - 1),
    }
    return Case("NeighborhoodAttention", "neighborhood_attention", inputs, attributes | constants, attributes)


def depthwise(height: int, width: int, channels: int, weights: int, stride: int, padding: int, *, skip: bool) -> Case:
    inputs = {
        "x": half(GENERATOR, 2, height, width, channels),
        "added": half(GENERATOR, channels),
        "weight": half(GENERATOR, 3, 3, weights, scale=0.3),
        "bias": half(GENERATOR, weights),
    }
    attributes = {"stride": stride, "padding": padding, "gelu": int(skip), "skip": int(skip)}
    constants = {
        "height": height, "width": width, "channels": channels, "weight_channels": weights, "kernel": 3,
        "stride": stride, "padding": padding, "has_skip": int(skip), "has_gelu": int(skip),
        "tile_height": 2, "tile_width": 4, "block_cells": 8, "block_channels": 4,
    }  # fmt: skip
    return Case("DepthwiseConvolution", "depthwise_convolution", inputs, constants, attributes)


def embedding(height: int, width: int, kernel: int, stride: int, padding: int, *, gelu: bool) -> Case:
    colours, channels = 3, 12
    inputs = {
        "image": GENERATOR.integers(0, 256, (2, height, width, colours), np.uint8),
        "beyond": half(GENERATOR, colours, scale=50),
        "weight": half(GENERATOR, kernel, kernel, colours, channels, scale=0.01),
        **{name: half(GENERATOR, channels) for name in ("bias", "gain", "shift")},
    }
    attributes = {"stride": stride, "padding": padding, "gelu": int(gelu)}
    constants = {
        "height": height, "width": width, "colours": colours, "channels": channels, "kernel": kernel, "stride": stride,
        "padding": padding, "has_gelu": int(gelu), "block_cells": 16, "block_taps": 64, "block_channels": 16,
    }  # fmt: skip
    return Case("PatchEmbedding", "patch_embedding", inputs, constants, attributes | {"epsilon": 0.25})


def perception(height: int, width: int, channels: int) -> Case:
    inputs = {
        "residual": half(GENERATOR, 2, height, width, channels),
        "x": half(GENERATOR, 2, height, width, channels),
        "added": half(GENERATOR, channels),
        "weight": half(GENERATOR, 3, 3, channels, scale=0.3),
        **{name: half(GENERATOR, channels) for name in ("bias", "gain", "shift")},
    }
    constants = {
        "height": height, "width": width, "channels": channels, "kernel": 3, "tile_height": 2, "tile_width": 4,
        "block_cells": 8, "block_channels": 1 << (channels - 1).bit_length(),
    }  # fmt: skip
    return Case("PerceptionNorm", "perception_norm", inputs, constants, {"epsilon": 0.25}, 2)


def offsets(height: int, width: int, kernel: int, stride: int, generation: int, bound: int) -> Case:
    groups, channels = 3, 12
    inputs = {
        "query": half(GENERATOR, 2, height, width, groups * channels),
        "weight": half(GENERATOR, kernel, kernel, channels, scale=0.3),
        **{name: half(GENERATOR, channels) for name in ("bias", "gain", "shift")},
        "projection": half(GENERATOR, 2, channels, scale=0.3),
        "scale": np.array([0.3, 0.7], np.float32),
    }
    attributes = {"stride": stride, "padding": kernel // 2, "generation": generation, "bound": bound}
    constants = {
        "height": height, "width": width, "groups": groups, "channels": channels, "kernel": kernel,
        "block_keys": 4, "block_channels": 16,
    }  # fmt: skip
    given = attributes | {"epsilon": 0.25}
    float32 = {"gives": 1}
    return Case("SamplingPositions", "sampling_positions", inputs, attributes | constants, given, graph=float32)


CASES = {
    "norm": norm(2, 5, 12),
    "norm of rows": norm(3, 12),
    "norm of other channels": norm(1, 3, 2, 33),
    "gelu": gelu(2, 3, 33),
    "window": window(8, 4, 0),
    "shifted window": window(6, 9, 2),
    "sampling": sampling(6, 9, 3, 5),
    "sampling of one pixel": sampling(1, 1, 1, 1),
    "deformable, first generation": deformable(3, 6, 1, 10, (5, 11)),
    "deformable, second generation": deformable(5, 4, 2, 17, (5, 9)),
    "deformable without a position bias": deformable(3, 4, 2, 9, (0, 0)),
    "neighborhood": neighborhood(5, 6, 3),
    "depthwise": depthwise(5, 6, 12, 12, 1, 1, skip=True),
    "depthwise with a stride": depthwise(7, 9, 12, 4, 2, 0, skip=False),
    "embedding": embedding(8, 12, 4, 4, 0, gelu=False),
    "embedding with a border": embedding(7, 9, 3, 2, 1, gelu=True),
    "perception": perception(5, 6, 12),
    "positions, first generation": offsets(6, 9, 3, 2, 1, 1),
    "positions, second generation": offsets(6, 5, 3, 1, 2, 2),
}


def specializations() -> list[Specialization]:
    """Return the kernels of all cases, each once."""
    return list({case.specialization.name: case.specialization for case in CASES.values()}.values())
