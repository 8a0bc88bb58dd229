"""Where the tiny model looked: points on the image as sent, weights, queries, pictures, and every way to be refused."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from service.engine.in_process import InProcessEngine
from service.engine.types import Answer
from service.http.answers.schemas import ExplainResponse
from service.images import overlay
from service.model.directory import ModelDirectory, open_model
from tests.service import tiny_explain, tiny_model
from tests.service.conftest import GatedSession, Served, serving
from tests.service.pictures import encoded, naive, photo, pixels

EXPLAIN = "/v1/explain"
WIDTH, HEIGHT = 120, 90
PHOTO = photo("PNG", width=WIDTH, height=HEIGHT, seed=3)
PNG: dict[str, Any] = {"content": PHOTO, "headers": {"Content-Type": "image/png", "Accept": "image/png"}}
RAW: dict[str, Any] = {"content": PHOTO, "headers": {"Content-Type": "image/png"}}


def place_on_image(y: float, x: float, rows: int, columns: int, width: int, height: int) -> list[float]:
    """One position as a point of the image as sent, one step after the other."""
    cell_x = (x + 1) / 2 * (columns - 1) + 0.5
    cell_y = (y + 1) / 2 * (rows - 1) + 0.5
    input_x = cell_x * tiny_model.SIZE / columns
    input_y = cell_y * tiny_model.SIZE / rows
    margin = (tiny_model.RESIZE - tiny_model.SIZE) / 2
    return [(input_x + margin) / tiny_model.RESIZE * width, (input_y + margin) / tiny_model.RESIZE * height]


def assert_explains(result: dict[str, Any], data: bytes, *, layers: tuple[int, ...] = (0, 1)) -> None:
    """Assert that a result is what the naive computation says of an image, for all queries together."""
    told = tiny_explain.reference(naive(data)[None])
    width, height = Image.open(io.BytesIO(data)).size
    assert (result["width"], result["height"]) == (width, height)
    assert [layer["layer"] for layer in result["layers"]] == list(layers)
    for layer in result["layers"]:
        number, record = layer["layer"], tiny_explain.RECORD.layers[layer["layer"]]
        assert layer["query"] is None
        assert (layer["name"], layer["stage"], layer["block"]) == (record.name, record.stage, record.block)
        assert (layer["query_rows"], layer["query_columns"]) == (record.query_rows, record.query_columns)
        assert len(layer["groups"]) == record.groups
        for index, group in enumerate(layer["groups"]):
            points = [
                place_on_image(y, x, record.query_rows, record.query_columns, width, height)
                for y, x in told[f"position{number}"][0, index].tolist()
            ]
            np.testing.assert_allclose(group["points"], points, atol=1e-3)
            heeded = told[f"attention{number}"][0, index]
            weights = [sum(row[point] for row in heeded.tolist()) / len(heeded) for point in range(record.points)]
            np.testing.assert_allclose(group["weights"], weights, atol=1e-5)
            assert sum(group["weights"]) == pytest.approx(1, abs=1e-5)


async def test_points_and_weights_are_those_of_a_naive_computation(served: Served) -> None:
    images = [PHOTO, photo("JPEG", seed=1, width=64, height=200, quality=100), photo("BMP", width=5, height=4)]
    body = {"images": [base64.b64encode(image).decode() for image in images]}
    response = await served.http.post(EXPLAIN, json=body)
    assert response.status_code == 200
    answer = response.json()
    TypeAdapter(ExplainResponse).validate_python(answer)
    assert list(answer) == ["model", "results", "request_id", "timings_ms"]
    assert (response.headers["x-model-name"], response.headers["x-model-version"]) == ("tiny", "3")
    assert "inference;dur=" in response.headers["server-timing"]
    for index, (result, data) in enumerate(zip(answer["results"], images, strict=True)):
        assert (result["index"], result["filename"]) == (index, None)
        assert_explains(result, data)


async def test_large_answers_are_the_same_as_small_ones(served: Served) -> None:
    files = [("image", (f"{number}.png", PHOTO, "image/png")) for number in range(64)]
    results = (await served.http.post(EXPLAIN, files=files)).json()["results"]
    assert [result["filename"] for result in results] == [f"{number}.png" for number in range(64)]
    for index in (0, 63):
        assert_explains(results[index], PHOTO)


async def test_one_layer_can_be_asked_for(served: Served) -> None:
    response = await served.http.post(f"{EXPLAIN}?layer=1", **RAW)
    assert_explains(response.json()["results"][0], PHOTO, layers=(1,))


async def test_a_layer_that_is_none_is_refused_with_their_number(served: Served) -> None:
    for layer in ("2", "-1", "x"):
        response = await served.http.post(f"{EXPLAIN}?layer={layer}", **RAW)
        assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
    assert "2 deformable layers" in (await served.http.post(f"{EXPLAIN}?layer=2", **RAW)).json()["detail"]


LEFT, RIGHT = WIDTH * 4 / 64, WIDTH * 60 / 64
TOP, BOTTOM = HEIGHT * 4 / 64, HEIGHT * 60 / 64


@pytest.mark.parametrize(
    ("x", "y", "row", "column"),
    [
        (LEFT, TOP, 0, 0),
        (RIGHT - 1e-6, BOTTOM - 1e-6, 3, 3),
        (LEFT + 0.49 * (RIGHT - LEFT), TOP + 0.51 * (BOTTOM - TOP), 2, 1),
        (LEFT + 0.76 * (RIGHT - LEFT), TOP + 0.24 * (BOTTOM - TOP), 0, 3),
    ],
)
async def test_query_takes_the_attention_of_the_cell_that_holds_it(
    served: Served, x: float, y: float, row: int, column: int
) -> None:
    response = await served.http.post(f"{EXPLAIN}?query={x:.9f},{y:.9f}", **RAW)
    first, second = response.json()["results"][0]["layers"]
    assert first["query"] == {"row": row, "column": column}
    assert second["query"] == {"row": row // 2, "column": 0}
    told = tiny_explain.reference(naive(PHOTO)[None])["attention0"][0]
    for group, heeded in zip(first["groups"], told, strict=True):
        np.testing.assert_allclose(group["weights"], heeded[row * 4 + column], atol=1e-5)
        assert sum(group["weights"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "query", [f"{LEFT - 0.01},40", f"{RIGHT},40", f"40,{TOP - 0.01}", f"40,{BOTTOM}", "-1,40", "1,1"]
)
async def test_query_outside_of_what_the_model_saw_is_refused_with_the_range(served: Served, query: str) -> None:
    before = served.sample("dat_batch_size_count")
    response = await served.http.post(f"{EXPLAIN}?query={query}", **RAW)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "invalid_parameter")
    assert "x from 7.5 up to 112.5 and y from 5.625 up to 84.375 of image 0, which is 120 x 90" in problem["detail"]
    assert served.sample("dat_batch_size_count") == before  # nothing was inferred
    assert served.engine.slots_in_use == 0


@pytest.mark.parametrize(
    "query", ["", "12", "12,", "1,2,3", "a,b", "nan,1", "inf,inf", "1;2", "1e1,2", " 1,2", "1,2\n"]
)
async def test_query_that_is_no_place_is_refused(served: Served, query: str) -> None:
    response = await served.http.post(EXPLAIN, params={"query": query}, **RAW)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
    assert "query: give x,y in pixels" in response.json()["detail"]


async def test_query_is_checked_against_every_image(served: Served) -> None:
    files = [("image", (f"{size}.png", photo("PNG", width=size, height=90), "image/png")) for size in (120, 40)]
    response = await served.http.post(f"{EXPLAIN}?query=60,45", files=files)
    assert response.status_code == 422
    assert "of image 1, which is 40 x 90" in response.json()["detail"]


async def test_skip_answers_the_good_images_and_marks_the_bad_ones(served: Served) -> None:
    body = {"images": [base64.b64encode(image).decode() for image in (b"text", PHOTO)]}
    response = await served.http.post(f"{EXPLAIN}?on_error=skip", json=body)
    bad, good = response.json()["results"]
    assert bad == {"index": 0, "filename": None, "error": bad["error"]}
    assert bad["error"]["code"] == "unsupported_format"
    assert_explains(good, PHOTO)
    refused = await served.http.post(EXPLAIN, json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_image")


async def test_oriented_images_are_explained_as_they_are_seen(model: ModelDirectory) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(pixels(WIDTH, HEIGHT))
    turned = encoded(upright, "PNG", exif=exif.tobytes())
    seen = encoded(upright.transpose(Image.Transpose.ROTATE_270), "PNG")
    async with serving(model, exif_orientation=True) as served:
        result = (await served.http.post(EXPLAIN, content=turned, headers=RAW["headers"])).json()["results"][0]
        assert_explains(result, seen)
        picture = await served.http.post(EXPLAIN, content=turned, headers=PNG["headers"])
        size = Image.open(io.BytesIO(picture.content)).size
    async with serving(model) as served:
        result = (await served.http.post(EXPLAIN, content=turned, headers=RAW["headers"])).json()["results"][0]
        assert_explains(result, encoded(upright, "PNG"))
    assert size[0] / size[1] == HEIGHT / WIDTH


async def test_picture_has_each_group_in_its_colour_where_the_points_are(served: Served) -> None:
    grey = encoded(Image.new("RGB", (600, 500), (128, 128, 128)), "PNG")
    (layer,) = (await served.http.post(f"{EXPLAIN}?layer=0", content=grey, headers=RAW["headers"])).json()["results"][
        0
    ]["layers"]
    response = await served.http.post(f"{EXPLAIN}?layer=0", content=grey, headers=PNG["headers"])
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert response.headers["x-model-name"] == "tiny"
    assert "total;dur=" in response.headers["server-timing"]
    picture = Image.open(io.BytesIO(response.content))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (600, 500))
    group = layer["groups"][-1]  # drawn last where all weigh alike
    x, y = group["points"][-1]
    colour = np.array(overlay.PALETTE[1])
    under = np.array(picture.getpixel((int(x), int(y))), float)
    assert np.abs(under - colour).sum() < np.abs(np.array(overlay.PALETTE[0]) - under).sum()


async def test_picture_is_of_the_last_layer_unless_another_is_asked_for(served: Served) -> None:
    default, last, first = [
        (await served.http.post(f"{EXPLAIN}{query}", **PNG)).content for query in ("", "?layer=1", "?layer=0")
    ]
    assert default == last != first


async def test_picture_is_of_exactly_one_image(served: Served) -> None:
    before = served.sample("dat_batch_size_count")
    files = [("image", (name, PHOTO, "image/png")) for name in "ab"]
    response = await served.http.post(EXPLAIN, files=files, headers={"Accept": "image/png"})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
    assert "exactly one image" in response.json()["detail"]
    assert served.sample("dat_batch_size_count") == before


@pytest.mark.parametrize("on_error", ["fail", "skip"])
async def test_picture_of_a_bad_image_is_refused(served: Served, on_error: str) -> None:
    response = await served.http.post(f"{EXPLAIN}?on_error={on_error}", content=b"text", headers=PNG["headers"])
    assert (response.status_code, response.json()["code"]) == (422, "bad_image")


async def test_other_forms_are_not_acceptable(served: Served) -> None:
    response = await served.http.post(EXPLAIN, content=PHOTO, headers={"Accept": "application/x-npz"})
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")


async def test_unknown_model_comes_before_everything_else(served: Served) -> None:
    response = await served.http.post(f"{EXPLAIN}?model=other&layer=99", **RAW)
    assert (response.status_code, response.json()["code"]) == (404, "unknown_model")


async def test_model_says_which_layers_it_can_explain(served: Served) -> None:
    details = (await served.http.get("/v1/models/tiny")).json()
    first = {
        "layer": 0, "name": "stages.2.attns.0", "stage": 3, "block": 1, "groups": 2, "points": 4, "query_rows": 4,
        "query_columns": 4,
    }  # fmt: skip
    assert details["explain"]["layers"][0] == first
    assert len(details["explain"]["layers"]) == 2


@pytest.fixture
async def without(model: ModelDirectory, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """A server that cannot explain, since the setting is off or since the model was exported so."""
    if request.param == "off":
        async with serving(model, explain=False) as served:
            yield served
    else:
        async with serving(open_model(tiny_model.write(tmp_path, explain=False))) as served:
            yield served


@pytest.mark.parametrize(
    ("without", "way"), [("off", "setting explain is off"), ("absent", "without --no-explain")], indirect=["without"]
)
async def test_service_that_cannot_explain_says_so_and_how_it_could(without: Served, way: str) -> None:
    response = await without.http.post(EXPLAIN, **RAW)
    assert (response.status_code, response.json()["code"]) == (404, "explain_unavailable")
    assert way in response.json()["detail"]
    assert (await without.http.get("/v1/models/tiny")).json()["explain"] is None
    assert (await without.http.post("/v1/classify", **RAW)).status_code == 200


def queued_event(engine: InProcessEngine, calls: int) -> asyncio.Event:
    """Return an event that is set when so many more calls have given their images to the engine."""
    queued, infer, left = asyncio.Event(), engine.infer, iter(range(calls - 1, -1, -1))

    def watch(*images: Any, **terms: Any) -> Coroutine[object, object, list[Answer]]:
        if next(left) == 0:
            queued.set()  # the images enter the queue in this same step of the event loop
        return infer(*images, **terms)

    engine.infer = watch  # type: ignore[method-assign]
    return queued


async def test_explain_shares_batches_with_nobody_and_limits_with_all(model: ModelDirectory) -> None:
    session = GatedSession()
    async with serving(model, session, max_queued_images=4, max_images=4) as served:
        session.close()
        calls = [asyncio.create_task(served.http.post("/v1/classify", **RAW))]
        await session.run_began()
        waiting = queued_event(served.engine, 3)
        calls += [asyncio.create_task(served.http.post(path, **RAW)) for path in (EXPLAIN, "/v1/classify", EXPLAIN)]
        await waiting.wait()
        full = await served.http.post(EXPLAIN, **RAW)
        assert (full.status_code, full.json()["code"]) == (429, "overloaded")
        session.gate.set()
        answers = await asyncio.gather(*calls)
        assert [answer.status_code for answer in answers] == [200] * 4
        # The first, then one of classification, and the explanations in one or in two, as the measured times have it;
        # the session has no answer for a batch of both.
        assert len(session.sizes) in (3, 4)
        assert_explains(answers[1].json()["results"][0], PHOTO)
