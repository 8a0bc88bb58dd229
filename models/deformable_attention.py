"""Deformable attention (D): keys and values are sampled where the data says.

All positions are (y, x), -1 and 1 being the centres of the outermost pixels. How maps and bias tables are interpolated
there is `sampling`'s business; the layer's `sampling` says which of its forms is used. Where the generations differ:

                        generation 1                    generation 2
    reference points    2c / n - 1                      2c / (n - 1) - 1, the last beyond 1
    offset range        f / n, only for f > 0           f / (n - 1), for f >= 0
    negative f          position = tanh(...)            position = clamp(..., -1, 1)
    query grid          the reference formula           2i / (n - 1) - 1
    no_offs             samples at the references,      average-pools by the stride,
                        keeps its position bias         has no position bias

with n the map's length and c its cell centres 0.5, 1.5, ... Source: equations 2 to 8 of arXiv 2201.00520, section 3 of
arXiv 2309.01430, and the published code, where they leave something open.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import StageConfig
from models.layers import ChannelNorm, PointwiseConv, SpatialConv, depthwise_conv
from models.sampling import GRID

LOG_CPB_HIDDEN = 32


class Sampling(NamedTuple):
    """Where a layer looked: `position` (batch, groups, Hk, Wk, 2) and `reference` (1, 1, Hk, Wk, 2), both (y, x).

    `attention`, where it was asked for, is what the layer weights its values by: (batch, heads, queries, keys), each
    row a softmax over the keys, which are in row-major order as the queries are; heads of a group are neighbours.
    """

    position: Tensor
    reference: Tensor
    attention: Tensor | None = None


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, int, float], Tensor]
"""Attention in one call: queries (batch, queries, dim), keys and values (batch, keys, dim), the bias of the scores
(batch or 1, heads, queries, keys) or None, heads, and the scale of the scores, to (batch, queries, dim)."""


class Geometry(NamedTuple):
    """What follows from the map's size alone.

    float32: the keys' reference points (1, 1, Hk, Wk, 2), the queries' coordinates along each axis (H,) and (W,), and
    (2,).
    """

    reference: Tensor
    query_rows: Tensor
    query_columns: Tensor
    cell: Tensor
    """The distance that an offset of 1 stands for, before the range factor."""


def cell_centres(length: int, generation: int) -> Tensor:
    """Return the reference coordinates along an axis of `length` keys, float32 (length,)."""
    span = length if generation == 1 else length - 1
    return (torch.arange(length, dtype=torch.float32) + 0.5) / span * 2 - 1


def query_coordinates(length: int, generation: int) -> Tensor:
    """Return the coordinates of the queries along an axis, for the position bias, float32 (length,)."""
    if generation == 1:
        return cell_centres(length, generation)
    return torch.arange(length, dtype=torch.float32) / (length - 1) * 2 - 1


def grid(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the (y, x) pairs of two axes: (rows, columns, 2)."""
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)


class OffsetNetwork(nn.Sequential):
    """Offsets from queries: a strided depthwise convolution, norm, GELU, and two channels, (y, x)."""

    def __init__(self, channels: int, *, kernel: int, stride: int, padding: int) -> None:
        super().__init__(
            SpatialConv(channels, channels, kernel, stride, padding, groups=channels),
            ChannelNorm(channels),
            nn.GELU(),
            PointwiseConv(channels, 2, bias=False),
        )


class DeformableAttention(nn.Module):
    """Multi-head attention to sampled keys.

    Args:
        stage: the stage's configuration.
        generation: 1 or 2.
        map_size: height and width of the maps, or None where they vary (generation 2).
        table_size: the map size that `rpe_table` or the fixed bias belongs to.

    `attend_with`, where it is set, attends in place of the layer's own products, unless the attention is asked for.
    """

    kept_reference: Tensor
    kept_query_rows: Tensor
    kept_query_columns: Tensor
    kept_cell: Tensor

    def __init__(
        self,
        stage: StageConfig,
        *,
        generation: int,
        map_size: tuple[int, int] | None,
        table_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.stage = stage
        self.generation = generation
        self.map_size = map_size
        self.heads, self.groups, self.head_dim = stage.heads, stage.groups, stage.head_dim
        self.scale = stage.head_dim**-0.5
        self.sampling = GRID
        self.attend_with: Attend | None = None
        self.conv_offset = OffsetNetwork(
            stage.dim // stage.groups,
            kernel=stage.offset_kernel,
            stride=stage.stride,
            padding=stage.offset_padding(generation),
        )
        self.proj_q = PointwiseConv(stage.dim, stage.dim)
        self.proj_k = PointwiseConv(stage.dim, stage.dim)
        self.proj_v = PointwiseConv(stage.dim, stage.dim)
        self.proj_out = PointwiseConv(stage.dim, stage.dim)
        self.pools = stage.pools_keys(generation)
        self.bias_kind = self._bias_kind()
        self.rpe_table = self._make_table(table_size)
        if map_size is not None:
            for name, constant in self._geometry(*map_size)._asdict().items():
                self.register_buffer(f"kept_{name}", constant, persistent=False)

    def _bias_kind(self) -> str | None:
        stage = self.stage
        if not stage.use_pe or self.pools:
            return None
        kinds = {"dwc": stage.dwc_pe, "fixed": stage.fixed_pe, "log_cpb": stage.log_cpb}
        return next((kind for kind, chosen in kinds.items() if chosen), "table")

    def _make_table(self, table_size: tuple[int, int]) -> nn.Module | nn.Parameter | None:
        """Return what the published code calls `rpe_table`, whatever it is."""
        height, width = table_size
        if self.bias_kind == "dwc":
            return depthwise_conv(self.stage.dim)
        if self.bias_kind == "fixed":
            keys = math.prod(self.key_size(height, width))
            return nn.Parameter(torch.zeros(self.heads, height * width, keys))
        if self.bias_kind == "log_cpb":
            heads_per_group = self.heads // self.groups
            return nn.Sequential(
                nn.Linear(2, LOG_CPB_HIDDEN), nn.ReLU(), nn.Linear(LOG_CPB_HIDDEN, heads_per_group, bias=False)
            )
        if self.bias_kind == "table":
            return nn.Parameter(torch.zeros(self.heads, 2 * height - 1, 2 * width - 1))
        return None

    def key_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the key grid for a map."""
        return self.stage.key_side(height, self.generation), self.stage.key_side(width, self.generation)

    def _geometry(self, height: int, width: int) -> Geometry:
        generation, (key_height, key_width) = self.generation, self.key_size(height, width)
        reference = grid(cell_centres(key_height, generation), cell_centres(key_width, generation))
        cells = [n if generation == 1 else n - 1 for n in (key_height, key_width)]
        cell = 1 / torch.tensor(cells, dtype=torch.float32)
        rows, columns = query_coordinates(height, generation), query_coordinates(width, generation)
        return Geometry(reference[None, None], rows, columns, cell)

    def geometry_of(self, height: int, width: int) -> Geometry:
        """Return what follows from the size of a map."""
        if self.map_size is None:
            return self._geometry(height, width)
        return Geometry(self.kept_reference, self.kept_query_rows, self.kept_query_columns, self.kept_cell)

    def forward(self, x: Tensor, *, with_attention: bool = False) -> tuple[Tensor, Sampling]:
        """(batch, height, width, dim), normed, to the same, and where it was sampled."""
        height, width = self.map_size or x.shape[1:3]
        geometry = self.geometry_of(height, width)
        query = self.proj_q(x)
        position = self._position(query, geometry, height, width)
        sampled = self._sampled(x, position)
        keys, values = self.proj_k(sampled), self.proj_v(sampled)
        bias = self._bias(position, geometry)
        if self.attend_with is not None and not with_attention:
            attention = None
            out = self.attend_with(query.flatten(1, 2), keys, values, bias, self.heads, self.scale)
        else:
            attention = self._attention(query.flatten(1, 2), keys, bias)
            out = (attention @ self._split_heads(values)).transpose(1, 2)
        out = out.reshape(-1, height, width, self.stage.dim)
        if self.bias_kind == "dwc":
            out = out + self._table_module()(query)
        return self.proj_out(out), Sampling(position, geometry.reference, attention if with_attention else None)

    def _attention(self, query: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
        """Return the weights of the values, (batch, heads, queries, keys)."""
        scores = self._split_heads(query) * self.scale @ self._split_heads(keys).transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        return cast(Tensor, scores.softmax(-1))

    def _table_module(self) -> Callable[[Tensor], Tensor]:
        return cast(Callable[[Tensor], Tensor], self.rpe_table)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) to (batch, heads, tokens, head_dim)."""
        return x.reshape(-1, x.shape[1], self.heads, self.head_dim).transpose(1, 2)

    def _position(self, query: Tensor, geometry: Geometry, height: int, width: int) -> Tensor:
        """Return the sampled positions, (batch, groups, Hk, Wk, 2)."""
        if self.stage.no_offsets:
            return self.unmoved(query.shape[0], geometry)
        offset = self._offset(query, height, width)
        if self.bounds_offsets:
            offset = torch.tanh(offset) * (geometry.cell * self.stage.offset_range_factor)
        return self._bounded(geometry.reference + offset.reshape(-1, self.groups, *offset.shape[1:]))

    @property
    def bounds_offsets(self) -> bool:
        """Whether offsets are kept in a range; otherwise, positions may be."""
        factor = self.stage.offset_range_factor
        return factor > 0 or (factor == 0 and self.generation == 2)

    def unmoved(self, batch: int, geometry: Geometry) -> Tensor:
        """Return the positions without offsets, (batch, groups, Hk, Wk, 2)."""
        return self._bounded(geometry.reference.expand(batch, self.groups, -1, -1, -1))

    def _bounded(self, position: Tensor) -> Tensor:
        if self.stage.offset_range_factor >= 0:
            return position
        return position.tanh() if self.generation == 1 else position.clamp(-1, 1)

    def _offset(self, query: Tensor, height: int, width: int) -> Tensor:
        """Return the raw offsets, (batch * groups, Hk, Wk, 2)."""
        channels = self.stage.dim // self.groups
        grouped = query.reshape(-1, height, width, self.groups, channels).permute(0, 3, 1, 2, 4)
        return cast(Tensor, self.conv_offset(grouped.reshape(-1, height, width, channels)))

    def _sampled(self, x: Tensor, position: Tensor) -> Tensor:
        """Return the map's features at the keys, (batch, keys, dim)."""
        if not self.pools:
            return self.sampling.features(x, position)
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), self.stage.stride, self.stage.stride)
        return pooled.flatten(2).transpose(1, 2)

    def _bias(self, position: Tensor, geometry: Geometry) -> Tensor | None:
        """Return the position bias of the scores, (batch or 1, heads, queries, keys)."""
        if self.bias_kind == "fixed":
            return cast(Tensor, self.rpe_table)[None]
        if self.bias_kind == "table":
            table = cast(Tensor, self.rpe_table)
            table = table.reshape(self.groups, self.heads // self.groups, *table.shape[1:])
            return self.sampling.bias(table, geometry.query_rows, geometry.query_columns, position)
        if self.bias_kind == "log_cpb":
            queries = grid(geometry.query_rows, geometry.query_columns).reshape(1, -1, 1, 2)
            displacement = queries - position.flatten(0, 1).flatten(1, 2)[:, None]
            bias = self._table_module()(log_displacement(displacement)).permute(0, 3, 1, 2)
            return bias.reshape(-1, self.heads, *bias.shape[-2:])
        return None


def log_displacement(displacement: Tensor) -> Tensor:
    """Return displacements on the signed logarithmic scale of `log_cpb`: sign(d) log2(|d| + 1) / 3 of four times d."""
    scaled = displacement * 4
    return torch.sign(scaled) * torch.log2(scaled.abs() + 1) / 3
