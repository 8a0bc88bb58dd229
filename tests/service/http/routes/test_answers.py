"""The answers themselves: classify, features in every form, models, and the pages beside them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from service.http.answers.schemas import ClassifyResponse, FeaturesResponse
from service.http.problems import all_kinds
from service.model.directory import open_model
from service.model.postprocess import softmax
from tests.service import tiny_model
from tests.service.conftest import Served, serving
from tests.service.pictures import expected, photo

PHOTOS = [photo("PNG", seed=seed) for seed in range(3)]
FILES = [("image", (f"{seed}.png", data, "image/png")) for seed, data in enumerate(PHOTOS)]
WITH_BAD = [FILES[0], ("image", ("bad.png", b"text", "image/png")), FILES[2]]
NPZ, RAW = "application/x-npz", "application/octet-stream"


async def test_classify_names_the_most_likely_classes_highest_first(served: Served) -> None:
    response = await served.http.post("/v1/classify?top_k=3", files=FILES)
    assert response.status_code == 200
    answer = response.json()
    assert list(answer) == ["model", "results", "request_id", "timings_ms"]
    assert answer["model"] == {"name": "tiny", "version": 3}
    assert list(answer["timings_ms"]) == ["decode", "preprocess", "queue", "inference", "postprocess", "total"]
    assert answer["timings_ms"]["total"] >= max(answer["timings_ms"].values())
    for index, (result, data) in enumerate(zip(answer["results"], PHOTOS, strict=True)):
        scores = softmax(expected(data, "logits"))
        order = np.argsort(-scores)[:3]
        assert list(result) == ["index", "filename", "predictions"]
        assert (result["index"], result["filename"]) == (index, f"{index}.png")
        assert [entry["class_id"] for entry in result["predictions"]] == order.tolist()
        assert [entry["label"] for entry in result["predictions"]] == [tiny_model.LABELS[i] for i in order]
        np.testing.assert_allclose([entry["score"] for entry in result["predictions"]], scores[order], atol=1e-4)
    TypeAdapter(ClassifyResponse).validate_python(answer)


async def test_top_k_is_five_by_default_and_no_more_than_there_are_classes(served: Served) -> None:
    for query, count in (("", 5), ("?top_k=1", 1), ("?top_k=1000", tiny_model.CLASSES), (f"?top_k={10**30}", 7)):
        answer = (await served.http.post(f"/v1/classify{query}", files=FILES[:1])).json()
        assert len(answer["results"][0]["predictions"]) == count


async def test_answer_says_its_model_and_timings_in_headers_too(served: Served) -> None:
    response = await served.http.post("/v1/classify", files=FILES[:1])
    assert (response.headers["x-model-name"], response.headers["x-model-version"]) == ("tiny", "3")
    stages = dict(re.findall(r"(\w+);dur=([\d.e+-]+)", response.headers["server-timing"]))
    assert {stage: float(value) for stage, value in stages.items()} == pytest.approx(
        response.json()["timings_ms"], rel=1e-3
    )


@pytest.mark.parametrize("accept", ["text/html", "application/x-npz"])
async def test_classify_answers_only_in_json(served: Served, accept: str) -> None:
    response = await served.http.post("/v1/classify", files=FILES, headers={"Accept": accept})
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")


OUTPUTS = list(tiny_model.shapes())


async def test_features_in_json_are_nested_lists_of_every_output_asked_for(served: Served) -> None:
    response = await served.http.post("/v1/features", params={"outputs": OUTPUTS}, files=FILES)
    answer = response.json()
    TypeAdapter(FeaturesResponse).validate_python(answer)
    for result, data in zip(answer["results"], PHOTOS, strict=True):
        assert list(result["features"]) == OUTPUTS
        for name in OUTPUTS:
            np.testing.assert_allclose(result["features"][name], expected(data, name), atol=1e-4)


async def test_features_are_the_embedding_by_default(served: Served) -> None:
    answer = (await served.http.post("/v1/features", files=FILES[:1])).json()
    assert list(answer["results"][0]["features"]) == ["embedding"]


async def test_outputs_named_twice_are_given_once(served: Served) -> None:
    response = await served.http.post("/v1/features?outputs=logits&outputs=stage4&outputs=logits", files=FILES[:1])
    assert list(response.json()["results"][0]["features"]) == ["logits", "stage4"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
async def test_features_in_base64_are_little_endian_bytes_with_dtype_and_shape(served: Served, dtype: str) -> None:
    query = f"?outputs=stage4&outputs=logits&encoding=base64&dtype={dtype}"
    answer = (await served.http.post(f"/v1/features{query}", files=FILES)).json()
    TypeAdapter(FeaturesResponse).validate_python(answer)
    for result, data in zip(answer["results"], PHOTOS, strict=True):
        for name, tensor in result["features"].items():
            assert (tensor["dtype"], tuple(tensor["shape"])) == (dtype, tiny_model.shapes()[name])
            values = np.frombuffer(base64.b64decode(tensor["data"]), np.dtype(dtype).newbyteorder("<"))
            np.testing.assert_allclose(values.reshape(tensor["shape"]), expected(data, name), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
async def test_archive_has_one_array_an_output_batch_first(served: Served, dtype: str) -> None:
    response = await served.http.post(
        "/v1/features", params={"outputs": OUTPUTS, "dtype": dtype}, files=FILES, headers={"Accept": NPZ}
    )
    assert response.headers["content-type"] == NPZ
    with np.load(io.BytesIO(response.content)) as archive:
        assert archive.files == OUTPUTS
        for name in OUTPUTS:
            assert archive[name].dtype == dtype
            wanted = np.stack([expected(data, name) for data in PHOTOS])
            np.testing.assert_allclose(archive[name], wanted, rtol=2e-3, atol=2e-3)


async def test_archive_under_skip_says_which_images_it_holds(served: Served) -> None:
    response = await served.http.post("/v1/features?on_error=skip", files=WITH_BAD, headers={"Accept": NPZ})
    with np.load(io.BytesIO(response.content)) as archive:
        assert archive["index"].tolist() == [0, 2]
        np.testing.assert_allclose(archive["embedding"][1], expected(PHOTOS[2], "embedding"), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
async def test_raw_form_is_the_bytes_of_one_output_with_its_shape(served: Served, dtype: str) -> None:
    response = await served.http.post(
        f"/v1/features?outputs=stage4&dtype={dtype}&on_error=skip", files=WITH_BAD, headers={"Accept": RAW}
    )
    assert response.headers["content-type"] == RAW
    assert (response.headers["x-tensor-dtype"], response.headers["x-image-index"]) == (dtype, "0,2")
    shape = tuple(map(int, response.headers["x-tensor-shape"].split(",")))
    assert shape == (2, *tiny_model.shapes()["stage4"])
    values = np.frombuffer(response.content, np.dtype(dtype).newbyteorder("<")).reshape(shape)
    np.testing.assert_allclose(values[1], expected(PHOTOS[2], "stage4"), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("accept", [NPZ, RAW])
async def test_binary_forms_without_any_good_image_are_422(served: Served, accept: str) -> None:
    response = await served.http.post("/v1/features?on_error=skip", files=WITH_BAD[1:2], headers={"Accept": accept})
    assert (response.status_code, response.json()["errors"][0]["index"]) == (422, 0)


async def test_normalized_embedding_has_length_one(served: Served) -> None:
    answer = (await served.http.post("/v1/features?normalize=true", files=FILES)).json()
    for result, data in zip(answer["results"], PHOTOS, strict=True):
        wanted = expected(data, "embedding")
        np.testing.assert_allclose(result["features"]["embedding"], wanted / np.linalg.norm(wanted), atol=1e-5)


@pytest.mark.parametrize(
    ("query", "accept", "word"),
    [
        ("outputs=stage9", "*/*", "stage9"),
        ("outputs=", "*/*", "outputs"),
        ("outputs=logits&normalize=true", "*/*", "normalize"),
        ("outputs=embedding&outputs=logits&normalize=true", "*/*", "normalize"),
        ("outputs=logits&outputs=embedding", RAW, "exactly one"),
        ("dtype=float64", "*/*", "dtype"),
        ("encoding=hex", "*/*", "encoding"),
        ("normalize=perhaps", "*/*", "normalize"),
        ("output=logits", "*/*", "output"),
    ],
)
async def test_impossible_features_are_422_and_named(served: Served, query: str, accept: str, word: str) -> None:
    response = await served.http.post(f"/v1/features?{query}", files=FILES, headers={"Accept": accept})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
    assert word in response.json()["detail"]


async def test_large_answer_is_the_same_as_small_ones(served: Served) -> None:
    files = [FILES[number % 3] for number in range(64)]
    answer = (await served.http.post("/v1/features?outputs=stage1", files=files)).json()
    assert len(answer["results"]) == 64
    for index in (0, 31, 63):
        values = answer["results"][index]["features"]["stage1"]
        np.testing.assert_allclose(values, expected(PHOTOS[index % 3], "stage1"), atol=1e-4)


async def test_models_are_listed_and_described(served: Served) -> None:
    listed = (await served.http.get("/v1/models")).json()
    entry = {
        "name": "tiny", "version": 3, "variant": "tiny", "state": "ready", "reason": "", "is_default": True,
        "devices": ["cpu"], "graphs": ["standard"], "parity": None,
    }  # fmt: skip
    limits = {"max_images": 64, "max_body_bytes": 33_554_432}
    openai_entry = {"id": "tiny", "object": "model", "created": 1_767_225_600, "owned_by": "dat-serve"}
    assert listed == {"object": "list", "data": [openai_entry], "default": "tiny", "limits": limits, "models": [entry]}
    details: dict[str, Any] = (await served.http.get("/v1/models/tiny")).json()
    assert details["versions"] == [entry]
    assert entry.items() <= details.items()
    assert (details["input_height"], details["input_width"], details["resize_height"]) == (56, 56, 64)
    assert (details["interpolation"], details["resize"]) == ("bicubic", "exact")
    assert [output["name"] for output in details["outputs"]] == OUTPUTS
    assert details["labels"][2] == {"class_id": 2, "name": "class 2", "synset": None}
    assert details["mean"] == list(tiny_model.MEAN)
    response = await served.http.get("/v1/models/other")
    assert (response.status_code, response.json()["code"]) == (404, "unknown_model")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/classify", 405)])
async def test_frameworks_errors_are_problem_documents(served: Served, method: str, path: str, status: int) -> None:
    response = await served.http.request(method, path)
    assert response.status_code == response.json()["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == response.json()["request_id"]


@pytest.mark.parametrize("code", all_kinds())
async def test_type_of_every_problem_leads_to_its_meaning(served: Served, code: str) -> None:
    response = await served.http.get(f"/problems/{code}")
    assert response.status_code == 200
    assert all_kinds()[code].meaning in response.text


async def test_metrics_are_in_prometheus_text_with_routes_as_templates(served: Served) -> None:
    await served.http.get("/v1/models/tiny")
    await served.http.get("/v1/models/other")
    response = await served.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'route="/v1/models/{name}",status="404"' in response.text
    assert "other" not in response.text


async def test_documentation_page_needs_nothing_from_elsewhere(served: Served) -> None:
    page = (await served.http.get("/docs")).text
    links = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page)
    assert links
    for link in links:
        assert link.startswith("/")
        assert (await served.http.get(link)).status_code == 200
    assert "https://" not in page


async def classified(served: Served, query: str) -> list[dict[str, Any]]:
    response = await served.http.post(f"/v1/classify?{query}", files=FILES[:1])
    assert response.status_code == 200, response.text
    TypeAdapter(ClassifyResponse).validate_python(response.json())
    predictions: list[dict[str, Any]] = response.json()["results"][0]["predictions"]
    return predictions


async def test_min_score_leaves_out_what_is_below_and_may_leave_none(served: Served) -> None:
    everything = await classified(served, "top_k=7")
    limit = everything[2]["score"]
    assert await classified(served, f"top_k=7&min_score={limit!r}") == everything[:3]
    assert await classified(served, f"top_k=2&min_score={limit!r}") == everything[:2]
    assert await classified(served, "min_score=1") == []
    assert await classified(served, "top_k=7&min_score=0") == everything


async def test_only_the_classes_that_are_named_are_given_with_the_scores_that_they_have(served: Served) -> None:
    everything = await classified(served, "top_k=7")
    for query in ("classes=1,4,6", "classes=1&classes=class%204&classes=6", "classes=class%201,6,class%204"):
        assert await classified(served, query) == [each for each in everything if each["class_id"] in (1, 4, 6)]
    assert len(await classified(served, "classes=0,1,2,3,4,5,6")) == 7  # more than a request gets that names none
    assert await classified(served, "classes=1,4,6&top_k=1") == (await classified(served, "classes=1,4,6"))[:1]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (
            "classes=1,dog",
            "classes: 'dog' is no class of this model. A class is named by its id, 0 to 6, or by its label",
        ),
        ("classes=", "classes: '' is no class of this model"),
        ("classes=7", "classes: '7' is no class"),
        *((f"min_score={value}", "min_score") for value in ("-0.1", "1.1", "nan", "inf", "", "high")),
    ],
)
async def test_a_class_or_a_score_that_there_is_not_is_named(served: Served, query: str, said: str) -> None:
    response = await served.http.post(f"/v1/classify?{query}", files=FILES[:1])
    assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
    assert said in response.json()["detail"]


async def test_a_temperature_changes_scores_and_no_logits_and_is_shown(tmp_path: Path) -> None:
    calibrated = open_model(tiny_model.write(tmp_path, temperature=2.5))
    async with serving(calibrated) as served:
        predictions = await classified(served, "top_k=7")
        logits = (await served.http.post("/v1/features?outputs=logits", files=FILES[:1])).json()
        details = (await served.http.get("/v1/models/tiny")).json()
    np.testing.assert_allclose(logits["results"][0]["features"]["logits"], expected(PHOTOS[0], "logits"), atol=1e-4)
    scores = softmax(expected(PHOTOS[0], "logits") / np.float32(2.5))
    np.testing.assert_allclose([each["score"] for each in predictions], np.sort(scores)[::-1], atol=1e-4)
    assert details["temperature"] == 2.5


async def test_a_model_that_nobody_has_calibrated_has_no_temperature(served: Served) -> None:
    assert (await served.http.get("/v1/models/tiny")).json()["temperature"] is None
