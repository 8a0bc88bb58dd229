"""The picture of where a layer looked: the image as sent, and on it the sampled points, larger where they weigh more.

As in the papers' figures every point is a filled, translucent disc. Each group of heads has a colour of its own, of a
palette that people with any usual colour vision can tell apart (Okabe and Ito, 2008), and from the ninth group on the
same again with a dark outline in place of the white one. What the model did not see, outside of the crop, is marked by
a faint frame. Pure functions; they take their time, and belong in a thread.
"""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (150, 150, 150),
)
"""The groups' colours, RGB."""
MOST_SIDE = 1600
"""A picture's longer side, in pixels: larger images are shrunk to it."""
LEAST_SIDE = 448
"""Smaller images are enlarged, by a whole factor, until their longer side is at least this: discs need room."""
OPACITY = 0.6
"""Of a disc's inside; its outline is opaque."""

_LARGEST_RADIUS, _SMALLEST_RADIUS = 1 / 40, 1 / 200
"""Of the discs, as shares of the longer side; their areas grow with the weight."""
_FINE = 4
"""Discs are drawn so many times as large, and shrunk, for smooth edges."""
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_FRAME = (255, 255, 255, 110)

Floats = NDArray[np.float32]


def picture_scale(width: int, height: int) -> float:
    """Return how many pixels of the picture one of the image takes."""
    longer = max(width, height)
    if longer > MOST_SIDE:
        return MOST_SIDE / longer
    return float(math.ceil(LEAST_SIDE / longer)) if longer < LEAST_SIDE else 1.0


def draw(
    image: Image.Image,
    *,
    points: Floats,
    weights: Floats,
    seen: tuple[float, float, float, float],
    query: tuple[float, float] | None,
) -> Image.Image:
    """Return the picture, RGB.

    `points` (groups, points, 2) are (x, y), `seen` is (left, top, right, bottom) and `query` a point (x, y), all in
    continuous pixels of the image; `weights` (groups, points) are at least 0.
    """
    scale = picture_scale(image.width, image.height)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    filtering = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    picture = image.convert("RGB")
    if size != picture.size:
        picture = picture.resize(size, filtering)
    across, down = size[0] / image.width, size[1] / image.height
    _draw_frame(picture, (seen[0] * across, seen[1] * down, seen[2] * across, seen[3] * down))
    longer, heaviest = max(size), float(weights.max())
    # the heavy ones first, so that none hides one that is smaller
    for group, point in zip(*np.unravel_index(np.argsort(-weights, axis=None), weights.shape), strict=True):
        share = float(weights[group, point]) / heaviest if heaviest > 0 else 0.0
        x, y = points[group, point].tolist()
        radius = max(_LARGEST_RADIUS * math.sqrt(share), _SMALLEST_RADIUS) * longer
        _draw_disc(picture, (x * across, y * down), radius, int(group))
    if query is not None:
        _draw_cross(picture, (query[0] * across, query[1] * down), _LARGEST_RADIUS * longer)
    return picture


def as_png(picture: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)  # twice the usual size costs less than five times the time
    return file.getvalue()


def _draw_frame(picture: Image.Image, box: tuple[float, float, float, float]) -> None:
    """Draw the border of what the model saw, where that is not the whole picture."""
    left, top, right, bottom = (round(edge) for edge in box)
    if (left, top, right, bottom) != (0, 0, *picture.size):
        ImageDraw.Draw(picture, "RGBA").rectangle((left, top, right - 1, bottom - 1), outline=_FRAME)


def _draw_disc(picture: Image.Image, centre: tuple[float, float], radius: float, group: int) -> None:
    colour = PALETTE[group % len(PALETTE)]
    outline = _BLACK if group // len(PALETTE) % 2 else _WHITE
    edge = max(radius / 8, 1.0)
    _paint(picture, centre, radius + edge, radius, outline, 1.0)
    _paint(picture, centre, radius, 0.0, colour, OPACITY)


def _paint(
    picture: Image.Image,
    centre: tuple[float, float],
    outer: float,
    inner: float,
    colour: tuple[int, int, int],
    opacity: float,
) -> None:
    """Paint what lies between two circles; a pixel counts by the part of it that does."""
    (x, y), reach = centre, math.ceil(outer) + 1
    left, top = math.floor(x) - reach, math.floor(y) - reach
    if left >= picture.width or top >= picture.height or left + 2 * reach < 0 or top + 2 * reach < 0:
        return
    side = 2 * reach + 1
    mask = Image.new("L", (side * _FINE, side * _FINE))
    drawing, level = ImageDraw.Draw(mask), round(255 * opacity)
    for radius, value in ((outer, level), (inner, 0)):
        if radius > 0:
            box = [(centred + sign * radius) * _FINE for sign in (-1, 1) for centred in (x - left, y - top)]
            drawing.ellipse((box[0], box[1], box[2] - 1, box[3] - 1), fill=value)
    picture.paste(colour, (left, top), mask.resize((side, side), Image.Resampling.BOX))


def _draw_cross(picture: Image.Image, centre: tuple[float, float], length: float) -> None:
    """Mark the query: a white cross with a dark edge."""
    drawing, (x, y) = ImageDraw.Draw(picture), centre
    width = max(round(length / 5), 1)
    for colour, more in ((_BLACK, 2), (_WHITE, 0)):
        drawing.line((x - length, y, x + length, y), fill=colour, width=width + more)
        drawing.line((x, y - length, x, y + length), fill=colour, width=width + more)
