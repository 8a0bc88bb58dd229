"""DAT written the obvious way, as the thing to be faster than: what the papers describe, layer by layer.

Maps stay (batch, channels, height, width) and are permuted around every norm and linear layer; windows are rolled and
cut out of them; deformable attention multiplies by `einsum`, and samples its position bias for every pair of query
and key from a table repeated for every image; neighbourhood attention, which no runtime has an operator for, gathers
the window of every query. It has the parameters of `models.dat.DAT`, by name and shape, and gives its logits, for the
published variants at sizes that their windows divide.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.plain_layers import PlainConvMLP, PlainMLP, PlainNorm, PlainScale
from models.config import STAGES, DATConfig, StageConfig
from models.window_attention import relative_index, shift_mask


class PlainWindowAttention(nn.Module):
    """Window attention, shifted or not."""

    index: Tensor
    mask: Tensor | None

    def __init__(self, stage: StageConfig, map_size: tuple[int, int], *, shifted: bool) -> None:
        super().__init__()
        window = self.window = stage.window
        if any(side % window for side in map_size):
            raise ValueError(f"a window of {window} does not divide a map of {map_size}")
        self.heads = stage.heads
        self.shift = -(-window // 2) if shifted else 0
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, stage.heads))
        self.proj_qkv = nn.Linear(stage.dim, 3 * stage.dim)
        self.proj_out = nn.Linear(stage.dim, stage.dim)
        self.register_buffer("index", relative_index(window), persistent=False)
        self.register_buffer("mask", shift_mask(map_size, window, self.shift) if shifted else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        batch, channels, height, width = x.shape
        w, rows, columns = self.window, height // self.window, width // self.window
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (2, 3))
        windows = x.reshape(batch, channels, rows, w, columns, w).permute(0, 2, 4, 3, 5, 1)
        qkv = self.proj_qkv(windows.reshape(batch * rows * columns, w * w, channels))
        query, key, value = (
            part.reshape(-1, w * w, self.heads, channels // self.heads).transpose(1, 2) for part in qkv.chunk(3, -1)
        )
        scores = torch.einsum("bhmc,bhnc->bhmn", query * (channels // self.heads) ** -0.5, key)
        bias = self.relative_position_bias_table[self.index].reshape(w * w, w * w, self.heads)
        scores = scores + bias.permute(2, 0, 1)[None]
        if self.mask is not None:
            scores = scores.reshape(batch, rows * columns, self.heads, w * w, w * w) + self.mask[None]
            scores = scores.reshape(-1, self.heads, w * w, w * w)
        out = torch.einsum("bhmn,bhnc->bhmc", scores.softmax(-1), value)
        out = self.proj_out(out.transpose(1, 2).reshape(-1, w * w, channels))
        out = out.reshape(batch, rows, columns, w, w, channels).permute(0, 5, 1, 3, 2, 4)
        out = out.reshape(batch, channels, height, width)
        return torch.roll(out, (self.shift, self.shift), (2, 3)) if self.shift else out


class PlainNeighborhoodAttention(nn.Module):
    """Neighbourhood attention by gathering k x k keys and values for each query."""

    place: Tensor
    displacement: Tensor

    def __init__(self, stage: StageConfig, map_size: tuple[int, int]) -> None:
        super().__init__()
        kernel, (height, width) = stage.neighborhood, map_size
        if min(map_size) < kernel:
            raise ValueError(f"a neighbourhood of {kernel} is larger than a map of {map_size}")
        self.heads, self.kernel = stage.heads, kernel
        self.qkv = nn.Linear(stage.dim, 3 * stage.dim)
        self.rpb = nn.Parameter(torch.zeros(stage.heads, 2 * kernel - 1, 2 * kernel - 1))
        self.proj = nn.Linear(stage.dim, stage.dim)
        key_y, moved_y = _neighbours(height, kernel)
        key_x, moved_x = _neighbours(width, kernel)
        place = key_y[:, None, :, None] * width + key_x[None, :, None, :]
        displacement = moved_y[:, None, :, None] * (2 * kernel - 1) + moved_x[None, :, None, :]
        self.register_buffer("place", place.reshape(-1), persistent=False)
        self.register_buffer("displacement", displacement.reshape(height * width, kernel**2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        query, key, value = (
            part.reshape(batch, self.heads, channels // self.heads, height * width) for part in qkv.chunk(3, 1)
        )
        key = key[..., self.place].reshape(*key.shape, self.kernel**2)
        value = value[..., self.place].reshape(*value.shape, self.kernel**2)
        scores = torch.einsum("bhcq,bhcqk->bhqk", query * (channels // self.heads) ** -0.5, key)
        scores = scores + self.rpb.flatten(1)[:, self.displacement]
        out = torch.einsum("bhqk,bhcqk->bhcq", scores.softmax(-1), value)
        out = out.reshape(batch, channels, height, width).permute(0, 2, 3, 1)
        return cast(Tensor, self.proj(out)).permute(0, 3, 1, 2)


def _neighbours(length: int, kernel: int) -> tuple[Tensor, Tensor]:
    """Return along an axis which keys each query sees and the table index of each: two of (length, kernel)."""
    query = torch.arange(length)[:, None]
    key = (query - kernel // 2).clamp(0, length - kernel) + torch.arange(kernel)
    return key, key - query + kernel - 1


class PlainDeformableAttention(nn.Module):
    """Deformable attention of either generation with a position table."""

    reference: Tensor
    queries: Tensor
    cell: Tensor

    def __init__(self, stage: StageConfig, generation: int, map_size: tuple[int, int], table: tuple[int, int]) -> None:
        super().__init__()
        if not stage.use_pe or stage.dwc_pe or stage.fixed_pe or stage.log_cpb or stage.no_offsets:
            raise ValueError("only deformable attention with offsets and a position table has a plain form here")
        self.stage, self.generation = stage, generation
        channels, kernel = stage.dim // stage.groups, stage.offset_kernel
        padding = 0 if generation == 2 and kernel == stage.stride else kernel // 2
        self.conv_offset = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, stage.stride, padding, groups=channels),
            PlainNorm(channels),
            nn.GELU(),
            nn.Conv2d(channels, 2, 1, bias=False),
        )
        self.proj_q, self.proj_k, self.proj_v, self.proj_out = (nn.Conv2d(stage.dim, stage.dim, 1) for _ in range(4))
        self.rpe_table = nn.Parameter(torch.zeros(stage.heads, 2 * table[0] - 1, 2 * table[1] - 1))
        keys = [(side + 2 * padding - kernel) // stage.stride + 1 for side in map_size]
        less = generation - 1  # the second generation divides by one less
        centres = [(torch.arange(n) + 0.5) / (n - less) * 2 - 1 for n in keys]
        queries = [torch.arange(n) / (n - 1) * 2 - 1 if less else (torch.arange(n) + 0.5) / n * 2 - 1 for n in map_size]
        self.register_buffer("reference", _grid(centres)[None], persistent=False)
        self.register_buffer("queries", _grid(queries).reshape(1, -1, 1, 2), persistent=False)
        self.register_buffer("cell", torch.tensor([1 / (n - less) for n in keys]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        batch, channels, height, width = x.shape
        groups, heads = self.stage.groups, self.stage.heads
        query = self.proj_q(x)
        position = self._position(query.reshape(batch * groups, channels // groups, height, width))
        grouped = x.reshape(batch * groups, channels // groups, height, width)
        sampled = _sample(grouped, position).reshape(batch, channels, 1, -1)
        query, key, value = (
            part.reshape(batch * heads, channels // heads, -1)
            for part in (query, self.proj_k(sampled), self.proj_v(sampled))
        )
        scores = torch.einsum("bcm,bcn->bmn", query, key) * (channels // heads) ** -0.5
        table = self.rpe_table[None].expand(batch, -1, -1, -1)
        table = table.reshape(batch * groups, heads // groups, *self.rpe_table.shape[1:])
        displacement = (self.queries - position.reshape(batch * groups, 1, -1, 2)) * 0.5
        scores = scores + _sample(table, displacement).reshape(batch * heads, height * width, -1)
        out = torch.einsum("bmn,bcn->bcm", scores.softmax(-1), value)
        return cast(Tensor, self.proj_out(out.reshape(batch, channels, height, width)))

    def _position(self, query: Tensor) -> Tensor:
        """(batch * groups, channels of a group, height, width) to (batch * groups, Hk, Wk, 2), as (y, x)."""
        factor = self.stage.offset_range_factor
        offset = cast(Tensor, self.conv_offset(query)).permute(0, 2, 3, 1)
        if factor > 0 or (factor == 0 and self.generation == 2):
            offset = offset.tanh() * self.cell * factor
        position = self.reference + offset
        if factor < 0:
            position = position.tanh() if self.generation == 1 else position.clamp(-1, 1)
        return position


def _grid(axes: list[Tensor]) -> Tensor:
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def _sample(image: Tensor, position: Tensor) -> Tensor:
    return F.grid_sample(image, position[..., (1, 0)], mode="bilinear", padding_mode="zeros", align_corners=True)


class PlainStage(nn.Module):
    """One stage."""

    def __init__(self, config: DATConfig, index: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        stage = config.stages[index]
        blocks = len(stage.layers)
        mlp = PlainConvMLP if stage.dwc_mlp else PlainMLP
        self.layer_norms = nn.ModuleList(PlainNorm(stage.dim) for _ in range(2 * blocks))
        self.attns = nn.ModuleList(_attention(config, index, letter, image_size) for letter in stage.layers)
        self.mlps = nn.ModuleList(mlp(stage.dim, config.expansion) for _ in range(blocks))
        self.layer_scales = nn.ModuleList(
            PlainScale(stage.dim, stage.layer_scale) if stage.layer_scale > 0 else nn.Identity()
            for _ in range(2 * blocks)
        )
        self.local_perception_units = nn.ModuleList(
            nn.Conv2d(stage.dim, stage.dim, 3, padding=1, groups=stage.dim) if stage.lpu else nn.Identity()
            for _ in range(blocks)
        )
        self.has_lpu = stage.lpu

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        for block, (attention, mlp) in enumerate(zip(self.attns, self.mlps, strict=True)):
            if self.has_lpu:
                x = x + self.local_perception_units[block](x)
            x = x + self.layer_scales[2 * block](attention(self.layer_norms[2 * block](x)))
            x = x + self.layer_scales[2 * block + 1](mlp(self.layer_norms[2 * block + 1](x)))
        return x


def _attention(config: DATConfig, index: int, letter: str, image_size: tuple[int, int]) -> nn.Module:
    stage, map_size = config.stages[index], config.map_size(index, image_size)
    if letter == "D":
        trained = config.map_size(index, (config.img_size, config.img_size))
        table = map_size if config.generation == 1 else trained
        return PlainDeformableAttention(stage, config.generation, map_size, table)
    if letter == "N":
        return PlainNeighborhoodAttention(stage, map_size)
    return PlainWindowAttention(stage, map_size, shifted=letter == "S")


class PlainDAT(nn.Module):
    """The network: normalised RGB, float32 (batch, 3, height, width), to logits.

    Raises ValueError for what no published variant has.
    """

    def __init__(self, config: DATConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        config = config.at_size(image_size)
        dims, stem = [stage.dim for stage in config.stages], config.dim_stem
        if dims[0] != stem:
            raise ValueError("the stem and the first stage differ in width")
        first: list[nn.Module] = [nn.Conv2d(3, stem, config.patch_size, config.patch_size)]
        if config.use_conv_patches:
            half = nn.Conv2d(3, stem // 2, 3, 2, padding=1)
            first = [half, PlainNorm(stem // 2), nn.GELU(), nn.Conv2d(stem // 2, stem, 3, 2, padding=1)]
        self.patch_proj = nn.Sequential(*first, PlainNorm(stem))
        self.stages = nn.ModuleList(PlainStage(config, index, image_size) for index in range(STAGES))
        kernel, padding = (3, 1) if config.use_conv_patches else (2, 0)
        self.down_projs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(narrow, wide, kernel, 2, padding, bias=False), PlainNorm(wide))
            for narrow, wide in pairwise(dims)
        )
        self.cls_norm = PlainNorm(dims[-1])
        self.cls_head = nn.Linear(dims[-1], config.num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return (batch, classes)."""
        x = self.patch_proj(image)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index < STAGES - 1:
                x = self.down_projs[index](x)
        return cast(Tensor, self.cls_head(self.cls_norm(x).mean((2, 3))))
