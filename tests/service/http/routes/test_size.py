"""`size`: inputs of other sizes than the model's own, under `/v1` and `/v2`."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.model.directory import ModelDirectory, open_model
from tests.service import tiny_dynamic, tiny_model
from tests.service.conftest import Served, serving
from tests.service.pictures import naive, photo

IMAGE = photo("PNG", width=90, height=70)
SIZES = {
    "84": ((96, 96), (84, 84)),  # 64 to 56, in proportion
    "57": ((65, 65), (57, 57)),
    "33x91": ((33, 91), (33, 91)),
    "56x56": ((56, 56), (56, 56)),
    "56": ((64, 64), (56, 56)),
}


@pytest.fixture
def dynamic_model(tmp_path: Path) -> ModelDirectory:
    return open_model(tiny_dynamic.write(tmp_path))


@pytest.fixture
async def dynamic(dynamic_model: ModelDirectory) -> AsyncIterator[Served]:
    async with serving(dynamic_model, max_input_pixels=20_000) as running:
        yield running


def seen(size: str, data: bytes = IMAGE) -> np.ndarray:
    resize, crop = SIZES[size]
    return naive(data, resize=resize, crop=crop)


async def ask(served: Served, path: str, **headers: str) -> Any:
    return await served.http.post(path, content=IMAGE, headers={"content-type": "image/png", **headers})


@pytest.mark.parametrize("size", SIZES)
async def test_features_are_those_of_the_image_at_that_size(dynamic: Served, size: str) -> None:
    outputs = "outputs=embedding&outputs=stage1&outputs=stage4"
    answer = await ask(dynamic, f"/v1/features?size={size}&{outputs}", accept="application/x-npz")
    assert answer.status_code == 200, answer.text
    expected = tiny_dynamic.reference(seen(size)[None])
    with np.load(io.BytesIO(answer.content)) as archive:
        for name in ("embedding", "stage1", "stage4"):
            assert archive[name].shape == expected[name].shape
            np.testing.assert_allclose(archive[name], expected[name], atol=1e-5)


@pytest.mark.parametrize("size", ["84", "33x91"])
async def test_classes_are_those_of_the_image_at_that_size(dynamic: Served, size: str) -> None:
    answer = await ask(dynamic, f"/v1/classify?size={size}&top_k=1")
    (best,) = answer.json()["results"][0]["predictions"]
    assert best["class_id"] == int(tiny_dynamic.reference(seen(size)[None])["logits"].argmax())


@pytest.mark.parametrize("size", ["84", "33x91", "56"])
async def test_points_lie_where_the_layer_looked_at_that_size(dynamic: Served, size: str) -> None:
    answer = await ask(dynamic, f"/v1/explain?size={size}")
    assert answer.status_code == 200, answer.text
    (resize_height, resize_width), (height, width) = SIZES[size]
    top, left = round((resize_height - height) / 2), round((resize_width - width) / 2)
    expected = tiny_dynamic.explained(seen(size)[None])
    for number, layer in enumerate(answer.json()["results"][0]["layers"]):
        stride = tiny_dynamic.RECORD.layers[number].stride or 0
        rows, columns = -(-height // stride), -(-width // stride)
        assert (layer["query_rows"], layer["query_columns"]) == (rows, columns)
        position = expected[f"position{number}"][0].astype(float)  # (groups, points, 2), (y, x)
        cells = (position + 1) / 2 * (np.array([rows, columns]) - 1) + 0.5
        place = (cells * stride + (top, left)) * (70 / resize_height, 90 / resize_width)
        for group, points in zip(layer["groups"], place[..., ::-1], strict=True):
            np.testing.assert_allclose(group["points"], points, atol=1e-3)
            np.testing.assert_allclose(sum(group["weights"]), 1, atol=1e-5)


async def test_a_picture_is_drawn_at_another_size_too(dynamic: Served) -> None:
    answer = await ask(dynamic, "/v1/explain?size=33x91&query=89,69", accept="image/png")
    assert answer.status_code == 200, answer.text
    assert Image.open(io.BytesIO(answer.content)).format == "PNG"


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features", "/v1/explain"])
@pytest.mark.parametrize(
    ("size", "detail"),
    [
        ("28", "size: sides from 29 to 2048 pixels are taken, and at most 20000 pixels in all; 28x28 is none of them."),
        ("142x142", "at most 20000 pixels in all; 142x142 is none of them."),
        ("x5", "size: 'x5' is no size such as 384 or 480x640 (height x width)."),
        ("99999999999", "is no size such as 384"),
    ],
)
async def test_a_size_that_is_not_served_is_refused_with_what_is(
    dynamic: Served, path: str, size: str, detail: str
) -> None:
    answer = await ask(dynamic, f"{path}?size={size}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    assert detail in answer.json()["detail"]
    assert dynamic.engine.slots_in_use == 0


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features", "/v1/explain"])
async def test_a_model_of_one_size_says_what_it_takes(served: Served, path: str) -> None:
    answer = await ask(served, f"{path}?size=64")
    assert answer.status_code == 422
    assert answer.json()["detail"] == ("size: images of 56x56 pixels are taken, and no others; 64x64 is none of them.")
    assert (await ask(served, f"{path}?size=56")).status_code == 200


async def test_a_model_says_which_sizes_it_takes(dynamic: Served, served: Served) -> None:
    details = (await dynamic.http.get(f"/v1/models/{tiny_dynamic.NAME}")).json()
    assert details["input_sizes"] == {
        "min_side": 29,
        "max_side": 2048,
        "multiple": 1,
        "max_pixels": 20_000,
        "explain_max_pixels": 20_000,
    }
    assert {output["name"]: output["shape"] for output in details["outputs"]}["stage1"] == [3, None, None]
    assert (await served.http.get(f"/v1/models/{tiny_model.NAME}")).json()["input_sizes"] is None


def pixels_request(pixels: np.ndarray, **parameters: Any) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
        ],
        "outputs": [{"name": "embedding"}, {"name": "stage2"}],
        "parameters": parameters,
    }


async def test_the_shape_of_pixels_decides_under_v2(dynamic: Served) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 31, 44, 3), np.uint8)
    answer = await dynamic.http.post(f"/v2/models/{tiny_dynamic.NAME}/infer", json=pixels_request(pixels))
    assert answer.status_code == 200, answer.text
    expected = tiny_dynamic.reference(pixels)
    for output in answer.json()["outputs"]:
        assert output["shape"] == list(expected[output["name"]].shape)
        np.testing.assert_allclose(output["data"], expected[output["name"]].ravel(), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 28, 44, 3), (1, 150, 150, 3), (1, 44, 44, 4), (1, 44, 44), (1, 0, 44, 3)])
async def test_pixels_of_a_size_that_is_not_served_are_refused_under_v2(
    dynamic: Served, shape: tuple[int, ...]
) -> None:
    request = pixels_request(np.zeros(shape, np.uint8))
    answer = await dynamic.http.post(f"/v2/models/{tiny_dynamic.NAME}/infer", json=request)
    assert answer.status_code == 400
    assert "not [batch, height, width, 3], where sides from 29 to 2048 pixels" in answer.json()["error"]


async def test_files_are_seen_at_the_size_that_is_asked_for_under_v2(dynamic: Served) -> None:
    import base64

    request = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(IMAGE).decode()]}],
        "outputs": [{"name": "stage2"}],
        "parameters": {"size": "33x91"},
    }
    path = f"/v2/models/{tiny_dynamic.NAME}/infer"
    (output,) = (await dynamic.http.post(path, json=request)).json()["outputs"]
    expected = tiny_dynamic.reference(seen("33x91")[None])["stage2"]
    assert output["shape"] == list(expected.shape)
    np.testing.assert_allclose(output["data"], expected.ravel(), atol=1e-5)
    for size, words in (("10", "sides from 29"), (84, "'size' is text")):
        refused = await dynamic.http.post(path, json=request | {"parameters": {"size": size}})
        assert refused.status_code in (400, 422)
        assert words in refused.json()["error"]


async def test_size_goes_with_files_alone_under_v2(dynamic: Served) -> None:
    request = pixels_request(np.zeros((1, 44, 44, 3), np.uint8), size="44")
    answer = await dynamic.http.post(f"/v2/models/{tiny_dynamic.NAME}/infer", json=request)
    assert (answer.status_code, "pixels have the size" in answer.json()["error"]) == (400, True)


async def test_metadata_leave_open_what_varies(dynamic: Served) -> None:
    metadata = (await dynamic.http.get(f"/v2/models/{tiny_dynamic.NAME}")).json()
    assert metadata["inputs"][0]["shape"] == [-1, -1, -1, 3]
    config = (await dynamic.http.get(f"/v2/models/{tiny_dynamic.NAME}/config")).json()
    assert config["input"][0]["dims"] == [-1, -1, 3]
