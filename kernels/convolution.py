"""Depthwise convolution of a map with its channels last, with what stands before and after it in DAT++.

The arithmetic is that of `models.layers.ResidualDepthwiseConv`, and of the convolution in a deformable layer's offset
network, whose groups of channels share weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.activation import gelu


@triton.jit
def depthwise_convolution(
    out: tl.tensor,
    x: tl.tensor,
    added: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    weight_channels: tl.constexpr,
    kernel: tl.constexpr,
    stride: tl.constexpr,
    padding: tl.constexpr,
    has_skip: tl.constexpr,
    has_gelu: tl.constexpr,
    tile_height: tl.constexpr,
    tile_width: tl.constexpr,
    block_cells: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Convolve `h = x + added`, which is 0 beyond the map; with `has_skip` add h, and with `has_gelu` take the GELU.

    `x` is float16 (batch, height, width, channels), `added` (channels,), `weight` (kernel, kernel, weight_channels),
    `bias` (weight_channels,); groups of channels that share weights follow each other. `out` is float16 (batch, rows,
    columns, channels), with (length + 2 padding - kernel) // stride + 1 of each. A program has `tile_height` x
    `tile_width` cells of it, at most `block_cells`, a power of two, and `block_channels`, a power of two that divides
    `weight_channels`.
    """
    rows: tl.constexpr = (height + 2 * padding - kernel) // stride + 1
    columns: tl.constexpr = (width + 2 * padding - kernel) // stride + 1
    tiles: tl.constexpr = (columns + tile_width - 1) // tile_width
    image = x + tl.program_id(2).to(tl.int64) * (height * width * channels)
    cell = tl.arange(0, block_cells)
    row = tl.program_id(0) // tiles * tile_height + cell // tile_width
    column = tl.program_id(0) % tiles * tile_width + cell % tile_width
    is_cell = (cell < tile_height * tile_width) & (row < rows) & (column < columns)
    first = tl.program_id(1) * block_channels
    lane = first + tl.arange(0, block_channels)[None, :]
    # a hint for the compiler, which else reads weights one by one
    weight_lane = tl.multiple_of(first % weight_channels, block_channels) + tl.arange(0, block_channels)[None, :]

    # where there is nothing to load, what is added is taken away, so that it is added once and by channel
    plus = tl.load(added + lane)
    beyond = tl.broadcast_to(-plus, (block_cells, block_channels))
    weights = tl.zeros((1, block_channels), tl.float32)
    total = tl.zeros((block_cells, block_channels), tl.float32)
    left = column * stride - padding
    for down in range(0, kernel):
        y = row * stride - padding + down
        is_row = is_cell & (y >= 0) & (y < height)
        # the taps of a row lie at fixed distances from the first, which costs no registers
        at = image + ((y * width + left)[:, None] * channels + lane)
        weight_at = weight + (down * (kernel * weight_channels) + weight_lane)
        for right in tl.static_range(kernel):
            on_map = is_row & (left + right >= 0) & (left + right < width)
            value = tl.load(at + right * channels, mask=on_map[:, None], other=beyond).to(tl.float32)
            by = tl.load(weight_at + right * weight_channels).to(tl.float32)
            if has_skip and right == kernel // 2:
                by += tl.where(down == kernel // 2, 1.0, 0.0)
            weights += by
            total += value * by
    total += plus.to(tl.float32) * weights + tl.load(bias + weight_lane).to(tl.float32)
    if has_gelu:
        total = gelu(total)
    image = out + tl.program_id(2).to(tl.int64) * (rows * columns * channels)
    place = (row * columns + column)[:, None] * channels + lane
    tl.store(image + place, total.to(tl.float16), mask=is_cell[:, None])
