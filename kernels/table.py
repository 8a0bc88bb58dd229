"""Which kernels the variants need, and with which constants: the only place that knows.

A kernel is compiled for the sizes of a layer, as the compiler then folds divisions and masks; the batch and the number
of rows stay free. Blocks are chosen so that a program's tile fits the registers of its warps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kernels.signatures import (
    DEFORMABLE,
    DEPTHWISE,
    EMBEDDING,
    GELU,
    NEIGHBORHOOD,
    NORM,
    PERCEPTION,
    POSITIONS,
    SAMPLING,
    WINDOW,
    Kernel,
)
from models.config import DATConfig, StageConfig
from models.variants import find_variant

COLOURS = 3
LEAST_BLOCK = 16
"""What a side of a block is at least, in a product of blocks."""
ATTENTION_BLOCK = 64
KEY_BLOCK = 32
"""Keys of a block where scores take more than a product: with 64, deformable attention spills registers."""
NEIGHBORHOOD_TILE = 8
GELU_BLOCK = 1024
NORM_TILE = 4096
"""Values of a tile of the norm, which four warps keep in 32 registers a thread; the others count alike."""
SAMPLED_TILE = 2048
EMBEDDED_TILE = 4096
PERCEIVED_TILE = 4096
POSITIONED_TILE = 1024
"""Small, as a map has few keys and there should be many programs: eight values a thread."""
CONVOLVED_TILE = 2048
CONVOLVED_CHANNELS = 64
"""Channels of a program at most: 128 bytes of a cell, which is what memory is read by."""
CONVOLVED_SIDE = 8
"""What a tile's side is at most, in cells."""


@dataclass(frozen=True, slots=True)
class Specialization:
    """A kernel with all its constants, in the order of its arguments, and the warps that run a program of it."""

    kernel: Kernel
    constants: dict[str, int | bool]
    num_warps: int

    @property
    def name(self) -> str:
        """Kernel and constants, which name the files: no two specialisations have the same."""
        return "-".join([self.kernel.name, *(str(int(value)) for value in self.constants.values())])


def power_of_two(least: int) -> int:
    """Return the smallest power of two that is `least` or more."""
    return 1 << (least - 1).bit_length()


def norm(channels: int) -> Specialization:
    """Return the residual norm of so many channels."""
    block = power_of_two(channels)
    return Specialization(
        NORM, {"channels": channels, "block_rows": max(1, NORM_TILE // block), "block_channels": block}, 4
    )


def gelu(channels: int) -> Specialization:
    """Return bias and GELU of so many channels."""
    return Specialization(GELU, {"channels": channels, "block": GELU_BLOCK}, 4)


def window(stage: StageConfig, size: tuple[int, int], *, shifted: bool) -> Specialization:
    """Return the attention in windows on maps of height and width `size`."""
    constants = {
        "height": size[0],
        "width": size[1],
        "heads": stage.heads,
        "head_dim": stage.head_dim,
        "window": stage.window,
        "shift": -(-stage.window // 2) if shifted else 0,
        "block_queries": ATTENTION_BLOCK,
        "block_keys": ATTENTION_BLOCK if stage.window**2 <= ATTENTION_BLOCK else KEY_BLOCK,
    }
    return Specialization(WINDOW, constants, 4)


def neighborhood(stage: StageConfig, size: tuple[int, int]) -> Specialization:
    """Return the neighbourhood attention on maps of height and width `size`."""
    constants = {
        "height": size[0],
        "width": size[1],
        "heads": stage.heads,
        "head_dim": stage.head_dim,
        "kernel": stage.neighborhood,
        "tile": NEIGHBORHOOD_TILE,
        "block_keys": KEY_BLOCK,
    }
    return Specialization(NEIGHBORHOOD, constants, 4)


def embedding(config: DATConfig, image_size: tuple[int, int]) -> Specialization:
    """Return the stem's first convolution of images of height and width `image_size`."""
    kernel, channels = (3, config.dim_stem // 2) if config.use_conv_patches else (config.patch_size, config.dim_stem)
    block_channels = max(LEAST_BLOCK, power_of_two(channels))
    constants = {
        "height": image_size[0],
        "width": image_size[1],
        "colours": COLOURS,
        "channels": channels,
        "kernel": kernel,
        "stride": config.patch_size // 2 if config.use_conv_patches else config.patch_size,
        "padding": 1 if config.use_conv_patches else 0,
        "has_gelu": config.use_conv_patches,
        "block_cells": max(LEAST_BLOCK, EMBEDDED_TILE // block_channels),
        "block_taps": max(LEAST_BLOCK, power_of_two(kernel**2 * COLOURS)),
        "block_channels": block_channels,
    }
    return Specialization(EMBEDDING, constants, 4)


def depthwise(
    size: tuple[int, int],
    channels: int,
    *,
    weight_channels: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    has_skip: bool = False,
    has_gelu: bool = False,
) -> Specialization:
    """Return the depthwise convolution of maps of height and width `size`."""
    block_channels = min(CONVOLVED_CHANNELS, weight_channels & -weight_channels)
    block_cells = CONVOLVED_TILE // block_channels
    columns = (size[1] + 2 * padding - kernel) // stride + 1
    tile_width = tile_side(columns)
    constants = {
        "height": size[0],
        "width": size[1],
        "channels": channels,
        "weight_channels": weight_channels,
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "has_skip": has_skip,
        "has_gelu": has_gelu,
        "tile_height": block_cells // tile_width,
        "tile_width": tile_width,
        "block_cells": block_cells,
        "block_channels": block_channels,
    }
    return Specialization(DEPTHWISE, constants, 4)


def perception(size: tuple[int, int], channels: int) -> Specialization:
    """Return the sum, perception unit and norm between blocks, on maps of height and width `size`."""
    block_channels = power_of_two(channels)
    block_cells = max(1, PERCEIVED_TILE // block_channels)
    tile_width = min(tile_side(size[1]), block_cells)
    constants = {
        "height": size[0],
        "width": size[1],
        "channels": channels,
        "kernel": 3,
        "tile_height": block_cells // tile_width,
        "tile_width": tile_width,
        "block_cells": block_cells,
        "block_channels": block_channels,
    }
    return Specialization(PERCEPTION, constants, 8)


def tile_side(length: int) -> int:
    """Return the side of a convolution's tile: the largest divisor of a row up to a limit, unless it is small."""
    divisor = max(side for side in range(1, CONVOLVED_SIDE + 1) if length % side == 0)
    return divisor if 2 * divisor >= CONVOLVED_SIDE else CONVOLVED_SIDE


def sampling(stage: StageConfig, size: tuple[int, int]) -> Specialization:
    """Return the sampling of a deformable layer's features."""
    channels = stage.dim // stage.groups
    block = power_of_two(channels)
    constants = {
        "height": size[0],
        "width": size[1],
        "groups": stage.groups,
        "channels": channels,
        "block_keys": max(1, SAMPLED_TILE // block),
        "block_channels": block,
    }
    return Specialization(SAMPLING, constants, 4)


def positions(stage: StageConfig, size: tuple[int, int], generation: int) -> Specialization:
    """Return the offset network of a deformable layer, with the positions that follow."""
    channels, factor = stage.dim // stage.groups, stage.offset_range_factor
    block = power_of_two(channels)
    bounds_offsets = factor > 0 or (factor == 0 and generation == 2)
    constants = {
        "height": size[0],
        "width": size[1],
        "groups": stage.groups,
        "channels": channels,
        "kernel": stage.offset_kernel,
        "stride": stage.stride,
        "padding": stage.offset_padding(generation),
        "generation": generation,
        "bound": 1 if bounds_offsets else 2 if factor < 0 else 0,
        "block_keys": max(1, POSITIONED_TILE // block),
        "block_channels": block,
    }
    return Specialization(POSITIONS, constants, 4)


def deformable(
    stage: StageConfig, size: tuple[int, int], generation: int, table_size: tuple[int, int]
) -> Specialization:
    """Return the attention of a deformable layer, whose bias table was made for maps of `table_size`."""
    has_table = _biases_scores(stage, generation)
    constants = {
        "height": size[0],
        "width": size[1],
        "keys": stage.key_side(size[0], generation) * stage.key_side(size[1], generation),
        "heads": stage.heads,
        "groups": stage.groups,
        "head_dim": stage.head_dim,
        "generation": generation,
        "table_height": 2 * table_size[0] - 1 if has_table else 0,
        "table_width": 2 * table_size[1] - 1 if has_table else 0,
        "block_queries": ATTENTION_BLOCK,
        "block_keys": KEY_BLOCK,
    }
    return Specialization(DEFORMABLE, constants, 4)


def specializations(names: Iterable[str]) -> list[Specialization]:
    """Return what the variants of these names need, each once; KeyError for a name that there is not."""
    found: dict[str, Specialization] = {}
    for name in names:
        variant = find_variant(name)
        size = (variant.input_size, variant.input_size)
        for one in _of_model(variant.config.at_size(size), size):
            found.setdefault(one.name, one)
    return list(found.values())


def _of_model(config: DATConfig, image_size: tuple[int, int]) -> Iterator[Specialization]:
    yield embedding(config, image_size)
    for index, stage in enumerate(config.stages):
        size = config.map_size(index, image_size)
        yield norm(stage.dim)
        yield gelu(stage.dim * config.expansion)
        if "L" in stage.layers:
            yield window(stage, size, shifted=False)
        if "S" in stage.layers:
            yield window(stage, size, shifted=True)
        if "N" in stage.layers:
            yield neighborhood(stage, size)
        yield from _convolutions(config, stage, size)
        if "D" in stage.layers:
            # two kinds of bias are no table that could be sampled
            if not _biases_scores(stage, config.generation) or not (stage.fixed_pe or stage.log_cpb):
                yield deformable(stage, size, config.generation, _table_size(config, index, size))
            if not stage.pools_keys(config.generation):
                yield sampling(stage, size)


def _convolutions(config: DATConfig, stage: StageConfig, size: tuple[int, int]) -> Iterator[Specialization]:
    if stage.lpu and len(stage.layers) > 1:
        yield perception(size, stage.dim)
    if stage.lpu:
        # a stage's first unit has no sum before it
        yield depthwise(size, stage.dim, weight_channels=stage.dim, has_skip=True)
    if stage.dwc_mlp:
        hidden = stage.dim * config.expansion
        yield depthwise(size, hidden, weight_channels=hidden, has_skip=True, has_gelu=True)
    if "D" in stage.layers and not stage.no_offsets:
        yield positions(stage, size, config.generation)
        yield depthwise(
            size,
            stage.dim,
            weight_channels=stage.dim // stage.groups,
            kernel=stage.offset_kernel,
            stride=stage.stride,
            padding=stage.offset_padding(config.generation),
        )
    if "D" in stage.layers and stage.use_pe and stage.dwc_pe and not stage.pools_keys(config.generation):
        yield depthwise(size, stage.dim, weight_channels=stage.dim)


def _table_size(config: DATConfig, index: int, size: tuple[int, int]) -> tuple[int, int]:
    # the second generation samples at normalised places, and keeps its table for other sizes of image
    return size if config.generation == 1 else config.map_size(index, (config.img_size, config.img_size))


def _biases_scores(stage: StageConfig, generation: int) -> bool:
    return stage.use_pe and not stage.dwc_pe and not stage.pools_keys(generation)
