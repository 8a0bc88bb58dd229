"""Bilinear interpolation of feature maps and of position-bias tables, in two forms that compute the same.

`GRID` calls the general sampler, which finds four pixels for each position of each query and key. `SEPARABLE` uses
what that sampler cannot know: a bilinear weight is a product of one for the row and one for the column, and the
queries of a layer lie on a grid, so that the interpolation of a whole bias is two matrix products, one an axis. The
sampler is the definition; matrix products are what devices do best.

Positions are (y, x), -1 and 1 being the centres of the outermost pixels; outside a map everything is 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F


class BilinearSampling(ABC):
    """One form of both interpolations."""

    @abstractmethod
    def features(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Sample maps (batch, height, width, dim), group by group, at (batch, groups, Hk, Wk, 2).

        Returns (batch, Hk Wk, dim).
        """

    @abstractmethod
    def bias(self, table: Tensor, rows: Tensor, columns: Tensor, position: Tensor) -> Tensor:
        """Sample tables (groups, heads per group, table height, table width) for every query and key.

        Queries lie at the crossings of `rows` (height,) and `columns` (width,), keys at `position` (batch, groups,
        Hk, Wk, 2), and a table is read at half of query minus key. Returns (batch, heads, height width, Hk Wk).
        """


class _Grid(BilinearSampling):
    def features(self, tokens: Tensor, position: Tensor) -> Tensor:
        height, width, dim = tokens.shape[1:]
        groups, key_height, key_width = position.shape[1:4]
        grouped = tokens.permute(0, 3, 1, 2).reshape(-1, dim // groups, height, width)
        sampled = _sample(grouped, position.reshape(-1, key_height, key_width, 2))
        return sampled.reshape(-1, dim, key_height * key_width).transpose(1, 2)

    def bias(self, table: Tensor, rows: Tensor, columns: Tensor, position: Tensor) -> Tensor:
        queries = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(1, -1, 1, 2)
        displacement = queries - position.flatten(0, 1).flatten(1, 2)[:, None]
        batch = position.shape[0]
        tables = table[None].expand(batch, -1, -1, -1, -1).flatten(0, 1)
        bias = _sample(tables, displacement / 2)
        return bias.reshape(-1, table.shape[0] * table.shape[1], *bias.shape[-2:])


class _Separable(BilinearSampling):
    def features(self, tokens: Tensor, position: Tensor) -> Tensor:
        height, width, dim = tokens.shape[1:]
        groups, keys = position.shape[1], position.shape[2] * position.shape[3]
        along_y = _weights(position[..., 0] + 1, height)
        along_x = _weights(position[..., 1] + 1, width)
        weights = (along_y[..., :, None] * along_x[..., None, :]).reshape(-1, groups, keys, height * width)
        grouped = tokens.reshape(-1, height * width, groups, dim // groups).transpose(1, 2)
        return (weights @ grouped).transpose(1, 2).reshape(-1, keys, dim)

    def bias(self, table: Tensor, rows: Tensor, columns: Tensor, position: Tensor) -> Tensor:
        groups, heads, table_height, table_width = table.shape
        height, width, keys = rows.shape[0], columns.shape[0], position.shape[2] * position.shape[3]
        position = position.reshape(-1, groups, keys, 1, 2)
        along_y = _weights((rows - position[..., 0]) / 2 + 1, table_height)
        along_x = _weights((columns - position[..., 1]) / 2 + 1, table_width)
        # the rows of all keys and queries in one product, then the columns key by key
        by_row = table.transpose(1, 2).reshape(groups, table_height, heads * table_width)
        bias = along_y.reshape(-1, groups, keys * height, table_height) @ by_row
        bias = bias.reshape(-1, groups, keys, height * heads, table_width) @ along_x.transpose(-1, -2)
        # two permutations that move rows, and then whole matrices, take half the time of one that moves single values
        bias = bias.reshape(-1, groups, keys, height, heads, width).permute(0, 1, 4, 2, 3, 5)
        return bias.reshape(-1, groups * heads, keys, height * width).transpose(-1, -2)


GRID: BilinearSampling = _Grid()
SEPARABLE: BilinearSampling = _Separable()


def _sample(image: Tensor, position: Tensor) -> Tensor:
    """Sample (n, c, H, W) at (n, h, w, 2), giving (n, c, h, w); the sampler itself takes (x, y)."""
    return F.grid_sample(image, position.flip(-1), mode="bilinear", padding_mode="zeros", align_corners=True)


def _weights(from_edge: Tensor, length: int) -> Tensor:
    """Return the weights of an axis's `length` pixels at places `from_edge` away from pixel 0, 2 being the whole axis.

    (...) to (..., length): 1 less the distance in pixels, and 0 from a whole pixel on.
    """
    pixels = torch.arange(length, dtype=from_edge.dtype, device=from_edge.device)
    return (1 - (from_edge[..., None] * ((length - 1) / 2) - pixels).abs()).relu()
