"""The operators of the domain `dat` as torch calls that become their nodes; `operators/src/operators.h` defines them.

Such a call can be traced, and not be run by torch. Tensors are traced as float32; `export.precision.half` makes them
what the operators take: float16, but for what `SINGLE_INPUTS` and `SINGLE_OUTPUTS` say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from operators import DOMAIN, VERSION

RESIDUAL_LAYER_NORM: Final = "ResidualLayerNorm"
BIAS_GELU: Final = "BiasGelu"
WINDOW_ATTENTION: Final = "WindowAttention"
NEIGHBORHOOD_ATTENTION: Final = "NeighborhoodAttention"
SAMPLE_FEATURES: Final = "SampleFeatures"
DEFORMABLE_ATTENTION: Final = "DeformableAttention"
DEPTHWISE_CONVOLUTION: Final = "DepthwiseConvolution"
PATCH_EMBEDDING: Final = "PatchEmbedding"
PERCEPTION_NORM: Final = "PerceptionNorm"
SAMPLING_POSITIONS: Final = "SamplingPositions"

SINGLE_INPUTS: Final[Mapping[str, frozenset[int]]] = {
    SAMPLE_FEATURES: frozenset({1}),
    DEFORMABLE_ATTENTION: frozenset({3}),
    SAMPLING_POSITIONS: frozenset({6}),
}
"""The inputs that are float32, by operator: positions, and what offsets of these stand for."""
SINGLE_OUTPUTS: Final = frozenset({SAMPLING_POSITIONS})
"""The operators that give float32."""
MIDDLE_PIXEL: Final = 128
"""What the stem subtracts from every pixel."""
UNBOUND, BOUND_OFFSETS, BOUND_POSITIONS = 0, 1, 2
"""Offsets as they are; their tanh times the range; as they are, the positions being bound to the map."""


def residual_layer_norm(
    residual: Tensor, x: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, *, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return `residual + x + bias` (..., channels), and its LayerNorm."""
    total, normed = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{RESIDUAL_LAYER_NORM}",
        (residual, x, bias, gain, shift),
        {"epsilon": epsilon},
        dtypes=(residual.dtype, residual.dtype),
        shapes=(residual.shape, residual.shape),
        version=VERSION,
    )
    return total, normed


def perception_norm(
    residual: Tensor,
    x: Tensor,
    added: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    shift: Tensor,
    *,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Return h plus its depthwise convolution, h being `residual + x + added`, and the LayerNorm of that."""
    total, normed = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{PERCEPTION_NORM}",
        (residual, x, added, weight, bias, gain, shift),
        {"epsilon": epsilon},
        dtypes=(residual.dtype, residual.dtype),
        shapes=(residual.shape, residual.shape),
        version=VERSION,
    )
    return total, normed


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Return GELU(x + bias), x being (..., channels)."""
    return _call(BIAS_GELU, (x, bias), x.shape)


def window_attention(
    qkv: Tensor, bias: Tensor, position_bias: Tensor, *, heads: int, window: int, shift: int
) -> Tensor:
    """Return (batch, height, width, channels), attended in windows, of (batch, height, width, 3 channels)."""
    attributes = {"heads": heads, "window": window, "shift": shift}
    return _call(WINDOW_ATTENTION, (qkv, bias, position_bias), _third(qkv), attributes)


def neighborhood_attention(qkv: Tensor, bias: Tensor, position_bias: Tensor, *, heads: int, kernel: int) -> Tensor:
    """Return (batch, height, width, channels), attended around each cell, of (batch, height, width, 3 channels)."""
    return _call(NEIGHBORHOOD_ATTENTION, (qkv, bias, position_bias), _third(qkv), {"heads": heads, "kernel": kernel})


def sample_features(x: Tensor, position: Tensor) -> Tensor:
    """Return (batch, keys, channels) of a map (batch, height, width, channels) at (batch, groups, keys, 2)."""
    return _call(SAMPLE_FEATURES, (x, position), (x.shape[0], position.shape[2], x.shape[3]))


def deformable_attention(
    query: Tensor, key: Tensor, value: Tensor, position: Tensor, table: Tensor, *, heads: int, generation: int
) -> Tensor:
    """Return (batch, height, width, channels), attended to keys at (batch, groups, keys, 2), as `query` is."""
    attributes = {"heads": heads, "generation": generation}
    return _call(DEFORMABLE_ATTENTION, (query, key, value, position, table), query.shape, attributes)


def depthwise_convolution(
    x: Tensor,
    added: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: int = 1,
    skip: bool = False,
    gelu: bool = False,
) -> Tensor:
    """Return (batch, height', width', channels): x plus what is added, convolved with (kernel, kernel, channels)."""
    height, width = ((side + 2 * padding - weight.shape[0]) // stride + 1 for side in x.shape[1:3])
    attributes = {"stride": stride, "padding": padding, "skip": int(skip), "gelu": int(gelu)}
    shape = (x.shape[0], height, width, x.shape[3])
    return _call(DEPTHWISE_CONVOLUTION, (x, added, weight, bias), shape, attributes)


def sampling_positions(
    query: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    shift: Tensor,
    projection: Tensor,
    range_: Tensor,
    *,
    stride: int,
    padding: int,
    generation: int,
    bound: int,
    epsilon: float,
) -> Tensor:
    """Return positions (batch, groups, keys, 2) of a map of queries (batch, height, width, channels).

    `weight` is (kernel, kernel, channels of a group), `projection` (2, channels of a group), `range_` (2,) what an
    offset of 1 is; `bound` is `UNBOUND` or what follows it.
    """
    rows, columns = ((side + 2 * padding - weight.shape[0]) // stride + 1 for side in query.shape[1:3])
    attributes = {
        "stride": stride, "padding": padding, "generation": generation, "bound": bound, "epsilon": epsilon,
    }  # fmt: skip
    shape = (query.shape[0], query.shape[3] // weight.shape[2], rows * columns, 2)
    return _call(SAMPLING_POSITIONS, (query, weight, bias, gain, shift, projection, range_), shape, attributes)


def patch_embedding(
    image: Tensor,
    beyond: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    shift: Tensor,
    *,
    stride: int,
    padding: int,
    gelu: bool,
    epsilon: float,
) -> Tensor:
    """Return (batch, height', width', channels) of pixels, uint8 (batch, height, width, 3): a convolution and its norm.

    `weight` is (kernel, kernel, 3, channels); it, the bias and `beyond`, which pads, are for pixels less
    `MIDDLE_PIXEL`.
    """
    height, width = ((side + 2 * padding - weight.shape[0]) // stride + 1 for side in image.shape[1:3])
    attributes = {"stride": stride, "padding": padding, "gelu": int(gelu), "epsilon": epsilon}
    shape = (image.shape[0], height, width, weight.shape[3])
    inputs = (image, beyond, weight, bias, gain, shift)
    return _call(PATCH_EMBEDDING, inputs, shape, attributes, dtype=weight.dtype)


def _third(qkv: Tensor) -> tuple[int, ...]:
    return (*qkv.shape[:3], qkv.shape[3] // 3)


def _call(
    operator: str,
    inputs: tuple[Tensor, ...],
    shape: Sequence[int],
    attributes: Mapping[str, int | float] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{operator}",
        inputs,
        dict(attributes or {}),
        dtype=dtype or inputs[0].dtype,
        shape=shape,
        version=VERSION,
    )
