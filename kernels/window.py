"""Window and shifted-window attention on the whole map: nothing is rolled, cut or masked in memory.

The arithmetic is that of `models.window_attention`: regions, shift and the -100 between regions are the same.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def window_attention(
    out: tl.tensor,
    qkv: tl.tensor,
    qkv_bias: tl.tensor,
    position_bias: tl.tensor,
    scale: tl.float32,
    height: tl.constexpr,
    width: tl.constexpr,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    window: tl.constexpr,
    shift: tl.constexpr,
    block_queries: tl.constexpr,
    block_keys: tl.constexpr,
) -> None:
    """Attend inside windows of `window` x `window`, of the map rolled by `shift` (0: not at all).

    `qkv` is float16 (batch, height, width, 3, heads, head_dim), the product without its bias, and `qkv_bias`
    (3, heads, head_dim); `position_bias` (heads, window^2, window^2); `out` (batch, height, width, heads, head_dim).
    A map that the window does not divide is padded on the right and bottom with tokens whose product is 0.
    `block_keys` is the power of two from window^2 up. Grid: (batch * windows, ceil(window^2 / block_queries), heads).
    """
    tokens: tl.constexpr = window * window
    rows: tl.constexpr = (height + window - 1) // window
    columns: tl.constexpr = (width + window - 1) // window
    place = tl.program_id(0)
    head = tl.program_id(2)
    batch = (place // (rows * columns)).to(tl.int64)
    top = (place // columns) % rows * window
    left = place % columns * window

    query = tl.program_id(1) * block_queries + tl.arange(0, block_queries)
    key = tl.arange(0, block_keys)
    channel = tl.arange(0, head_dim)
    query_y, query_x = top + query // window, left + query % window
    key_y, key_x = top + key // window, left + key % window
    # a place of the rolled map shows what lies `shift` further on
    from_y, from_x = (query_y + shift) % (rows * window), (query_x + shift) % (columns * window)
    key_from_y, key_from_x = (key_y + shift) % (rows * window), (key_x + shift) % (columns * window)
    is_query = (query < tokens) & (from_y < height) & (from_x < width)
    is_key = (key < tokens) & (key_from_y < height) & (key_from_x < width)
    query_token = (batch * height + from_y) * width + from_x
    key_token = (batch * height + key_from_y) * width + key_from_x

    part: tl.constexpr = heads * head_dim
    lane = head * head_dim + channel
    query_place = query_token[:, None] * (3 * part) + lane[None, :]
    key_place = key_token[:, None] * (3 * part) + part + lane[None, :]
    q = tl.load(qkv + query_place, mask=is_query[:, None], other=0.0).to(tl.float32)
    k = tl.load(qkv + key_place, mask=is_key[:, None], other=0.0).to(tl.float32)
    v = tl.load(qkv + key_place + part, mask=is_key[:, None], other=0.0).to(tl.float32)
    q = (q + tl.load(qkv_bias + lane).to(tl.float32)[None, :]).to(tl.float16)
    k = (k + tl.load(qkv_bias + part + lane).to(tl.float32)[None, :]).to(tl.float16)
    v = (v + tl.load(qkv_bias + 2 * part + lane).to(tl.float32)[None, :]).to(tl.float16)

    scores = tl.dot(q, tl.trans(k)) * scale
    in_window = (query < tokens)[:, None] & (key < tokens)[None, :]
    bias_place = (head * tokens + query)[:, None] * tokens + key[None, :]
    scores += tl.load(position_bias + bias_place, mask=in_window, other=0.0).to(tl.float32)
    if shift > 0:
        last_y: tl.constexpr = (rows - 1) * window
        last_x: tl.constexpr = (columns - 1) * window
        wrap_y: tl.constexpr = rows * window - shift
        wrap_x: tl.constexpr = columns * window - shift
        query_region = 3 * ((query_y >= last_y).to(tl.int32) + (query_y >= wrap_y).to(tl.int32))
        query_region += (query_x >= last_x).to(tl.int32) + (query_x >= wrap_x).to(tl.int32)
        key_region = 3 * ((key_y >= last_y).to(tl.int32) + (key_y >= wrap_y).to(tl.int32))
        key_region += (key_x >= last_x).to(tl.int32) + (key_x >= wrap_x).to(tl.int32)
        scores += tl.where(query_region[:, None] != key_region[None, :], -100.0, 0.0)
    scores = tl.where((key < tokens)[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    result = tl.dot(weights.to(tl.float16), v) / tl.sum(weights, 1)[:, None]
    tl.store(out + query_token[:, None] * part + lane[None, :], result.to(tl.float16), mask=is_query[:, None])
