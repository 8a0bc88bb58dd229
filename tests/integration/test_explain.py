"""Where published networks look, from the command's export to points on the image that was sent."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.model.directory import open_model
from tests.conftest import ExportOnce
from tests.golden import synthetic
from tests.golden_files import golden_files
from tests.integration.conftest import service_process

RESIZED, SIDE = 256, 224
MARGIN = 16
POINT_TOLERANCE = 1e-4 * SIDE / 2
"""In pixels: a position that is off by 1e-4 is off by so much at most."""


def naive_point(y: float, x: float, cells: int) -> list[float]:
    """Where a position lies on an image of the resized image's own size: one step after the other, for one point."""
    point = []
    for position in (x, y):
        centre_of_first_cell = SIDE / cells / 2
        centre_of_last_cell = SIDE - centre_of_first_cell
        in_crop = centre_of_first_cell + (position + 1) / 2 * (centre_of_last_cell - centre_of_first_cell)
        point.append(MARGIN + in_crop)
    return point


def framed(image: np.ndarray) -> bytes:
    """A PNG of the resized image's size whose centre, which is all that the model sees, is this image, bit by bit."""
    pixels = np.zeros((RESIZED, RESIZED, 3), np.uint8)
    pixels[MARGIN:-MARGIN, MARGIN:-MARGIN] = image
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def assert_published(layers: list[dict[str, Any]], expected: dict[str, np.ndarray], image: int) -> None:
    assert [layer["name"] for layer in layers] == expected["layers"].tolist()
    for layer in layers:
        published = expected[f"position/{layer['name']}"][image]
        for group, positions in zip(layer["groups"], published, strict=True):
            points = [naive_point(y, x, layer["query_rows"]) for row in positions.tolist() for y, x in row]
            np.testing.assert_allclose(group["points"], points, atol=POINT_TOLERANCE, rtol=0)
            assert sum(group["weights"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("workers", [1, 2])
def test_points_are_those_of_the_published_code(exported: ExportOnce, workers: int) -> None:
    """With one process, and with the results passing through shared memory."""
    golden = next(golden for golden in golden_files() if golden.id == "dat_tiny-224x224")
    expected = golden.arrays()
    repository = exported("dat_tiny")
    image = synthetic.images(golden.seed, 2, golden.height, golden.width)[0]
    options = ("--workers", str(workers), "--threads", "1", "--batch-buckets", "1,2")
    with (
        service_process(repository, *options) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{process.port}", timeout=60) as client,
    ):
        answer = client.post("/v1/explain", content=framed(image), headers={"Content-Type": "image/png"})
        assert answer.status_code == 200
        (result,) = answer.json()["results"]
        assert (result["width"], result["height"]) == (RESIZED, RESIZED)
        assert_published(result["layers"], expected, 0)
        entries = client.get("/v1/models/dat_tiny").json()["explain"]["layers"]
    record = open_model(repository / "dat_tiny" / "1").manifest.explain
    assert record is not None
    assert [entry["name"] for entry in entries] == [layer.name for layer in record.layers]
