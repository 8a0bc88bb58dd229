"""Neighbourhood attention (N): each query attends to the k x k window around it, shifted inward at borders.

It is computed without a custom operator and without a copy of the window per query. Queries are cut into tiles; the
windows of a tile's queries lie within the tile and a halo of k // 2 on either side, so that one gather along each axis
gives every tile its keys, and a bias of -inf hides the keys that lie outside a query's own window, unless an export
chooses a finite one (`hide_by`). A map of at most `DENSE_SIDE` is one tile without any gather.

Invariants: along an axis of length L the window of query i starts at clamp(i - k // 2, 0, L - k). A map smaller than k
is zero-padded on the right and bottom before `qkv`, and cropped after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_larger = cast(Callable[[int, int], int], torch.sym_max)  # which also takes the sizes of a trace
HIDDEN = float("-inf")
"""What the scores of keys outside a query's window get added."""
DENSE_SIDE = 16
LARGEST_TILE = 8


class AxisTiles(NamedTuple):
    """How one axis is cut: `tiles` tiles of `queries` queries, each with `keys` candidate keys.

    `key_index` (tiles * keys,) says where they lie on the axis, `bias_index` (tiles * queries * keys,) which
    displacement they stand for, and `mask` (tiles, queries, keys) is 0 where the query sees the key, else `HIDDEN` or
    what was given for it.
    """

    tiles: int
    queries: int
    keys: int
    key_index: Tensor
    bias_index: Tensor
    mask: Tensor


def axis_tiles(length: int, kernel: int, tile: int, hidden: float = HIDDEN) -> AxisTiles:
    """Cut an axis of `length` >= `kernel` into tiles of `tile` queries; the last may reach beyond the axis.

    Under torch.export `length` may be symbolic.
    """
    count = (length + tile - 1) // tile
    keys = tile + kernel - 1
    if isinstance(length, int):
        keys = min(keys, length)
    radius = kernel // 2
    first_key = (torch.arange(count) * tile - radius).clamp(min=0)
    first_key = torch.minimum(first_key, torch.full_like(first_key, length - keys).clamp(min=0))
    key = first_key[:, None] + torch.arange(keys)
    query = torch.arange(count * tile).reshape(count, tile)
    # queries that only fill the last tile look where the last real one does: any finite answer, cropped later
    query = torch.minimum(query, torch.full_like(query, length - 1))
    start = (query - radius).clamp(min=0)
    start = torch.minimum(start, torch.full_like(start, length - kernel))
    from_start = key[:, None, :] - start[:, :, None]
    visible = (from_start >= 0) & (from_start < kernel)
    mask = torch.where(visible, 0.0, hidden)
    displacement = (key[:, None, :] - query[:, :, None] + kernel - 1).clamp(0, 2 * kernel - 2)
    # beyond a short axis there are no keys: repeat the last one, which the mask hides there
    key = torch.minimum(key, torch.full_like(key, length - 1))
    return AxisTiles(count, tile, keys, key.reshape(-1), displacement.reshape(-1), mask)


def best_tile(length: int) -> int:
    """Return the tile for an axis: all of a short one, else the largest divisor up to `LARGEST_TILE`."""
    if length <= DENSE_SIDE:
        return length
    divisor = max(side for side in range(1, LARGEST_TILE + 1) if length % side == 0)
    return divisor if 2 * divisor >= LARGEST_TILE else LARGEST_TILE


class NeighborhoodAttention(nn.Module):
    """Multi-head neighbourhood attention with a learned bias per displacement.

    Args:
        dim: channels.
        heads: attention heads; `dim` is a multiple.
        kernel: side of the window, odd.
        map_size: height and width of the maps, or None where they vary.
    """

    query_bias: Tensor | None
    """What is added to the queries (dim,) where `qkv` has no bias of its own."""

    def __init__(self, dim: int, heads: int, *, kernel: int, map_size: tuple[int, int] | None) -> None:
        super().__init__()
        self.heads = heads
        self.kernel = kernel
        self.scale = (dim // heads) ** -0.5
        self.register_buffer("query_bias", None, persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rpb = nn.Parameter(torch.zeros(heads, 2 * kernel - 1, 2 * kernel - 1))
        self.proj = nn.Linear(dim, dim)
        self.map_size = map_size
        self.hidden = HIDDEN
        self._static: list[tuple[int, int, int]] | None = None
        if map_size is not None:
            self._keep(map_size)

    def hide_by(self, hidden: float) -> None:
        """Have keys outside a query's window hidden by another bias than -inf."""
        self.hidden = hidden
        if self.map_size is not None:
            self._keep(self.map_size)

    def _keep(self, map_size: tuple[int, int]) -> None:
        self._static = []
        for axis, side in zip("yx", map_size, strict=True):
            length = max(side, self.kernel)
            tiles = axis_tiles(length, self.kernel, best_tile(length), self.hidden)
            self._static.append((tiles.tiles, tiles.queries, tiles.keys))
            for name in ("key_index", "bias_index", "mask"):
                self.register_buffer(f"{name}_{axis}", getattr(tiles, name), persistent=False)

    @property
    def is_dense(self) -> bool:
        """Whether every query meets every key: the map has a fixed size, neither padded nor cut into tiles."""
        return self._static is not None and self.map_size == tuple(queries for _, queries, _ in self._static)

    def tiles(self, height: int, width: int) -> tuple[AxisTiles, AxisTiles]:
        """Return how the rows and the columns of a map are cut."""
        if self._static is None:
            first, second = (axis_tiles(side, self.kernel, LARGEST_TILE, self.hidden) for side in (height, width))
            return first, second
        kept = (
            AxisTiles(*sides, *(getattr(self, f"{name}_{axis}") for name in ("key_index", "bias_index", "mask")))
            for axis, sides in zip("yx", self._static, strict=True)
        )
        first, second = kept
        return first, second

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same."""
        height, width = self.map_size or x.shape[1:3]
        if self.map_size is None:
            # without a branch, so that one traced graph serves maps on either side of the window's size
            rows, columns = _larger(height, self.kernel), _larger(width, self.kernel)
        else:
            rows, columns = max(height, self.kernel), max(width, self.kernel)
        if self.map_size != (rows, columns):
            x = F.pad(x, (0, 0, 0, columns - width, 0, rows - height))
        return self.proj(self._attend(x, rows, columns)[:, :height, :width])  # type: ignore[no-any-return]

    def _attend(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return what the queries of a map at least as large as the window gather, on all tiles."""
        rows, columns = self.tiles(height, width)
        dim = x.shape[-1]
        qkv = self.qkv(x)
        query = qkv[..., :dim] if self.query_bias is None else qkv[..., :dim] + self.query_bias
        query = self._query_tiles(query * self.scale, rows, columns, height, width)
        key, value = self._key_tiles(qkv[..., dim:], rows, columns)
        scores = query @ key.transpose(-2, -1) + self.bias(rows, columns)
        out = scores.softmax(-1) @ value
        out = out.reshape(-1, rows.tiles, columns.tiles, self.heads, rows.queries, columns.queries, dim // self.heads)
        out = out.permute(0, 1, 4, 2, 5, 3, 6)
        return out.reshape(-1, rows.tiles * rows.queries, columns.tiles * columns.queries, dim)

    def _query_tiles(self, query: Tensor, rows: AxisTiles, columns: AxisTiles, height: int, width: int) -> Tensor:
        """(batch, H, W, dim) to (batch, tiles, heads, queries, head_dim)."""
        beyond_y, beyond_x = rows.tiles * rows.queries - height, columns.tiles * columns.queries - width
        if self._static is None or beyond_y or beyond_x:
            query = F.pad(query, (0, 0, 0, beyond_x, 0, beyond_y))
        head_dim = query.shape[-1] // self.heads
        query = query.reshape(-1, rows.tiles, rows.queries, columns.tiles, columns.queries, self.heads, head_dim)
        query = query.permute(0, 1, 3, 5, 2, 4, 6)
        return query.reshape(-1, rows.tiles * columns.tiles, self.heads, rows.queries * columns.queries, head_dim)

    def _key_tiles(self, key_value: Tensor, rows: AxisTiles, columns: AxisTiles) -> tuple[Tensor, Tensor]:
        """(batch, H, W, 2 dim) to keys and values, each (batch, tiles, heads, keys, head_dim)."""
        if self._static is None or rows.tiles > 1:
            key_value = key_value.index_select(1, rows.key_index)
        if self._static is None or columns.tiles > 1:
            key_value = key_value.index_select(2, columns.key_index)
        head_dim = key_value.shape[-1] // (2 * self.heads)
        key_value = key_value.reshape(
            -1, rows.tiles, rows.keys, columns.tiles, columns.keys, 2, self.heads, head_dim
        ).permute(5, 0, 1, 3, 6, 2, 4, 7)
        key_value = key_value.reshape(2, -1, rows.tiles * columns.tiles, self.heads, rows.keys * columns.keys, head_dim)
        key, value = key_value.unbind(0)
        return key, value

    def bias(self, rows: AxisTiles, columns: AxisTiles) -> Tensor:
        """Return what is added to the scores: (tiles, heads, queries, keys), with `hidden` outside the windows."""
        bias = self.rpb.index_select(1, rows.bias_index).index_select(2, columns.bias_index)
        bias = bias.reshape(
            self.heads, rows.tiles, rows.queries, rows.keys, columns.tiles, columns.queries, columns.keys
        ).permute(1, 4, 0, 2, 5, 3, 6)
        # not their sum: a key outside along both axes is hidden no deeper
        mask = torch.minimum(rows.mask[:, None, None, :, None, :, None], columns.mask[None, :, None, None, :, None, :])
        return (bias + mask).reshape(
            rows.tiles * columns.tiles, self.heads, rows.queries * columns.queries, rows.keys * columns.keys
        )
