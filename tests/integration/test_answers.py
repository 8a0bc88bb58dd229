"""From a photo to an answer: what a server says of real images, whose model was exported from weights."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from models.demo.digits import Digits, training_and_held_out
from tests.conftest import ExportOnce
from tests.golden_files import golden_files
from tests.integration.conftest import service_process
from tests.integration.strokes import draw

BATCH = 60
PHOTO_TOLERANCE = 1e-3


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module", params=[("dat_tiny", "gridsample"), ("dat_pp_tiny", "gather")], ids="-".join)
def photographed(request: pytest.FixtureRequest, exported: ExportOnce) -> Iterator[tuple[httpx.Client, np.ndarray]]:
    """A server of a variant with golden weights, and the golden logits of the two photos."""
    variant, sampling = request.param
    golden = next(golden for golden in golden_files() if golden.id == f"{variant}-224x224")
    with (
        service_process(exported(variant, sampling), "--threads", "1", "--batch-buckets", "1,4") as process,
        httpx.Client(base_url=f"http://127.0.0.1:{process.port}", timeout=60) as client,
    ):
        yield client, golden.arrays()["photo_logits"]


def logits_of(response: httpx.Response) -> np.ndarray:
    response.raise_for_status()
    return np.asarray([result["features"]["logits"] for result in response.json()["results"]])


def test_photos_sent_alone_get_the_published_logits(photographed: tuple[httpx.Client, np.ndarray]) -> None:
    client, expected = photographed
    for photo, logits in zip(load_sample_images().images, expected, strict=True):
        response = client.post("/v1/features?outputs=logits", content=png(photo), headers={"Content-Type": "image/png"})
        np.testing.assert_allclose(logits_of(response)[0], logits, atol=PHOTO_TOLERANCE, rtol=0)


def test_photos_in_mixed_batches_get_the_published_logits(photographed: tuple[httpx.Client, np.ndarray]) -> None:
    """Photos and noise, in requests of several and of one, in flight together."""
    client, expected = photographed
    china, flower = (png(photo) for photo in load_sample_images().images)
    noise = png(np.random.default_rng(3).integers(0, 256, (50, 70, 3), np.uint8))

    def ask(images: list[bytes]) -> np.ndarray:
        files = [("image", (f"{index}.png", image, "image/png")) for index, image in enumerate(images)]
        return logits_of(client.post("/v1/features?outputs=logits&outputs=embedding", files=files))

    requests = [[china], [noise, flower, noise], [flower, china], [noise], [china, noise]]
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(ask, requests))
    for images, answer in zip(requests, answers, strict=True):
        for image, logits in zip(images, answer, strict=True):
            if image is not noise:
                wanted = expected[0] if image is china else expected[1]
                np.testing.assert_allclose(logits, wanted, atol=PHOTO_TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def demo(exported: ExportOnce) -> Iterator[httpx.Client]:
    with (
        service_process(exported("dat_demo"), "--threads", "1") as process,
        httpx.Client(base_url=f"http://127.0.0.1:{process.port}", timeout=60) as client,
    ):
        yield client


def read(client: httpx.Client, images: list[bytes]) -> list[str]:
    """Return the most probable label of each image."""
    labels = []
    for start in range(0, len(images), BATCH):
        files = [("image", ("digit.png", image, "image/png")) for image in images[start : start + BATCH]]
        response = client.post("/v1/classify?top_k=1", files=files)
        response.raise_for_status()
        results: list[dict[str, Any]] = response.json()["results"]
        labels += [result["predictions"][0]["label"] for result in results]
    return labels


def accuracy(labels: list[str], digits: list[int]) -> float:
    return float(np.mean([label == str(digit) for label, digit in zip(labels, digits, strict=True)]))


@pytest.fixture(scope="module")
def held_out() -> Digits:
    return training_and_held_out()[1]


def test_the_demo_reads_the_digits_that_it_never_saw(demo: httpx.Client, held_out: Digits) -> None:
    labels = read(demo, [png(image) for image in held_out.images])
    assert accuracy(labels, held_out.classes.tolist()) >= 0.97


def test_the_demo_reads_them_dark_on_light(demo: httpx.Client, held_out: Digits) -> None:
    labels = read(demo, [png(255 - image) for image in held_out.images])
    assert accuracy(labels, held_out.classes.tolist()) >= 0.97


@pytest.mark.parametrize("dark_on_light", [True, False])
@pytest.mark.parametrize("width", [10, 16, 24, 34])
def test_the_demo_reads_what_a_mouse_draws(demo: httpx.Client, width: int, dark_on_light: bool) -> None:
    """Strokes of any width on a canvas of 280 pixels, moved, turned and scaled a little."""
    digits = [digit for digit in range(10) for _ in range(4)]
    random = np.random.default_rng(width)
    drawings = [png(draw(digit, width=width, dark_on_light=dark_on_light, random=random)) for digit in digits]
    assert accuracy(read(demo, drawings), digits) >= 0.85


def test_training_and_held_out_digits_share_no_image() -> None:
    training, held_out = training_and_held_out()
    assert len(held_out.images) == 360
    seen = {image.tobytes() for image in training.images}
    assert sum(image.tobytes() in seen for image in held_out.images) == 0
