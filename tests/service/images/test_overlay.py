"""The picture: colours where the points are, sizes by weight, and images of every size."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.images.overlay import LEAST_SIDE, MOST_SIDE, OPACITY, PALETTE, as_png, draw

GREY = (100, 100, 100)


def drawn(
    points: list[list[tuple[float, float]]],
    weights: list[list[float]],
    *,
    size: tuple[int, int] = (800, 600),
    seen: tuple[float, float, float, float] | None = None,
    query: tuple[float, float] | None = None,
) -> NDArray[np.int64]:
    picture = draw(
        Image.new("RGB", size, GREY),
        points=np.array(points, np.float32),
        weights=np.array(weights, np.float32),
        seen=seen or (0.0, 0.0, *map(float, size)),
        query=query,
    )
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(np.int64)


def through(colour: tuple[int, int, int]) -> NDArray[np.float64]:
    """What a disc of a colour looks like on grey."""
    return np.array(colour) * OPACITY + np.array(GREY) * (1 - OPACITY)


@pytest.mark.parametrize("groups", [1, 8, 16])
def test_every_groups_points_have_its_colour(groups: int) -> None:
    points = [[(25.0 + 50 * group, 100.5), (25.0 + 50 * group, 400.5)] for group in range(groups)]
    pixels = drawn(points, [[0.5, 0.5]] * groups)
    for group, places in enumerate(points):
        for x, y in places:
            np.testing.assert_allclose(pixels[int(y), int(x)], through(PALETTE[group % 8]), atol=2)
    assert (pixels[250] == GREY).all()


def test_ninth_group_has_the_first_ones_colour_in_another_outline() -> None:
    points = [[(25.0 + 50 * group, 100.5)] for group in range(9)]
    row = drawn(points, [[1.0]] * 9)[100]
    assert row[:50].max() == 255
    assert row[400:450].min() == 0


def test_area_grows_with_the_weight() -> None:
    pixels = drawn([[(200.0, 300.0), (600.0, 300.0)]], [[0.8, 0.2]])
    changed = (pixels != GREY).any(-1)
    heavy, light = int(changed[:, :400].sum()), int(changed[:, 400:].sum())
    assert heavy / light == pytest.approx(4, rel=0.15)


def test_light_points_are_drawn_over_heavy_ones() -> None:
    pixels = drawn([[(400.0, 300.0)], [(400.0, 300.0)]], [[0.9], [0.1]])
    under = through(PALETTE[0]) * (1 - OPACITY) + np.array(PALETTE[1]) * OPACITY
    np.testing.assert_allclose(pixels[300, 400], under, atol=2)


def test_points_outside_of_the_image_do_no_harm() -> None:
    pixels = drawn([[(-5.0, 300.0), (-500.0, 9000.0), (805.0, -1.0)]], [[0.4, 0.3, 0.3]])
    assert (pixels[300, 5] != GREY).any()  # the part of the disc that is on it
    assert (pixels[200:250, 300:500] == GREY).all()


def test_query_is_marked_and_only_where_there_is_one() -> None:
    assert (drawn([[(10.0, 10.0)]], [[1.0]], query=(400, 300))[300, 400] == 255).all()
    assert (drawn([[(10.0, 10.0)]], [[1.0]])[300, 400] == GREY).all()


def test_border_of_the_crop_is_faint_and_absent_where_all_is_seen() -> None:
    pixels = drawn([[(400.0, 300.0)]], [[1.0]], seen=(50, 40, 750, 560))
    assert all(pixels[y, x].min() > 120 for y, x in ((40, 400), (559, 400), (200, 50), (200, 749)))
    assert pixels[40, 400].max() < 255
    assert (drawn([[(400.0, 300.0)]], [[1.0]])[0] == GREY).all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((800, 600), (800, 600)),
        ((4000, 1000), (MOST_SIDE, 400)),
        ((28, 28), (LEAST_SIDE, LEAST_SIDE)),
        ((1, 30000), (1, MOST_SIDE)),
        ((1, 1), (LEAST_SIDE, LEAST_SIDE)),
    ],
)
def test_picture_is_neither_huge_nor_too_small_to_see(size: tuple[int, int], expected: tuple[int, int]) -> None:
    pixels = drawn([[(size[0] / 2, size[1] / 2)]], [[1.0]], size=size)
    assert pixels.shape[1::-1] == expected
    centre = pixels[expected[1] // 2, expected[0] // 2]
    np.testing.assert_allclose(centre, through(PALETTE[0]), atol=2)


def test_weights_of_nothing_are_drawn_too() -> None:
    assert (drawn([[(400.0, 300.0)]], [[0.0]])[300, 400] != GREY).any()


def test_png_holds_the_picture() -> None:
    picture = Image.new("RGB", (30, 20), GREY)
    read = Image.open(io.BytesIO(as_png(picture)))
    assert (read.format, read.size, read.getpixel((3, 4))) == ("PNG", (30, 20), GREY)
