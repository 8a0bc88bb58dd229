"""Bilinear interpolation at float32 positions, which both kernels that sample have in common.

Positions are (y, x), -1 and 1 being the centres of the outermost pixels, and outside a map everything is 0, as in
`models.sampling`. Positions are float32: a float16 between 0.5 and 1 is only exact to 2^-12, which on a map of 56
pixels, or a table of 111, is already 1 % of a pixel.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pixel_below(position: tl.tensor, length: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Return the pixel at or before `position` along an axis of `length`, and what the next one weighs."""
    place = (position + 1.0) * (0.5 * (length - 1))
    # far outside every weight is 0 anyway, and an int32 holds what is left
    place = tl.minimum(tl.maximum(place, -2.0), length + 1.0)
    below = tl.floor(place)
    return below.to(tl.int32), place - below


@triton.jit
def feature_sampling(
    out: tl.tensor,
    x: tl.tensor,
    position: tl.tensor,
    keys: tl.int32,
    height: tl.constexpr,
    width: tl.constexpr,
    groups: tl.constexpr,
    channels: tl.constexpr,
    block_keys: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Sample each group of channels of a map at positions of its own.

    `x` is float16 (batch, height, width, groups * channels), `position` float32 (batch, groups, keys, 2), `out`
    float16 (batch, keys, groups * channels). `block_channels` is the power of two from `channels` up.
    """
    key = tl.program_id(0) * block_keys + tl.arange(0, block_keys)
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, block_channels)
    is_key = key < keys
    inside = is_key[:, None] & (channel < channels)[None, :]
    pair = ((batch * groups + group) * keys + key) * 2
    top, down = pixel_below(tl.load(position + pair, mask=is_key, other=0.0), height)
    left, right = pixel_below(tl.load(position + pair + 1, mask=is_key, other=0.0), width)
    lane = group * channels + channel
    value = tl.zeros((block_keys, block_channels), tl.float32)
    for corner in tl.static_range(4):
        row, column = top + corner // 2, left + corner % 2
        weight = (down if corner // 2 else 1.0 - down) * (right if corner % 2 else 1.0 - right)
        on_map = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        place = ((batch * height + row) * width + column)[:, None] * (groups * channels) + lane[None, :]
        value += weight[:, None] * tl.load(x + place, mask=inside & on_map[:, None], other=0.0).to(tl.float32)
    place = (batch * keys + key)[:, None] * (groups * channels) + lane[None, :]
    tl.store(out + place, value.to(tl.float16), mask=inside)
