"""Vertex AI's contract for custom containers: what it asks, at the paths that its variables name."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from service.model.directory import ModelDirectory
from tests.service import tiny_model
from tests.service.conftest import GatedSession, Served, serving
from tests.service.pictures import expected, photo

PHOTOS = (photo("JPEG", seed=3), photo("PNG", seed=4))
TEXTS = [base64.b64encode(data).decode() for data in PHOTOS]
HEALTH = "/v1/endpoints/12/deployedModels/34"
PREDICT = f"{HEALTH}:predict"


@pytest.fixture(autouse=True)
def _routes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_HTTP_PORT", "8080")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", HEALTH)
    monkeypatch.setenv("AIP_PREDICT_ROUTE", PREDICT)


@pytest.fixture
async def endpoint(model: ModelDirectory) -> AsyncIterator[Served]:
    async with serving(model, cloud="vertex") as running:
        yield running


async def predict(endpoint: Served, instances: Any, **parameters: Any) -> httpx.Response:
    body = {"instances": instances, **({"parameters": parameters} if parameters else {})}
    return await endpoint.http.post(PREDICT, json=body)


FORMS = {
    "b64": [{"b64": text} for text in TEXTS],
    "image": [{"image": {"b64": text}} for text in TEXTS],
    "content": [{"content": text} for text in TEXTS],
    "text": TEXTS,
}


@pytest.mark.parametrize("form", FORMS)
async def test_every_instance_is_classified(endpoint: Served, form: str) -> None:
    answer = await predict(endpoint, FORMS[form])
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    same = (await endpoint.http.post("/v1/classify", json={"images": TEXTS})).json()
    assert answer.json() == {"predictions": same["results"]}
    assert answer.headers["x-model-version"] == str(tiny_model.VERSION)


async def test_parameters_are_those_of_v1(endpoint: Served) -> None:
    few = await predict(endpoint, FORMS["b64"], top_k=2.0, on_error="skip")  # protobuf's numbers are all float64
    assert [len(each["predictions"]) for each in few.json()["predictions"]] == [2, 2]
    features = await predict(endpoint, FORMS["b64"], call="features", outputs=["embedding", "logits"])
    for data, prediction in zip(PHOTOS, features.json()["predictions"], strict=True):
        for name in ("embedding", "logits"):
            np.testing.assert_allclose(prediction["features"][name], expected(data, name), atol=1e-3)
    one_bad = await predict(endpoint, [{"b64": TEXTS[0]}, {"b64": "AAAA"}], on_error="skip")
    assert [each.get("error", {}).get("code") for each in one_bad.json()["predictions"]] == [None, "unsupported_format"]


async def test_raw_prediction_is_an_image_as_it_is(endpoint: Served) -> None:
    answer = await endpoint.http.post(PREDICT, content=PHOTOS[0], headers={"Content-Type": "image/jpeg"})
    same = await endpoint.http.post("/v1/classify", content=PHOTOS[0], headers={"Content-Type": "image/jpeg"})
    assert answer.json()["results"] == same.json()["results"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"instances": []}, 400, "holds no instances"),
        ({"instances": "x"}, 400, "wrong at instances"),
        ({"images": TEXTS}, 400, "wrong at "),
        ({"instances": [{"b64": TEXTS[0]}, {"b64": "?"}]}, 400, "instances[1].b64 is not base64"),
        ({"instances": [{"picture": TEXTS[0]}]}, 400, "wrong at instances[0].picture"),
        ({"instances": ["gs://bucket/a.jpg"]}, 400, "No image is fetched from an address"),
        ({"instances": TEXTS[:1] * 65}, 413, "more than 64 images"),
        ({"instances": TEXTS, "parameters": {"call": "explain"}}, 422, "call: it is classify or features"),
        ({"instances": TEXTS, "parameters": {"call": 3}}, 422, "call: it is classify or features"),
        ({"instances": TEXTS, "parameters": {"k": 3}}, 422, "k: there is no such parameter"),
        ({"instances": TEXTS, "parameters": {"top_k": [3]}}, 422, "top_k: "),
        ({"instances": TEXTS, "parameters": {"model": "other"}}, 404, "'tiny' is served"),
        ({"instances": [{"b64": "AAAA"}]}, 422, "1 of the images cannot be used"),
    ],
)
async def test_what_is_wrong_is_said(endpoint: Served, body: Any, status: int, message: str) -> None:
    answer = await endpoint.http.post(PREDICT, json=body)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]
    assert endpoint.engine.slots_in_use == 0


async def test_health_is_readiness(model: ModelDirectory) -> None:
    session = GatedSession()
    session.close()
    async with serving(model, session, wait_ready=False, cloud="vertex") as endpoint:
        assert (await endpoint.http.get(HEALTH)).status_code == 503
        session.gate.set()
        await endpoint.ready()
        assert (await endpoint.http.get(HEALTH)).status_code == 200


async def test_deadline_of_the_parameters_holds(model: ModelDirectory) -> None:
    session = GatedSession()
    async with serving(model, session, cloud="vertex") as endpoint:
        session.close()
        assert (await predict(endpoint, TEXTS, timeout_ms=50)).json()["code"] == "deadline_exceeded"


async def test_health_may_be_a_probe_that_there_is(monkeypatch: pytest.MonkeyPatch, model: ModelDirectory) -> None:
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/health/ready")
    monkeypatch.delenv("AIP_PREDICT_ROUTE", raising=False)
    async with serving(model, cloud="vertex") as endpoint:
        assert (await endpoint.http.get("/health/ready")).json() == {"status": "ready"}
        assert (await endpoint.http.post("/predict", json={"instances": TEXTS})).status_code == 200
