"""A residual sum and the LayerNorm of it, in one pass over memory."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def residual_layer_norm(
    total: tl.tensor,
    normed: tl.tensor,
    residual: tl.tensor,
    x: tl.tensor,
    bias: tl.tensor,
    gain: tl.tensor,
    shift: tl.tensor,
    rows: tl.int32,
    epsilon: tl.float32,
    channels: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Write `total = residual + x + bias` and `normed = LayerNorm(total) * gain + shift`.

    `total`, `normed`, `residual`, `x` are float16 (rows, channels), the others (channels,). The norm is that of the
    sum before it is rounded; mean and variance take two passes over registers, so that no large squares cancel.
    `block_channels` is the power of two from `channels` up.
    """
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    channel = tl.arange(0, block_channels)
    is_channel = channel < channels
    inside = (row < rows)[:, None] & is_channel[None, :]
    place = row.to(tl.int64)[:, None] * channels + channel[None, :]
    added = tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + added[None, :]
    value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(total + place, value.to(tl.float16), mask=inside)
    mean = tl.sum(value, 1) / channels
    centred = tl.where(is_channel[None, :], value - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / channels
    scaled = centred * (1.0 / tl.sqrt(variance + epsilon))[:, None]
    by = tl.load(gain + channel, mask=is_channel, other=0.0).to(tl.float32)
    plus = tl.load(shift + channel, mask=is_channel, other=0.0).to(tl.float32)
    tl.store(normed + place, (scaled * by[None, :] + plus[None, :]).to(tl.float16), mask=inside)
