"""From positions to pixels and back, for sizes and crops of every kind."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.images.points import QueryCell, View, weights_of
from service.images.preprocessing import Preprocessing, resize_and_crop

PUBLISHED = Preprocessing(resize=(256, 256), crop=(224, 224))
WHOLE = Preprocessing(resize=(384, 384), crop=(384, 384))
ODD = Preprocessing(resize=(37, 50), crop=(32, 41))


def test_outermost_positions_are_the_centres_of_the_outermost_cells() -> None:
    view = View(480, 640, WHOLE)
    points = view.points(np.array([[-1, -1], [1, 1], [0, 0]], np.float32), (12, 12))
    np.testing.assert_allclose(points, [[640 / 24, 20], [640 - 640 / 24, 460], [320, 240]], atol=1e-3)


def test_crop_and_resize_are_undone() -> None:
    view = View(512, 1024, PUBLISHED)  # an image twice and four times the resized one
    assert view.seen == (64, 32, 960, 480)
    (point,) = view.points(np.array([[-1, 1]], np.float32), (14, 14))
    np.testing.assert_allclose(point, [(16 + 224 - 8) * 4, (16 + 8) * 2], atol=1e-3)


@pytest.mark.parametrize("preprocessing", [PUBLISHED, WHOLE, ODD])
def test_what_the_model_sees_at_a_cell_is_what_the_image_shows_there(preprocessing: Preprocessing) -> None:
    """One bright patch of an image: where the preprocessing puts it is where the points say that it came from."""
    height, width = 300, 500
    image = np.zeros((height, width, 3), np.uint8)
    image[120:160, 300:340] = 255
    seen = resize_and_crop(Image.fromarray(image), preprocessing)[..., 0].astype(float)
    rows, columns = np.indices(seen.shape) + 0.5
    place = np.array([(seen * rows).sum(), (seen * columns).sum()]) / seen.sum()  # in pixels of the input
    crop = np.array(preprocessing.crop)
    position = ((place - 0.5) / (crop - 1) * 2 - 1).astype(np.float32)  # on a map whose cells are the pixels
    point = View(height, width, preprocessing).points(position, preprocessing.crop)
    np.testing.assert_allclose(point, [320, 140], atol=1.0)


@given(
    row=st.integers(0, 6),
    column=st.integers(0, 8),
    across=st.floats(0.01, 0.99),
    down=st.floats(0.01, 0.99),
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    preprocessing=st.sampled_from([PUBLISHED, WHOLE, ODD]),
)
def test_every_place_in_a_cell_leads_to_that_cell(
    row: int, column: int, across: float, down: float, height: int, width: int, preprocessing: Preprocessing
) -> None:
    view = View(height, width, preprocessing)
    left, top, right, bottom = view.seen
    place = left + (column + across) / 9 * (right - left), top + (row + down) / 7 * (bottom - top)
    assert view.seen.holds(*place)
    assert view.cell(place, (7, 9)) == (row, column)
    centre = view.points(np.array([row / 6 * 2 - 1, column / 8 * 2 - 1], np.float32), (7, 9))
    assert view.cell((float(centre[0]), float(centre[1])), (7, 9)) == (row, column)


def test_border_of_what_was_seen_belongs_to_it_on_the_left_and_top_alone() -> None:
    seen = View(256, 256, PUBLISHED).seen
    assert seen.holds(16, 16)
    assert seen.holds(239.999, 239.999)
    assert not any(seen.holds(*place) for place in ((15.999, 100), (100, 15.999), (240, 100), (100, 240)))


def test_weights_are_the_mean_over_queries_or_one_row() -> None:
    attention = np.random.default_rng(0).dirichlet(np.ones(5), (2, 6)).astype(np.float32)  # 2 groups, 2 x 3 queries
    np.testing.assert_allclose(weights_of(attention, (2, 3), None), attention.mean(1), atol=1e-7)
    np.testing.assert_array_equal(weights_of(attention, (2, 3), QueryCell(1, 2)), attention[:, 5])
    np.testing.assert_array_equal(weights_of(attention, (2, 3), QueryCell(0, 1)), attention[:, 1])


def test_cells_that_the_image_fills_in_part_are_as_wide_as_the_others() -> None:
    """A map of 3 x 5 cells, 32 pixels each, over an input of 70 x 130."""
    view = View(140, 130, Preprocessing(resize=(70, 130), crop=(70, 130)))
    points = view.points(np.array([[-1, -1], [0, 0], [1, 1]], np.float32), (3, 5), 32)
    np.testing.assert_allclose(points, [[16, 32], [80, 96], [144, 160]], atol=1e-3)  # the last is beyond the image
    assert view.cell((127.9, 127.9), (3, 5), 32) == QueryCell(1, 3)
    assert view.cell((128.1, 128.1), (3, 5), 32) == QueryCell(2, 4)
    assert view.cell((129.9, 139.9), (3, 5), 32) == QueryCell(2, 4)
