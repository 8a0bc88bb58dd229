"""From a deformable layer's positions and attention to points on the image as it was sent; pure functions in NumPy.

A layer works on a map of `rows` x `columns` cells that covers the model's input. Its positions are (y, x), -1 and 1
being the centres of the outermost cells. Along one axis, with n cells, c pixels of input, r pixels of the resized
image, of which the crop begins at o, and s pixels of the image as sent, a position p is, step by step,

    cells       m = (p + 1) / 2 * (n - 1) + 1/2        the centre of cell 0 is at 1/2, so that cell 0 covers [0, 1)
    input       i = m * d                              a cell covers d pixels, the layer's stride
    resized     z = i + o                              the crop undone
    as sent     x = z * s / r                          the resize undone; it scales each axis by itself

The last cell may reach beyond the input, where its stride does not divide that; where it does, d is c / n.

All these are continuous coordinates: pixel k covers [k, k + 1), its centre is k + 1/2. A resize keeps such coordinates
in proportion, which is what Pillow's does. The way back leads from a point on the image to the cell of a query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.images.preprocessing import Preprocessing

Floats = NDArray[np.float32]
Point: TypeAlias = tuple[float, float]
"""(x, y) in continuous pixels of the image as sent."""


class QueryCell(NamedTuple):
    """One query of a layer's map, from 0."""

    row: int
    column: int


class GroupedPoints(NamedTuple):
    """Where one layer looked: `points` (groups, points, 2), (x, y) on the image as sent, `weights` (groups, points)."""

    points: Floats
    weights: Floats


class Box(NamedTuple):
    """A rectangle on the image as sent, in continuous pixels; right and bottom are not in it."""

    left: float
    top: float
    right: float
    bottom: float

    def holds(self, x: float, y: float) -> bool:
        """Tell whether a point is in it."""
        return self.left <= x < self.right and self.top <= y < self.bottom


@dataclass(frozen=True, slots=True)
class View:
    """An image as sent, `height` x `width` pixels, and how the model saw it."""

    height: int
    width: int
    preprocessing: Preprocessing

    @property
    def seen(self) -> Box:
        """The part that the model saw: the centre crop, on the image as sent."""
        (top, left), (height, width) = self.preprocessing.crop_origin, self.preprocessing.crop
        down, across = self._scale
        return Box(left * across, top * down, (left + width) * across, (top + height) * down)

    @property
    def _scale(self) -> tuple[float, float]:
        """Pixels as sent for one of the resized image, down and across."""
        resize_height, resize_width = self.preprocessing.resize
        return self.height / resize_height, self.width / resize_width

    def points(self, position: Floats, map_size: tuple[int, int], stride: int | None = None) -> Floats:
        """Return positions (..., 2) of a map of (rows, columns) cells, (y, x), as (x, y) on the image as sent.

        Without a `stride` the cells share the input evenly.
        """
        cells = (position.astype(np.float64) + 1) / 2 * (np.array(map_size) - 1) + 0.5
        pixels = cells * self._cell_pixels(map_size, stride) + self.preprocessing.crop_origin
        points: Floats = (pixels * self._scale)[..., ::-1].astype(np.float32)
        return points

    def _cell_pixels(self, map_size: tuple[int, int], stride: int | None) -> tuple[float, float]:
        """Return the input's pixels of one cell, down and across."""
        if stride is not None:
            return stride, stride
        return self.preprocessing.crop[0] / map_size[0], self.preprocessing.crop[1] / map_size[1]

    def cell(self, point: Point, map_size: tuple[int, int], stride: int | None = None) -> QueryCell:
        """Return the cell of a map of (rows, columns) that holds a point within `seen`; `stride` is as in `points`."""
        (x, y), box, (rows, columns) = point, self.seen, map_size
        (height, width), (down, across) = self.preprocessing.crop, self._cell_pixels(map_size, stride)
        row = int((y - box.top) / (box.bottom - box.top) * (height / down))
        column = int((x - box.left) / (box.right - box.left) * (width / across))
        return QueryCell(min(row, rows - 1), min(column, columns - 1))  # a point just inside may round to the border


def weights_of(attention: Floats, map_size: tuple[int, int], query: QueryCell | None) -> Floats:
    """Return what each point received: (groups, queries, points) to (groups, points).

    That is the mean over all queries, or what `query` gave of a map of (rows, columns).
    """
    if query is not None:
        chosen: Floats = attention[:, query.row * map_size[1] + query.column]
        return chosen
    mean: Floats = attention.mean(1, dtype=np.float64).astype(np.float32)
    return mean
