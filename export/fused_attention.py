"""Attention layers written with ONNX Runtime's own Attention operator, for graphs that only it will run.

The operator multiplies by the weights of queries, keys and values, adds the bias and takes the softmax without ever
writing the tensors between in another order, which saves a fifth of a layer's time on a CPU. Its bias has no dimension
for windows: windows of a shifted map that hide the same pixels from each other are gathered into one call.

Invariants: a layer here computes what the layer it was made from does; it can be exported, and not be run by torch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export import contrib
from models.dat import DAT
from models.neighborhood_attention import NeighborhoodAttention
from models.window_attention import WindowAttention


class FusedSelfAttention(nn.Module):
    """Projection and attention within sequences: (n, tokens, dim) to the same, without the last projection.

    `bias` is (heads, tokens, tokens); the scale of the scores is in `projection` already.
    """

    bias: Tensor
    weight: Tensor
    projection_bias: Tensor

    def __init__(self, projection: nn.Linear, bias: Tensor) -> None:
        super().__init__()
        self.heads = bias.shape[0]
        self.register_buffer("weight", projection.weight.detach().t().contiguous())
        self.register_buffer("projection_bias", projection.bias.detach().clone())
        self.register_buffer("bias", bias.detach()[None].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        return torch.onnx.ops.symbolic(
            f"{contrib.DOMAIN}::Attention",
            (x, self.weight, self.projection_bias, None, None, self.bias),
            {"num_heads": self.heads, "scale": 1.0},
            dtype=x.dtype,
            shape=x.shape,
            version=contrib.VERSION,
        )


class FusedWindowAttention(nn.Module):
    """`WindowAttention`: one gather cuts the map into windows, shift and all, and one puts it together again."""

    order: Tensor
    inverse: Tensor

    def __init__(self, layer: WindowAttention) -> None:
        super().__init__()
        self.map_size, self.padded_size = layer.map_size, layer.padded_size
        self.tokens = layer.window**2
        self.proj_out = layer.proj_out
        windows = window_places(layer)
        groups, biases = _groups_of(layer.bias().detach().expand(len(windows), -1, -1, -1))
        self.counts = [len(group) for group in groups]
        order = windows[torch.cat(groups)].reshape(-1)
        self.register_buffer("order", order)
        self.register_buffer("inverse", torch.argsort(order))
        self.attentions = nn.ModuleList(FusedSelfAttention(layer.proj_qkv, bias) for bias in biases)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same."""
        (height, width), (padded_height, padded_width), dim = self.map_size, self.padded_size, x.shape[-1]
        x = gathered(x, self.order, self.padded_size)
        parts = torch.split(x, [count * self.tokens for count in self.counts], 1) if len(self.counts) > 1 else [x]
        attended = [
            attention(part.reshape(-1, self.tokens, dim)).reshape(-1, count * self.tokens, dim)
            for attention, part, count in zip(self.attentions, parts, self.counts, strict=True)
        ]
        x = torch.cat(attended, 1) if len(attended) > 1 else attended[0]
        x = self.proj_out(x).index_select(1, self.inverse)
        return x.reshape(-1, padded_height, padded_width, dim)[:, :height, :width]


class FusedDenseAttention(nn.Module):
    """`NeighborhoodAttention` over a map so small that every query meets every key."""

    def __init__(self, layer: NeighborhoodAttention) -> None:
        super().__init__()
        assert layer.map_size is not None
        self.map_size = layer.map_size
        self.proj = layer.proj
        self.attention = FusedSelfAttention(layer.qkv, layer.bias(*layer.tiles(*layer.map_size))[0])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same."""
        attended = self.attention(x.flatten(1, 2))
        return self.proj(attended).reshape(x.shape)  # type: ignore[no-any-return]


def fuse_attention(model: DAT) -> None:
    """Replace the layers that have a fused form, in place; `inference_form` has been taken before."""
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, WindowAttention):
                setattr(module, name, FusedWindowAttention(layer))
            elif isinstance(layer, NeighborhoodAttention) and layer.is_dense:
                setattr(module, name, FusedDenseAttention(layer))


def _groups_of(bias: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the windows that share a bias, for each different one of (windows, heads, tokens, tokens), and those."""
    biases, group = torch.unique(bias, dim=0, return_inverse=True)
    return [torch.nonzero(group == number).flatten() for number in range(len(biases))], list(biases)


def gathered(x: Tensor, order: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """Return the tokens of a map (batch, height, width, dim), padded with zeros to whole windows, in an order."""
    (height, width), (padded_height, padded_width) = x.shape[1:3], padded_size
    if (height, width) != padded_size:
        x = F.pad(x, (0, 0, 0, padded_width - width, 0, padded_height - height))
    return x.reshape(-1, padded_height * padded_width, x.shape[-1]).index_select(1, order)


def window_places(layer: WindowAttention) -> Tensor:
    """Return where the pixels of each window lie on the flattened map: int64 (windows, window^2)."""
    height, width = layer.padded_size
    places = torch.arange(height * width).reshape(1, height, width, 1)
    if layer.shift:
        places = torch.roll(places, (-layer.shift, -layer.shift), (1, 2))
    return layer.split(places)[0, :, :, 0]
