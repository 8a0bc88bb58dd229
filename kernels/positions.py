"""Where a deformable layer samples: its offset network, and the positions that follow, in one pass over the queries.

The arithmetic is that of `models.deformable_attention`. Offsets and positions are float32 throughout.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.activation import gelu


@triton.jit
def tanh(value: tl.tensor) -> tl.tensor:
    """Return the tanh of float32 values, to 2e-7 or better; what overflows on the way is 1 or -1."""
    return 1.0 - 2.0 / (tl.exp(2.0 * value) + 1.0)


@triton.jit
def key_position(
    offset: tl.tensor,
    index: tl.tensor,
    length: tl.constexpr,
    scale: tl.tensor,
    generation: tl.constexpr,
    bound: tl.constexpr,
) -> tl.tensor:
    """Return one coordinate of the keys at `index` on an axis of `length` keys, float32."""
    if bound == 1:
        offset = tanh(offset) * scale
    position = (index.to(tl.float32) + 0.5) * (2.0 / (length + 1 - generation)) - 1.0 + offset
    if bound == 2:
        position = tanh(position) if generation == 1 else tl.minimum(tl.maximum(position, -1.0), 1.0)
    return position


@triton.jit
def sampling_positions(
    out: tl.tensor,
    query: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    gain: tl.tensor,
    shift: tl.tensor,
    projection: tl.tensor,
    scale: tl.tensor,
    epsilon: tl.float32,
    height: tl.constexpr,
    width: tl.constexpr,
    groups: tl.constexpr,
    channels: tl.constexpr,
    kernel: tl.constexpr,
    stride: tl.constexpr,
    padding: tl.constexpr,
    generation: tl.constexpr,
    bound: tl.constexpr,
    block_keys: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Convolve each group by channel, take LayerNorm and GELU, project to offsets, and add where keys stand.

    `query` is float16 (batch, height, width, groups * channels), `weight` (kernel, kernel, channels), `bias`, `gain`
    and `shift` (channels,), `projection` (2, channels), to y and x; `scale` float32 (2,). `out` is float32 (batch,
    groups, keys, 2), with (length + 2 padding - kernel) // stride + 1 keys along an axis. `bound` is 0 for offsets as
    they are, 1 for their tanh times `scale`, 2 for positions that tanh (generation 1) or clamping (2) binds to the
    map. `block_channels` is the power of two from `channels` up.
    """
    rows: tl.constexpr = (height + 2 * padding - kernel) // stride + 1
    columns: tl.constexpr = (width + 2 * padding - kernel) // stride + 1
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    key = tl.program_id(0) * block_keys + tl.arange(0, block_keys)
    is_key = key < rows * columns
    row, column = key // columns, key % columns
    lane = tl.arange(0, block_channels)[None, :]
    is_lane = lane < channels
    image = query + batch * (height * width * groups * channels) + group * channels

    value = tl.zeros((block_keys, block_channels), tl.float32)
    left = column * stride - padding
    for down in range(0, kernel):
        y = row * stride - padding + down
        is_row = is_key & (y >= 0) & (y < height)
        at = image + ((y * width + left)[:, None] * (groups * channels) + lane)
        weight_at = weight + (down * (kernel * channels) + lane)
        for right in tl.static_range(kernel):
            on_map = (is_row & (left + right >= 0) & (left + right < width))[:, None] & is_lane
            cell = tl.load(at + right * (groups * channels), mask=on_map, other=0.0).to(tl.float32)
            value += cell * tl.load(weight_at + right * channels, mask=is_lane, other=0.0).to(tl.float32)
    value += tl.load(bias + lane, mask=is_lane, other=0.0).to(tl.float32)

    mean = tl.sum(value, 1) / channels
    centred = tl.where(is_lane, value - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / channels
    scaled = centred * (1.0 / tl.sqrt(variance + epsilon))[:, None]
    by = tl.load(gain + lane, mask=is_lane, other=0.0).to(tl.float32)
    hidden = gelu(scaled * by + tl.load(shift + lane, mask=is_lane, other=0.0).to(tl.float32))
    offset_y = tl.sum(hidden * tl.load(projection + lane, mask=is_lane, other=0.0).to(tl.float32), 1)
    offset_x = tl.sum(hidden * tl.load(projection + channels + lane, mask=is_lane, other=0.0).to(tl.float32), 1)
    pair = out + ((batch * groups + group) * (rows * columns) + key) * 2
    tl.store(pair, key_position(offset_y, row, rows, tl.load(scale), generation, bound), mask=is_key)
    tl.store(pair + 1, key_position(offset_x, column, columns, tl.load(scale + 1), generation, bound), mask=is_key)
