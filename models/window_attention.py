"""Window attention (L) and shifted-window attention (S).

The shift is ceil(window / 2), 4 for a window of 7, and the mask's regions follow it; Swin shifts by floor. Maps that
the window does not divide are zero-padded on the right and bottom after the norm, as the dense-prediction code does,
and the result is cropped. Everything that depends on the map's size alone is computed when the layer is made.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MASKED = -100.0
"""What the published code adds between pixels of different regions."""


class WindowAttention(nn.Module):
    """Multi-head attention inside windows of `window` x `window`, with a learned bias per displacement.

    Args:
        dim: channels.
        heads: attention heads; `dim` is a multiple.
        window: side of a window.
        map_size: height and width of the maps, fixed.
        shifted: roll the map by ceil(window / 2) before and back after, with the mask that this needs.
    """

    relative_index: Tensor
    mask: Tensor | None
    query_bias: Tensor | None
    """What is added to the queries (dim,) where `proj_qkv` has no bias of its own."""

    def __init__(self, dim: int, heads: int, *, window: int, map_size: tuple[int, int], shifted: bool) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.map_size = map_size
        self.padded_size = (-(-map_size[0] // window) * window, -(-map_size[1] // window) * window)
        self.shift = -(-window // 2) if shifted else 0
        self.scale = (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.proj_qkv = nn.Linear(dim, 3 * dim)
        self.proj_out = nn.Linear(dim, dim)
        self.register_buffer("query_bias", None, persistent=False)
        self.register_buffer("relative_index", relative_index(window), persistent=False)
        mask = shift_mask(self.padded_size, window, self.shift) if shifted else None
        self.register_buffer("mask", mask, persistent=False)

    def bias(self) -> Tensor:
        """Return what is added to the scores: (1 or windows, heads, window^2, window^2)."""
        bias = self.position_bias()[None]
        return bias if self.mask is None else bias + self.mask

    def position_bias(self) -> Tensor:
        """Return the bias of every displacement in a window: (heads, window^2, window^2)."""
        tokens = self.window**2
        bias = self.relative_position_bias_table[self.relative_index].reshape(tokens, tokens, self.heads)
        return bias.permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same."""
        height, width = self.map_size
        padded_height, padded_width = self.padded_size
        if self.padded_size != self.map_size:
            x = F.pad(x, (0, 0, 0, padded_width - width, 0, padded_height - height))
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = self._merge(self.attend(self.split(x)))
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def split(self, x: Tensor) -> Tensor:
        """(batch, H, W, dim) to (batch, windows, window^2, dim)."""
        size, (height, width), dim = self.window, self.padded_size, x.shape[-1]
        x = x.reshape(-1, height // size, size, width // size, size, dim).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, (height // size) * (width // size), size * size, dim)

    def _merge(self, x: Tensor) -> Tensor:
        """The inverse of `split`."""
        size, (height, width), dim = self.window, self.padded_size, x.shape[-1]
        x = x.reshape(-1, height // size, width // size, size, size, dim).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, height, width, dim)

    def attend(self, x: Tensor) -> Tensor:
        """(batch, windows, window^2, dim) to the same."""
        windows, tokens, dim = x.shape[1:]
        qkv = self.proj_qkv(x).reshape(-1, windows, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        if self.query_bias is not None:
            query = query + self.query_bias.reshape(self.heads, 1, -1)
        scores = (query * self.scale) @ key.transpose(-2, -1) + self.bias()
        out = scores.softmax(-1) @ value
        out = out.transpose(2, 3).reshape(-1, windows, tokens, dim)
        return self.proj_out(out)  # type: ignore[no-any-return]


def relative_index(window: int) -> Tensor:
    """Return the row of the bias table for each (query, key) of a window, flattened: int64 (window^4,)."""
    place = torch.arange(window)
    displacement = place[:, None] - place[None, :] + window - 1
    rows = displacement[:, None, :, None] * (2 * window - 1)
    return (rows + displacement[None, :, None, :]).reshape(-1)


def shift_mask(map_size: tuple[int, int], window: int, shift: int) -> Tensor:
    """Return the mask of a rolled map: (windows, 1, window^2, window^2), 0 within a region and -100 across.

    Along each axis the regions are [0, -window), [-window, -shift) and [-shift, end).
    """
    region = [_axis_regions(length, window, shift) for length in map_size]
    regions = region[0][:, None] * 3 + region[1][None, :]
    rows, columns = map_size[0] // window, map_size[1] // window
    regions = regions.reshape(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, 1, window**2)
    return (regions[..., :, None] != regions[..., None, :]).float() * MASKED


def _axis_regions(length: int, window: int, shift: int) -> Tensor:
    place = torch.arange(length)
    return (place >= length - window).long() + (place >= length - shift).long()
