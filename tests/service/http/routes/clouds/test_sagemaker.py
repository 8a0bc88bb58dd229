"""Amazon SageMaker's contract: what it asks of a container, as it passes on what callers of InvokeEndpoint send."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from service.access.keys import make_key
from service.model.directory import ModelDirectory
from tests.service import tiny_model
from tests.service.conftest import GatedSession, Served, serving
from tests.service.pictures import expected, photo

PHOTO = photo("JPEG", seed=3)
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


@pytest.fixture
async def endpoint(model: ModelDirectory) -> AsyncIterator[Served]:
    async with serving(model, cloud="sagemaker") as running:
        yield running


async def invoke(
    endpoint: Served,
    body: bytes = PHOTO,
    *,
    content_type: str = "image/jpeg",
    attributes: str | None = None,
    accept: str | None = None,
) -> httpx.Response:
    """Ask as SageMaker does for InvokeEndpoint(Body, ContentType, CustomAttributes, Accept)."""
    headers = {"Content-Type": content_type, "Accept": accept or "*/*"}
    if attributes is not None:
        headers[ATTRIBUTES] = attributes
    return await endpoint.http.post("/invocations", content=body, headers=headers)


async def test_container_is_pinged_until_it_is_ready(model: ModelDirectory) -> None:
    session = GatedSession()
    session.close()
    async with serving(model, session, wait_ready=False, cloud="sagemaker") as endpoint:
        assert (await endpoint.http.get("/ping")).status_code == 503
        session.gate.set()
        await endpoint.ready()
        answer = await endpoint.http.get("/ping")
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/octet-stream", "application/x-image"])
async def test_image_is_classified_whatever_it_is_called(endpoint: Served, content_type: str) -> None:
    answer = await invoke(endpoint, content_type=content_type)
    assert answer.status_code == 200, answer.text
    same = await endpoint.http.post("/v1/classify", content=PHOTO, headers={"Content-Type": "image/jpeg"})
    assert answer.json()["results"] == same.json()["results"]
    assert answer.headers["content-type"] == "application/json"


async def test_several_images_in_json(endpoint: Served) -> None:
    text = base64.b64encode(PHOTO).decode()
    answer = await endpoint.http.post("/invocations", json={"images": [text, text]}, headers={ATTRIBUTES: "top_k=2"})
    assert [len(each["predictions"]) for each in answer.json()["results"]] == [2, 2]


async def test_attributes_name_the_call_and_its_parameters(endpoint: Served) -> None:
    model = f"{tiny_model.NAME}:{tiny_model.VERSION}"
    answer = await invoke(
        endpoint,
        attributes=f"call=features&outputs=embedding&outputs=logits&timeout_ms=60000&model={model}",
        accept="application/x-npz",
    )
    assert answer.status_code == 200, answer.text
    arrays = np.load(io.BytesIO(answer.content))
    for name in ("embedding", "logits"):
        np.testing.assert_allclose(arrays[name][0], expected(PHOTO, name), atol=1e-3)
    explained = await invoke(endpoint, attributes="call=explain&query=40,30")
    assert explained.json()["results"][0]["layers"]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ("call=segment", "call: it is classify or features or explain, not 'segment'"),
        ("call=features&top_k=2", "top_k: there is no such parameter"),
        ("top_k=0", "top_k: "),
        ("trace-id", "is written as a query"),
        ("timeout_ms=0", "timeout_ms: "),
    ],
)
async def test_wrong_attributes_are_named(endpoint: Served, attributes: str, message: str) -> None:
    answer = await invoke(endpoint, attributes=attributes)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    assert message in answer.json()["detail"]


async def test_bad_image_is_the_problem_of_v1(endpoint: Served) -> None:
    answer = await invoke(endpoint, PHOTO[:200])
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_image")


async def test_deadline_of_the_attributes_holds(model: ModelDirectory) -> None:
    session = GatedSession()
    async with serving(model, session, cloud="sagemaker") as endpoint:
        session.close()
        assert (await invoke(endpoint, attributes="timeout_ms=50")).json()["code"] == "deadline_exceeded"


async def test_key_is_wanted_by_invocations_and_not_by_ping(model: ModelDirectory) -> None:
    _, entry = make_key("app")
    async with serving(model, cloud="sagemaker", api_keys=entry) as endpoint:
        assert (await invoke(endpoint)).status_code == 401
        assert (await endpoint.http.get("/ping")).status_code == 200


async def test_invocations_count_among_the_inferences(endpoint: Served) -> None:
    await invoke(endpoint)
    assert endpoint.sample("dat_requests_total", route="/invocations", code="ok") == 1
    statistics: dict[str, Any] = (await endpoint.http.get("/v2/models/stats")).json()["model_stats"][0]
    assert statistics["inference_stats"]["success"]["count"] == 1


async def test_nothing_is_there_unless_it_is_switched_on(served: Served) -> None:
    assert (await served.http.get("/ping")).status_code == 404
    assert (await served.http.post("/invocations", content=PHOTO)).status_code == 404


def test_nothing_of_a_platform_is_imported_where_none_is_named() -> None:
    program = "import sys, service.http.app; print([name for name in sys.modules if 'clouds' in name])"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == "[]"
