"""What stands between a DAT's branches, by operators of the domain `dat`: stem, sums, perception units and norms.

Maps are (batch, height, width, channels). A residual branch (`export.fused_branches`) does not add the bias that ends
it, which the norm behind it takes in: a `Residual` carries sum, branch and bias until something wants their total.

Invariants: a layer here computes what the layer that it was made from does; it can be traced, and not be run by torch.
`operators` lists the nodes that it leaves in a graph.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from export import operator_calls as calls
from export.graph import Normalisation
from models.layers import ChannelNorm, ResidualDepthwiseConv, SpatialConv


class Residual(NamedTuple):
    """A sum that nothing has taken yet: `x + branch + bias`, or `x` alone."""

    x: Tensor
    branch: Tensor | None = None
    bias: Tensor | None = None

    def total(self) -> Tensor:
        """Return the sum, for which no operator is."""
        if self.branch is None or self.bias is None:
            return self.x
        return self.x + (self.branch + self.bias)


class OperatorLayer(nn.Module):
    """A layer that leaves nodes of the domain in a graph."""

    operators: tuple[str, ...] = ()
    """Their operators, in the order in which they run."""


class PlainNorm(nn.Module):
    """The norm of a map that nothing is to be added to: no operator of the domain is for it."""

    def __init__(self, norm: ChannelNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, residual: Residual) -> tuple[Tensor, Tensor]:
        """Return the map, and its norm."""
        return residual.x, self.norm(residual.x)


class ResidualNorm(OperatorLayer):
    """A residual sum, the bias of its branch, and the norm of it."""

    operators = (calls.RESIDUAL_LAYER_NORM,)

    def __init__(self, norm: ChannelNorm) -> None:
        super().__init__()
        self.norm = norm.norm

    def forward(self, residual: Residual) -> tuple[Tensor, Tensor]:
        """Return the sum, and its norm."""
        x, branch, bias = residual
        assert branch is not None
        assert bias is not None
        return calls.residual_layer_norm(x, branch, bias, self.norm.weight, self.norm.bias, epsilon=self.norm.eps)


class Depthwise(OperatorLayer):
    """A depthwise convolution of 3x3."""

    operators = (calls.DEPTHWISE_CONVOLUTION,)
    weight: Tensor
    bias: Tensor
    nothing: Tensor

    def __init__(self, layer: ResidualDepthwiseConv, *, gelu: bool = False) -> None:
        super().__init__()
        assert layer.bias is not None
        self.skip, self.gelu = layer.has_skip, gelu
        self.register_buffer("weight", channels_last(layer))
        self.register_buffer("bias", layer.bias.detach().clone())
        self.register_buffer("nothing", torch.zeros(layer.out_channels))

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(batch, height, width, channels) to the same, `added` (channels,) being added before."""
        return calls.depthwise_convolution(
            x,
            self.nothing if added is None else added,
            self.weight,
            self.bias,
            skip=self.skip,
            gelu=self.gelu,
        )


def channels_last(layer: SpatialConv) -> Tensor:
    """Return the weights of a depthwise convolution as (kernel, kernel, channels)."""
    return layer.weight.detach()[:, 0].permute(1, 2, 0).contiguous()


class FusedStem(OperatorLayer):
    """The stem: its first convolution, from bytes on, with the norm and the GELU behind it; the rest as it is."""

    operators = (calls.PATCH_EMBEDDING,)
    beyond: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, layers: nn.Sequential, normalisation: Normalisation) -> None:
        super().__init__()
        first, norm = cast(SpatialConv, layers[0]), cast(ChannelNorm, layers[1])
        assert first.bias is not None
        self.stride, self.padding = first.stride[0], cast(tuple[int, int], first.padding)[0]
        self.norm, self.gelu = norm.norm, len(layers) > 2
        self.rest = layers[3:]
        mean, scale = (torch.tensor(values) * 255 for values in normalisation)
        weight = first.weight.detach().permute(2, 3, 1, 0) / scale.reshape(1, 1, -1, 1)
        self.register_buffer("beyond", mean - calls.MIDDLE_PIXEL)
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", first.bias.detach() - self.beyond @ weight.sum((0, 1)))

    def forward(self, image: Tensor) -> Tensor:
        """Pixels, uint8 (batch, height, width, 3), to the first map (batch, height', width', channels)."""
        x = calls.patch_embedding(
            image,
            self.beyond,
            self.weight,
            self.bias,
            self.norm.weight,
            self.norm.bias,
            stride=self.stride,
            padding=self.padding,
            gelu=self.gelu,
            epsilon=self.norm.eps,
        )
        return cast(Tensor, self.rest(x))


class PerceivedNorm(nn.Module):
    """A local perception unit that nothing is to be added before, and the norm behind it."""

    def __init__(self, unit: ResidualDepthwiseConv, norm: ChannelNorm) -> None:
        super().__init__()
        self.unit, self.norm = Depthwise(unit), norm

    def forward(self, residual: Residual) -> tuple[Tensor, Tensor]:
        """Return what the unit makes of the map, and the norm of that."""
        x = self.unit(residual.x)
        return x, self.norm(x)


class ResidualPerceivedNorm(OperatorLayer):
    """A residual sum, the bias of its branch, a local perception unit, and the norm behind it."""

    operators = (calls.PERCEPTION_NORM,)
    weight: Tensor
    bias: Tensor

    def __init__(self, unit: ResidualDepthwiseConv, norm: ChannelNorm) -> None:
        super().__init__()
        assert unit.has_skip
        assert unit.bias is not None
        self.register_buffer("weight", channels_last(unit))
        self.register_buffer("bias", unit.bias.detach().clone())
        self.norm = norm.norm

    def forward(self, residual: Residual) -> tuple[Tensor, Tensor]:
        """Return what the unit makes of the sum, and the norm of that."""
        x, branch, bias = residual
        assert branch is not None
        assert bias is not None
        gain, shift = self.norm.weight, self.norm.bias
        return calls.perception_norm(x, branch, bias, self.weight, self.bias, gain, shift, epsilon=self.norm.eps)
