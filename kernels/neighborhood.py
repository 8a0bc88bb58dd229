"""Neighbourhood attention on the whole map: a program has a square of queries and goes over what they may see.

The arithmetic is that of `models.neighborhood_attention`: a window is shifted inward at the borders of the map.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def window_start(place: tl.tensor, length: tl.constexpr, kernel: tl.constexpr) -> tl.tensor:
    """Return where the window of the query at `place` begins on an axis of `length` >= `kernel`."""
    return tl.minimum(tl.maximum(place - kernel // 2, 0), length - kernel)


@triton.jit
def neighborhood_attention(
    out: tl.tensor,
    qkv: tl.tensor,
    qkv_bias: tl.tensor,
    position_bias: tl.tensor,
    scale: tl.float32,
    height: tl.constexpr,
    width: tl.constexpr,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    kernel: tl.constexpr,
    tile: tl.constexpr,
    block_keys: tl.constexpr,
) -> None:
    """Attend from each cell to the `kernel` x `kernel` cells around it.

    `qkv` is float16 (batch, height, width, 3, heads, head_dim), the product without its bias, and `qkv_bias`
    (3, heads, head_dim); `position_bias` (heads, 2 kernel - 1, 2 kernel - 1), by displacement; `out` (batch, height,
    width, heads, head_dim). A map smaller than `kernel` is padded on the right and bottom with tokens whose product is
    0. `tile`, the side of a program's square, is a power of two.
    """
    rows: tl.constexpr = height if height > kernel else kernel
    columns: tl.constexpr = width if width > kernel else kernel
    side: tl.constexpr = tile + kernel - 1
    part: tl.constexpr = heads * head_dim
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    top = tl.program_id(0) // ((width + tile - 1) // tile) * tile
    left = tl.program_id(0) % ((width + tile - 1) // tile) * tile
    cell = tl.arange(0, tile * tile)
    query_y, query_x = top + cell // tile, left + cell % tile
    is_query = (query_y < height) & (query_x < width)
    start_y, start_x = window_start(query_y, rows, kernel), window_start(query_x, columns, kernel)
    first_y, first_x = window_start(top, rows, kernel), window_start(left, columns, kernel)

    lane = head * head_dim + tl.arange(0, head_dim)
    token = (batch * height + query_y) * width + query_x
    q = tl.load(qkv + token[:, None] * (3 * part) + lane[None, :], mask=is_query[:, None], other=0.0).to(tl.float32)
    q = (q + tl.load(qkv_bias + lane).to(tl.float32)[None, :]).to(tl.float16)
    key_bias = tl.load(qkv_bias + part + lane).to(tl.float32)
    value_bias = tl.load(qkv_bias + 2 * part + lane).to(tl.float32)

    # below every score yet finite, as a block may hold nothing that a query sees
    highest = tl.full((tile * tile,), -1e30, tl.float32)
    total = tl.zeros((tile * tile,), tl.float32)
    gathered = tl.zeros((tile * tile, head_dim), tl.float32)
    for first in range(0, side * side, block_keys):
        index = first + tl.arange(0, block_keys)
        key_y, key_x = first_y + index // side, first_x + index % side
        on_map = (key_y < height) & (key_x < width) & (index < side * side)
        place = ((batch * height + key_y) * width + key_x)[:, None] * (3 * part) + lane[None, :]
        k = tl.load(qkv + place + part, mask=on_map[:, None], other=0.0).to(tl.float32) + key_bias[None, :]
        v = tl.load(qkv + place + 2 * part, mask=on_map[:, None], other=0.0).to(tl.float32) + value_bias[None, :]
        down, right = key_y[None, :] - start_y[:, None], key_x[None, :] - start_x[:, None]
        is_seen = (down >= 0) & (down < kernel) & (right >= 0) & (right < kernel) & (index < side * side)[None, :]
        bias_y = key_y[None, :] - query_y[:, None] + kernel - 1
        bias_x = key_x[None, :] - query_x[:, None] + kernel - 1
        bias_place = (head * (2 * kernel - 1) + bias_y) * (2 * kernel - 1) + bias_x
        is_read = is_seen & is_query[:, None]
        scores = tl.dot(q, tl.trans(k.to(tl.float16))) * scale
        scores += tl.load(position_bias + bias_place, mask=is_read, other=0.0).to(tl.float32)
        scores = tl.where(is_seen, scores, float("-inf"))
        above = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - above[:, None])
        kept = tl.exp(highest - above)
        total = total * kept + tl.sum(weights, 1)
        gathered = gathered * kept[:, None] + tl.dot(weights.to(tl.float16), v.to(tl.float16))
        highest = above
    # what lies beyond the map may see nothing, and is not written
    result = gathered / tl.where(is_query, total, 1.0)[:, None]
    tl.store(out + token[:, None] * part + lane[None, :], result.to(tl.float16), mask=is_query[:, None])
