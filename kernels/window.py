"""Window and shifted-window attention on the whole map: nothing is rolled, cut or masked in memory.

The arithmetic is that of `models.window_attention`: regions, shift and the -100 between regions are the same.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rolled_token(
    top: tl.tensor,
    left: tl.tensor,
    token: tl.tensor,
    height: tl.constexpr,
    width: tl.constexpr,
    window: tl.constexpr,
    shift: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return which cell of the map a window's tokens are, and whether they are in the window and on the map."""
    rows: tl.constexpr = (height + window - 1) // window
    columns: tl.constexpr = (width + window - 1) // window
    # a place of the rolled map shows what lies `shift` further on
    from_y = (top + token // window + shift) % (rows * window)
    from_x = (left + token % window + shift) % (columns * window)
    return from_y * width + from_x, (token < window * window) & (from_y < height) & (from_x < width)


@triton.jit
def region(
    top: tl.tensor,
    left: tl.tensor,
    token: tl.tensor,
    height: tl.constexpr,
    width: tl.constexpr,
    window: tl.constexpr,
    shift: tl.constexpr,
) -> tl.tensor:
    """Return which of the nine parts of the rolled map a window's tokens belong to."""
    rows: tl.constexpr = (height + window - 1) // window * window
    columns: tl.constexpr = (width + window - 1) // window * window
    y, x = top + token // window, left + token % window
    down = (y >= rows - window).to(tl.int32) + (y >= rows - shift).to(tl.int32)
    return 3 * down + (x >= columns - window).to(tl.int32) + (x >= columns - shift).to(tl.int32)


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
    Keys come `block_keys` at once, the softmax being kept up to date where that is less than window^2.
    """
    tokens: tl.constexpr = window * window
    rows: tl.constexpr = (height + window - 1) // window
    columns: tl.constexpr = (width + window - 1) // window
    place = tl.program_id(0)
    head = tl.program_id(2)
    batch = (place // (rows * columns)).to(tl.int64)
    top = (place // columns) % rows * window
    left = place % columns * window
    part: tl.constexpr = heads * head_dim
    lane = head * head_dim + tl.arange(0, head_dim)

    query = tl.program_id(1) * block_queries + tl.arange(0, block_queries)
    query_cell, is_query = rolled_token(top, left, query, height, width, window, shift)
    query_place = (batch * (height * width) + query_cell)[:, None] * (3 * part) + lane[None, :]
    q = tl.load(qkv + query_place, mask=is_query[:, None], other=0.0).to(tl.float32)
    q = (q + tl.load(qkv_bias + lane).to(tl.float32)[None, :]).to(tl.float16)

    # loaded here and that of keys inside: the compiler then keeps fewest registers
    value_bias = tl.load(qkv_bias + 2 * part + lane).to(tl.float32)[None, :]
    highest = tl.full((block_queries,), float("-inf"), tl.float32)
    total = tl.zeros((block_queries,), tl.float32)
    gathered = tl.zeros((block_queries, head_dim), tl.float32)
    for first in range(0, tokens, block_keys):
        key = first + tl.arange(0, block_keys)
        key_cell, is_key = rolled_token(top, left, key, height, width, window, shift)
        key_place = (batch * (height * width) + key_cell)[:, None] * (3 * part) + part + lane[None, :]
        k = tl.load(qkv + key_place, mask=is_key[:, None], other=0.0).to(tl.float32)
        v = tl.load(qkv + key_place + part, mask=is_key[:, None], other=0.0).to(tl.float32)
        k = (k + tl.load(qkv_bias + part + lane).to(tl.float32)[None, :]).to(tl.float16)
        v = (v + value_bias).to(tl.float16)
        scores = tl.dot(q, tl.trans(k)) * scale
        in_window = (query < tokens)[:, None] & (key < tokens)[None, :]
        bias_place = (head * tokens + query)[:, None] * tokens + key[None, :]
        scores += tl.load(position_bias + bias_place, mask=in_window, other=0.0).to(tl.float32)
        if shift > 0:
            query_region = region(top, left, query, height, width, window, shift)
            key_region = region(top, left, key, height, width, window, shift)
            scores += tl.where(query_region[:, None] != key_region[None, :], -100.0, 0.0)
        scores = tl.where((key < tokens)[None, :], scores, float("-inf"))
        # a block's first key always exists, so that `above` is finite
        above = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - above[:, None])
        kept = tl.exp(highest - above)
        total = total * kept + tl.sum(weights, 1)
        gathered = gathered * kept[:, None] + tl.dot(weights.to(tl.float16), v)
        highest = above
    out_place = (batch * (height * width) + query_cell)[:, None] * part + lane[None, :]
    tl.store(out + out_place, (gathered / total[:, None]).to(tl.float16), mask=is_query[:, None])
