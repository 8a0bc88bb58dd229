"""The small layers of the plain baseline, on maps (batch, channels, height, width)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import LAYER_NORM_EPS, LayerScale


class PlainNorm(nn.Module):
    """LayerNorm over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        return cast(Tensor, self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class PlainScale(LayerScale):
    """A factor per channel of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        return x * self.weight[None, :, None, None]


class PlainMLP(nn.Module):
    """Two linear layers on the map's tokens."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.chunk = nn.ModuleDict({"linear1": nn.Linear(channels, hidden), "linear2": nn.Linear(hidden, channels)})

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = cast(Tensor, self.chunk["linear2"](F.gelu(self.chunk["linear1"](tokens))))
        return tokens.transpose(1, 2).reshape(x.shape)


class PlainConvMLP(nn.Module):
    """The MLP of generation 2: 1x1 convolutions around a depthwise one."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.linear1 = nn.Sequential(nn.Conv2d(channels, hidden, 1))
        self.dwc = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.linear2 = nn.Sequential(nn.Conv2d(hidden, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        hidden = self.linear1(x)
        return cast(Tensor, self.linear2(F.gelu(hidden + self.dwc(hidden))))
