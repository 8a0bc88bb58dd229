"""Deformable attention without a tensor of queries x keys: the position bias is sampled where it is added.

The arithmetic is that of `models.deformable_attention` with a table, or without any position bias.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.sampling import pixel_below


@triton.jit
def query_coordinate(index: tl.tensor, length: tl.constexpr, generation: tl.constexpr) -> tl.tensor:
    """Return where the queries of a row or column lie for the position bias, float32."""
    if generation == 1:
        return (index.to(tl.float32) + 0.5) * (2.0 / length) - 1.0
    return index.to(tl.float32) * (2.0 / (length - 1)) - 1.0


@triton.jit
def sampled_bias(
    table: tl.tensor,
    query_y: tl.tensor,
    query_x: tl.tensor,
    key_y: tl.tensor,
    key_x: tl.tensor,
    rows: tl.constexpr,
    columns: tl.constexpr,
) -> tl.tensor:
    """Return a head's table (rows, columns) at half of query minus key, float32 (queries, keys)."""
    top, down = pixel_below((query_y[:, None] - key_y[None, :]) * 0.5, rows)
    left, right = pixel_below((query_x[:, None] - key_x[None, :]) * 0.5, columns)
    bias = tl.zeros_like(down)
    for corner in tl.static_range(4):
        row, column = top + corner // 2, left + corner % 2
        weight = (down if corner // 2 else 1.0 - down) * (right if corner % 2 else 1.0 - right)
        on_table = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        bias += weight * tl.load(table + row * columns + column, mask=on_table, other=0.0).to(tl.float32)
    return bias


@triton.jit
def deformable_attention(
    out: tl.tensor,
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    position: tl.tensor,
    table: tl.tensor,
    scale: tl.float32,
    height: tl.constexpr,
    width: tl.constexpr,
    keys: tl.constexpr,
    heads: tl.constexpr,
    groups: tl.constexpr,
    head_dim: tl.constexpr,
    generation: tl.constexpr,
    table_height: tl.constexpr,
    table_width: tl.constexpr,
    block_queries: tl.constexpr,
    block_keys: tl.constexpr,
) -> None:
    """Attend from every cell of a map to sampled keys, the softmax being kept up to date block by block.

    `query` and `out` are float16 (batch, height * width, heads, head_dim), `key` and `value` (batch, keys, heads,
    head_dim), `position` float32 (batch, groups, keys, 2), `table` float16 (heads, table_height, table_width); heads of
    a group are neighbours. A table without rows is no position bias: neither it nor `position` is read then. `keys` is
    1 or more.
    """
    cell = tl.program_id(0) * block_queries + tl.arange(0, block_queries)
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    lane = head * head_dim + tl.arange(0, head_dim)
    is_cell = cell < height * width
    query_place = (batch * (height * width) + cell)[:, None] * (heads * head_dim) + lane[None, :]
    q = tl.load(query + query_place, mask=is_cell[:, None], other=0.0)
    query_y = query_coordinate(cell // width, height, generation)
    query_x = query_coordinate(cell % width, width, generation)
    pairs = position + (batch * groups + head // (heads // groups)) * keys * 2
    head_table = table + head * (table_height * table_width)

    highest = tl.full((block_queries,), float("-inf"), tl.float32)
    total = tl.zeros((block_queries,), tl.float32)
    gathered = tl.zeros((block_queries, head_dim), tl.float32)
    for first in range(0, keys, block_keys):
        index = first + tl.arange(0, block_keys)
        is_key = index < keys
        key_place = (batch * keys + index)[:, None] * (heads * head_dim) + lane[None, :]
        k = tl.load(key + key_place, mask=is_key[:, None], other=0.0)
        v = tl.load(value + key_place, mask=is_key[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k)) * scale
        if table_height > 0:
            key_y = tl.load(pairs + index * 2, mask=is_key, other=0.0)
            key_x = tl.load(pairs + index * 2 + 1, mask=is_key, other=0.0)
            scores += sampled_bias(head_table, query_y, query_x, key_y, key_x, table_height, table_width)
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        # a block's first key always exists, so that `above` is finite
        above = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - above[:, None])
        kept = tl.exp(highest - above)
        total = total * kept + tl.sum(weights, 1)
        gathered = gathered * kept[:, None] + tl.dot(weights.to(tl.float16), v)
        highest = above
    tl.store(out + query_place, (gathered / total[:, None]).to(tl.float16), mask=is_cell[:, None])
