"""How many programs each kernel is launched with: the one place that knows, for the compiler's index and for tests.

A grid follows from a specialisation's constants and from sizes that are known when a kernel is launched (`batch`,
`rows`, `elements`, `keys`), at most one of them an axis. So the index says it in numbers, and who launches needs no
formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a grid: `factor` programs for each `block` of the size of this name; `factor` without a size."""

    size: str | None = None
    block: int = 1
    factor: int = 1

    def programs(self, sizes: Mapping[str, int]) -> int:
        """Return the programs along the axis; KeyError where its size is not among `sizes`."""
        return self.factor * (1 if self.size is None else blocks(sizes[self.size], self.block))


Grid = tuple[Axis, Axis, Axis]
Constants = Mapping[str, int | bool]
ONE: Final = Axis()
BATCH: Final = Axis("batch")


def blocks(length: int, block: int) -> int:
    """Return how many blocks hold `length`, the last of them perhaps not full."""
    return -(-length // block)


def is_choice(constant: str) -> bool:
    """Whether a constant of this name says how a kernel computes, and not what: the sizes of its blocks and tiles."""
    return constant.startswith(("block", "tile"))


def _norm(c: Constants) -> Grid:
    return Axis("rows", c["block_rows"]), ONE, ONE


def _gelu(c: Constants) -> Grid:
    return Axis("elements", c["block"]), ONE, ONE


def _windows(c: Constants) -> Grid:
    windows = blocks(c["height"], c["window"]) * blocks(c["width"], c["window"])
    queries = blocks(c["window"] ** 2, c["block_queries"])
    return Axis("batch", factor=windows), Axis(factor=queries), Axis(factor=c["heads"])


def _neighborhoods(c: Constants) -> Grid:
    tiles = blocks(c["height"], c["tile"]) * blocks(c["width"], c["tile"])
    return Axis(factor=tiles), Axis(factor=c["heads"]), BATCH


def _sampling(c: Constants) -> Grid:
    return Axis("keys", c["block_keys"]), Axis(factor=c["groups"]), BATCH


def _deformable(c: Constants) -> Grid:
    queries = blocks(c["height"] * c["width"], c["block_queries"])
    return Axis(factor=queries), Axis(factor=c["heads"]), BATCH


def _convolved(c: Constants, length: int) -> int:
    return (length + 2 * c["padding"] - c["kernel"]) // c["stride"] + 1


def _tiles(c: Constants, height: int, width: int) -> int:
    return blocks(height, c["tile_height"]) * blocks(width, c["tile_width"])


def _depthwise(c: Constants) -> Grid:
    tiles = _tiles(c, _convolved(c, c["height"]), _convolved(c, c["width"]))
    return Axis(factor=tiles), Axis(factor=c["channels"] // c["block_channels"]), BATCH


def _embedding(c: Constants) -> Grid:
    cells = _convolved(c, c["height"]) * _convolved(c, c["width"])
    return Axis(factor=blocks(cells, c["block_cells"])), BATCH, ONE


def _perception(c: Constants) -> Grid:
    return Axis(factor=_tiles(c, c["height"], c["width"])), BATCH, ONE


def _positions(c: Constants) -> Grid:
    keys = _convolved(c, c["height"]) * _convolved(c, c["width"])
    return Axis(factor=blocks(keys, c["block_keys"])), Axis(factor=c["groups"]), BATCH


_GRIDS: Final[Mapping[str, Callable[[Constants], Grid]]] = {
    "residual_layer_norm": _norm,
    "bias_gelu": _gelu,
    "window_attention": _windows,
    "neighborhood_attention": _neighborhoods,
    "feature_sampling": _sampling,
    "deformable_attention": _deformable,
    "depthwise_convolution": _depthwise,
    "patch_embedding": _embedding,
    "perception_norm": _perception,
    "sampling_positions": _positions,
}


def grid_of(kernel: str, constants: Constants) -> Grid:
    """Return the grid of the kernel of this name with these constants; KeyError for one that there is not."""
    return _GRIDS[kernel](constants)
