"""Layers in the forms that GPUs have the faster code for, in standard operators: attention, windows, patches.

The operator Attention has a fused kernel on a GPU where the number of keys is a multiple of `KEY_MULTIPLE`. Its mask
may differ by head and not by window, so that windows become heads: the tokens of one place in all windows lie beside
each other, and (windows, heads) is one axis. What pads the keys is masked.

Invariant: a layer here computes what the layer it was made from does; torch can run it.
"""

from __future__ import annotations

from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.fused_attention import gathered, window_places
from models.dat import DAT
from models.deformable_attention import DeformableAttention
from models.layers import SpatialConv
from models.window_attention import WindowAttention

KEY_MULTIPLE: Final = 4
MASKED: Final = -1e4
"""What hides a key: exp of it is 0 in any precision, and float16 has it."""


class GatheredWindows(nn.Module):
    """`WindowAttention` whose cut into windows, shift and all, is one gather, and whose inverse is another."""

    order: Tensor
    inverse: Tensor

    def __init__(self, layer: WindowAttention) -> None:
        super().__init__()
        self.layer = layer
        places = window_places(layer)
        self.windows, self.tokens = places.shape
        self.register_buffer("order", places.reshape(-1))
        self.register_buffer("inverse", _inverse(self.order, layer))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same."""
        dim = x.shape[-1]
        cut = gathered(x, self.order, self.layer.padded_size).reshape(-1, self.windows, self.tokens, dim)
        attended = self.layer.attend(cut).reshape(-1, self.windows * self.tokens, dim)
        return attended.index_select(1, self.inverse).reshape(-1, *self.layer.map_size, dim)


class WindowsAsHeads(nn.Module):
    """`WindowAttention` by one Attention over all windows.

    Queries are padded as the keys are: one gather then serves both, and the gather back leaves them out.
    """

    order: Tensor
    inverse: Tensor
    mask: Tensor

    def __init__(self, layer: WindowAttention) -> None:
        super().__init__()
        self.layer = layer
        places = window_places(layer)
        self.windows, tokens = places.shape
        padding = padding_of(tokens)
        self.tokens = tokens + padding
        by_token = torch.cat([places.t(), places.t()[:1].expand(padding, -1)])
        self.projections = nn.ModuleList(_projections(layer))
        self.register_buffer("order", by_token.reshape(-1))
        self.register_buffer("inverse", _inverse(by_token[:tokens].reshape(-1), layer))
        bias = layer.bias().detach().expand(self.windows, -1, -1, -1).reshape(1, -1, tokens, tokens)
        self.register_buffer("mask", F.pad(F.pad(bias, (0, padding), value=MASKED), (0, 0, 0, padding)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same."""
        dim, heads = x.shape[-1], self.mask.shape[1]
        tokens = gathered(x, self.order, self.layer.padded_size)
        query, key, value = (
            projection(tokens).reshape(-1, self.tokens, self.windows * dim) for projection in self.projections
        )
        out = _attention(query, key, value, self.mask, heads=heads, scale=self.layer.scale)
        out = out.reshape(-1, self.tokens * self.windows, dim).index_select(1, self.inverse)
        return self.layer.proj_out(out.reshape(-1, *self.layer.map_size, dim))  # type: ignore[no-any-return]


class PatchProduct(SpatialConv):
    """A convolution whose kernel is its stride as one matrix product over whole patches."""

    def __init__(self, layer: SpatialConv) -> None:
        height, width = cast(tuple[int, int], layer.kernel_size)
        bias = layer.bias is not None
        super().__init__(layer.in_channels, layer.out_channels, (height, width), (height, width), bias=bias)
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, in) to (batch, height', width', out), rows and columns of no whole patch unseen."""
        height, width = cast(tuple[int, int], self.kernel_size)
        rows, columns, channels = x.shape[1] // height, x.shape[2] // width, x.shape[3]
        whole = (rows * height, columns * width)
        if not isinstance(rows + columns, int) or whole != x.shape[1:3]:  # open sizes are not to be compared in a trace
            x = x[:, : whole[0], : whole[1]]
        patches = x.reshape(-1, rows, height, columns, width, channels).permute(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(-1, rows, columns, height * width * channels)
        return F.linear(patches, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)


def attend_by_operator(model: DAT) -> None:
    """Have window attention and deformable attention with a known number of keys use the operator, in place."""
    _replace(model, WindowAttention, WindowsAsHeads)
    for layer in model.modules():
        if isinstance(layer, DeformableAttention) and layer.map_size is not None:
            layer.attend_with = _attend_sampled


def gather_windows(model: DAT) -> None:
    """Have window attention cut by gathers, in place."""
    _replace(model, WindowAttention, GatheredWindows)


def multiply_patches(model: nn.Module) -> None:
    """Replace convolutions of whole patches by products, in place."""
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, SpatialConv) and _takes_whole_patches(layer):
                setattr(module, name, PatchProduct(layer))


def padding_of(keys: int) -> int:
    """Return how many keys are missing to a multiple of `KEY_MULTIPLE`."""
    return -keys % KEY_MULTIPLE


def _attend_sampled(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, heads: int, scale: float) -> Tensor:
    """Attend to sampled keys; see `DeformableAttention.attend_with`."""
    keys = key.shape[1]
    if padding := padding_of(keys):
        key, value = (F.pad(each, (0, 0, 0, padding)) for each in (key, value))
        if bias is None:
            bias = torch.zeros(1, 1, 1, keys).expand(1, heads, query.shape[1], -1)
        bias = F.pad(bias, (0, padding), value=MASKED)
    return _attention(query, key, value, bias, heads=heads, scale=scale)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, heads: int, scale: float) -> Tensor:
    """(batch, tokens, heads head_dim) to the same, by ONNX Attention of opset 23."""
    return torch.onnx.ops.attention(
        query, key, value, mask, q_num_heads=heads, kv_num_heads=heads, scale=scale
    )[0]  # fmt: skip


def _projections(layer: WindowAttention) -> list[nn.Linear]:
    """Return the projections to queries, keys and values: three products write no tensor that is cut afterwards."""
    weights, bias = layer.proj_qkv.weight.chunk(3), cast(Tensor | None, layer.proj_qkv.bias)
    biases = (layer.query_bias, None, None) if bias is None else bias.chunk(3)
    projections = []
    for weight, its_bias in zip(weights, biases, strict=True):
        projection = nn.Linear(weight.shape[1], weight.shape[0], bias=its_bias is not None).requires_grad_(False)
        projection.weight.copy_(weight)
        if its_bias is not None:
            projection.bias.copy_(its_bias)
        projections.append(projection)
    return projections


def _inverse(order: Tensor, layer: WindowAttention) -> Tensor:
    """Return where each pixel of the map, without its padding, lies in an order of all pixels of the padded one."""
    height, width = layer.map_size
    return torch.argsort(order).reshape(layer.padded_size)[:height, :width].reshape(-1)


def _takes_whole_patches(layer: SpatialConv) -> bool:
    plain = layer.groups == 1 and layer.padding == (0, 0) and layer.dilation == (1, 1)
    return plain and layer.kernel_size == layer.stride


def _replace(model: DAT, kind: type[WindowAttention], form: type[GatheredWindows | WindowsAsHeads]) -> None:
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, kind):
                setattr(module, name, form(layer))
