"""The stem of both generations, from an image's bytes to the norm of its first map.

The arithmetic is that of `models.layers.patch_embedding`, up to its first norm, or the GELU after it. What
normalises an image is in the weights and in the bias: the convolution is of pixel - 128, which float16 holds exactly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.activation import gelu


@triton.jit
def patch_embedding(
    out: tl.tensor,
    image: tl.tensor,
    beyond: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    gain: tl.tensor,
    shift: tl.tensor,
    epsilon: tl.float32,
    height: tl.constexpr,
    width: tl.constexpr,
    colours: tl.constexpr,
    channels: tl.constexpr,
    kernel: tl.constexpr,
    stride: tl.constexpr,
    padding: tl.constexpr,
    has_gelu: tl.constexpr,
    block_cells: tl.constexpr,
    block_taps: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Convolve an image, take the LayerNorm over channels, and with `has_gelu` the GELU of it.

    `image` is uint8 (batch, height, width, colours), `beyond` float16 (colours,), what pixel - 128 is taken for beyond
    the image, `weight` (kernel, kernel, colours, channels), `bias`, `gain` and `shift` (channels,). `out` is float16
    (batch, rows, columns, channels), with (length + 2 padding - kernel) // stride + 1 of each. `block_taps` is the
    power of two from kernel^2 * colours up, `block_channels` that from `channels` up, both 16 or more.
    """
    rows: tl.constexpr = (height + 2 * padding - kernel) // stride + 1
    columns: tl.constexpr = (width + 2 * padding - kernel) // stride + 1
    batch = tl.program_id(1).to(tl.int64)
    cell = tl.program_id(0) * block_cells + tl.arange(0, block_cells)
    tap = tl.arange(0, block_taps)
    channel = tl.arange(0, block_channels)
    is_cell = cell < rows * columns
    is_tap = tap < kernel * kernel * colours
    is_channel = channel < channels

    y = (cell // columns * stride - padding)[:, None] + (tap // (kernel * colours))[None, :]
    x = (cell % columns * stride - padding)[:, None] + (tap // colours % kernel)[None, :]
    wanted = is_cell[:, None] & is_tap[None, :]
    on_image = wanted & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    pixels = image + batch * (height * width * colours)
    pixel = tl.load(pixels + (y * width + x) * colours + (tap % colours)[None, :], mask=on_image, other=128)
    value = (pixel.to(tl.int16) - 128).to(tl.float16)
    if padding > 0:
        outside = tl.zeros((block_taps,), tl.float16)
        for colour in tl.static_range(colours):
            outside = tl.where(tap % colours == colour, tl.load(beyond + colour), outside)
        value = tl.where(on_image, value, outside[None, :])
    # beyond the last tap weights are 0
    by = tl.load(
        weight + tap[:, None] * channels + channel[None, :], mask=is_tap[:, None] & is_channel[None, :], other=0.0
    )
    total = tl.dot(value, by) + tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]

    mean = tl.sum(total, 1) / channels
    centred = tl.where(is_channel[None, :], total - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / channels
    scaled = centred * (1.0 / tl.sqrt(variance + epsilon))[:, None]
    normed = scaled * tl.load(gain + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    normed += tl.load(shift + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    if has_gelu:
        normed = gelu(normed)
    place = (batch * (rows * columns) + cell)[:, None] * channels + channel[None, :]
    tl.store(out + place, normed.to(tl.float16), mask=is_cell[:, None] & is_channel[None, :])
