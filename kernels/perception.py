"""What stands between two blocks of DAT++: a residual sum, the perception unit on it, and the norm of what comes out.

The arithmetic is that of `models.layers.ResidualDepthwiseConv` and of the LayerNorm after it. The sum itself is never
in memory: nothing but the unit wants it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def perception_norm(
    total: tl.tensor,
    normed: tl.tensor,
    residual: tl.tensor,
    x: tl.tensor,
    added: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    gain: tl.tensor,
    shift: tl.tensor,
    epsilon: tl.float32,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    kernel: tl.constexpr,
    tile_height: tl.constexpr,
    tile_width: tl.constexpr,
    block_cells: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Write `total = h + h * weight + bias`, of `h = residual + x + added`, and `normed = LayerNorm(total)`.

    `total`, `normed`, `residual` and `x` are float16 (batch, height, width, channels), `weight` (kernel, kernel,
    channels), with `kernel` odd, the others (channels,); h is 0 beyond the map. The norm is that of the total before it
    is rounded. A program has `tile_height` x `tile_width` cells, at most `block_cells`, a power of two;
    `block_channels` is the power of two from `channels` up.
    """
    tiles: tl.constexpr = (width + tile_width - 1) // tile_width
    first = tl.program_id(1).to(tl.int64) * (height * width * channels)
    cell = tl.arange(0, block_cells)
    row = tl.program_id(0) // tiles * tile_height + cell // tile_width
    column = tl.program_id(0) % tiles * tile_width + cell % tile_width
    is_cell = (cell < tile_height * tile_width) & (row < height) & (column < width)
    lane = tl.arange(0, block_channels)[None, :]
    is_lane = lane < channels
    place = (row * width + column)[:, None] * channels + lane

    # where there is nothing to load, what is added is taken away, so that it is added once and by channel
    plus = tl.load(added + lane, mask=is_lane, other=0.0)
    beyond = tl.broadcast_to(-plus, (block_cells, block_channels))
    weights = tl.zeros((1, block_channels), tl.float32)
    value = tl.zeros((block_cells, block_channels), tl.float32)
    for down in range(-(kernel // 2), kernel // 2 + 1):
        is_row = is_cell & (row + down >= 0) & (row + down < height)
        from_residual = residual + first + place + down * (width * channels)
        from_x = x + first + place + down * (width * channels)
        weight_at = weight + (down + kernel // 2) * (kernel * channels) + lane
        for step in tl.static_range(kernel):
            right = step - kernel // 2
            on_map = (is_row & (column + right >= 0) & (column + right < width))[:, None] & is_lane
            h = tl.load(from_residual + right * channels, mask=on_map, other=0.0).to(tl.float32)
            h += tl.load(from_x + right * channels, mask=on_map, other=beyond).to(tl.float32)
            by = tl.load(weight_at + step * channels, mask=is_lane, other=0.0).to(tl.float32)
            if right == 0:
                by += tl.where(down == 0, 1.0, 0.0)
            weights += by
            value += h * by
    value += plus.to(tl.float32) * weights + tl.load(bias + lane, mask=is_lane, other=0.0).to(tl.float32)

    inside = is_cell[:, None] & is_lane
    tl.store(total + first + place, value.to(tl.float16), mask=inside)
    mean = tl.sum(value, 1) / channels
    centred = tl.where(is_lane, value - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / channels
    scaled = centred * (1.0 / tl.sqrt(variance + epsilon))[:, None]
    by = tl.load(gain + lane, mask=is_lane, other=0.0).to(tl.float32)
    after = tl.load(shift + lane, mask=is_lane, other=0.0).to(tl.float32)
    tl.store(normed + first + place, (scaled * by + after).to(tl.float16), mask=inside)
