"""The small layers of a DAT block, on tokens: every feature map here is (batch, height, width, channels).

The published code keeps channels first and permutes around each norm and linear layer; with channels last those
permutations vanish and only spatial convolutions pay for one. Parameter names and shapes stay the published ones,
so 1x1 convolutions keep their (out, in, 1, 1) weights and are applied as matrix products.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-5


class ChannelNorm(nn.Module):
    """LayerNorm over channels, under the published name `norm`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) to the same."""
        return cast(Tensor, self.norm(x))


class SpatialConv(nn.Conv2d):
    """A convolution over a token map."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, in) to (batch, height', width', out)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ResidualDepthwiseConv(SpatialConv):
    """The 3x3 depthwise convolution of the perception units and the convolutional MLP, and the skip around it.

    `fold_skip` moves the skip into the weights, where it costs nothing; a second call raises ValueError.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1, groups=channels)
        self.has_skip = True

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to the same."""
        return self.convolve(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def convolve(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        convolved = F.conv2d(x, self.weight, self.bias, padding=1, groups=self.groups)
        return x + convolved if self.has_skip else convolved

    def fold_skip(self) -> None:
        """Have the kernel's centre add what the skip did."""
        if not self.has_skip:
            raise ValueError("the skip is in the weights already")
        with torch.no_grad():
            self.weight[:, :, 1, 1] += 1
        self.has_skip = False


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution as a matrix product over the last axis."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(x, self.weight.flatten(1), self.bias)


def depthwise_conv(channels: int) -> SpatialConv:
    """Return the 3x3 depthwise convolution that some variants have for a position bias."""
    return SpatialConv(channels, channels, kernel_size=3, padding=1, groups=channels)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch."""

    def __init__(self, channels: int, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(value)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) to the same."""
        return x * self.weight


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them.

    With `channels_first` the layers are 1x1 convolutions on (batch, channels, height, width): the same function, which
    some runtimes have the faster code for.
    """

    channels_first = False

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.chunk = nn.ModuleDict(
            {
                "linear1": nn.Linear(channels, channels * expansion),
                "linear2": nn.Linear(channels * expansion, channels),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to the same."""
        first, second = cast(nn.Linear, self.chunk["linear1"]), cast(nn.Linear, self.chunk["linear2"])
        if self.channels_first:
            hidden = F.gelu(pointwise(x.permute(0, 3, 1, 2), first))
            return pointwise(hidden, second).permute(0, 2, 3, 1)
        return cast(Tensor, second(F.gelu(first(x))))


class ConvMLP(nn.Module):
    """The MLP of generation 2: a depthwise convolution, with a skip around it, before the activation.

    `channels_first` is as in `MLP`.
    """

    channels_first = False

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.linear1 = nn.Sequential(PointwiseConv(channels, hidden))
        self.dwc = ResidualDepthwiseConv(hidden)
        self.linear2 = nn.Sequential(PointwiseConv(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to the same."""
        if self.channels_first:
            hidden = pointwise(x.permute(0, 3, 1, 2), cast(PointwiseConv, self.linear1[0]))
            hidden = F.gelu(self.dwc.convolve(hidden))
            return pointwise(hidden, cast(PointwiseConv, self.linear2[0])).permute(0, 2, 3, 1)
        return cast(Tensor, self.linear2(F.gelu(self.dwc(self.linear1(x)))))


def pointwise(x: Tensor, layer: nn.Linear | PointwiseConv) -> Tensor:
    """Apply a linear layer to (batch, channels, height, width) as a 1x1 convolution."""
    return F.conv2d(x, layer.weight.reshape(*layer.weight.shape[:2], 1, 1), layer.bias)


def patch_embedding(dim_stem: int, patch_size: int, *, convolutional: bool) -> nn.Sequential:
    """Return the stem: (batch, H, W, 3) to (batch, H / patch_size, W / patch_size, dim_stem)."""
    if not convolutional:
        return nn.Sequential(SpatialConv(3, dim_stem, patch_size, patch_size), ChannelNorm(dim_stem))
    stride = patch_size // 2
    return nn.Sequential(
        SpatialConv(3, dim_stem // 2, 3, stride, padding=1),
        ChannelNorm(dim_stem // 2),
        nn.GELU(),
        SpatialConv(dim_stem // 2, dim_stem, 3, stride, padding=1),
        ChannelNorm(dim_stem),
    )


def down_projection(dim_in: int, dim_out: int, *, convolutional: bool) -> nn.Sequential:
    """Return the halving between two stages."""
    conv = (
        SpatialConv(dim_in, dim_out, 3, 2, padding=1, bias=False)
        if convolutional
        else SpatialConv(dim_in, dim_out, 2, 2, bias=False)
    )
    return nn.Sequential(conv, ChannelNorm(dim_out))
