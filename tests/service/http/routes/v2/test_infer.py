"""What `/v2` shares with `/v1`, and what it answers where a request is wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import time
import zlib
from collections.abc import Awaitable
from typing import Any

import httpx
import numpy as np
import pytest

from service.engine.client import EngineClient
from service.engine.types import Answer, Priority
from service.errors import Overloaded
from service.model.directory import ModelDirectory
from tests.api_keys import entry_of
from tests.service.conftest import GatedSession, Served, serving
from tests.service.http.routes.v2.bodies import LOGITS, PATH, PIXELS, SHAPE, binary, document, logits_of, tensor
from tests.service.pictures import photo

FLAT = PIXELS.ravel().tolist()


def error_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert "x-request-id" in response.headers
    body = response.json()
    assert list(body) == ["error"]
    message: str = body["error"]
    return message


async def test_flat_and_nested_pixels_are_the_same(served: Served) -> None:
    for data in (FLAT, [PIXELS.tolist()]):
        np.testing.assert_allclose(
            logits_of(await served.http.post(PATH, json=document(tensor(data=data)))), LOGITS, atol=1e-3
        )


async def test_json_may_begin_with_a_byte_order_mark(served: Served) -> None:
    text = json.dumps(document(tensor(data=FLAT))).encode("utf-8-sig")
    np.testing.assert_allclose(logits_of(await served.http.post(PATH, content=text)), LOGITS, atol=1e-3)


WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "no JSON": ({"content": b"{"}, 400, "JSON is wrong"),
    "empty": ({"content": b""}, 400, "JSON is wrong"),
    "not an object": ({"content": b"[]"}, 400, "JSON is wrong"),
    "no inputs": ({"json": {}}, 400, "inputs"),
    "header is no number": (binary(document(), length="-1"), 400, "number of bytes"),
    "header beyond body": (binary(document(), length=10**9), 400, "the body has"),
    "header cuts the JSON": (binary(document(), length=5), 400, "JSON is wrong"),
    "header far beyond": (binary(document(), length="9" * 400), 400, "number of bytes"),
    "truncated tensor": (binary(document(), PIXELS.tobytes()[:-1]), 400, "behind the JSON"),
    "too long tensor": (binary(document(), PIXELS.tobytes() + b"x"), 400, "behind the JSON"),
    "lying size": (
        binary(document(tensor(parameters={"binary_data_size": 5})), b"12345"),
        400,
        f"takes {PIXELS.nbytes} bytes, not 5",
    ),
    "negative size": (binary(document(tensor(parameters={"binary_data_size": -1}))), 400, "whole number"),
    "size is text": (binary(document(tensor(parameters={"binary_data_size": "9"}))), 400, "whole number"),
    "both forms": (
        binary(document(tensor(data=[], parameters={"binary_data_size": PIXELS.nbytes}))),
        400,
        "both 'data' and",
    ),
    "neither form": ({"json": document(tensor(parameters={}))}, 400, "no data"),
    "negative shape": (binary(document(tensor(shape=[-1, *SHAPE[1:]]))), 400, "shape"),
    "no images": ({"json": document(tensor(shape=[0, *SHAPE[1:]], data=[]))}, 400, "shape"),
    "no shape": (binary(document(tensor(shape=[]))), 400, "shape"),
    "huge shape": (binary(document(tensor(shape=[10**18, *SHAPE[1:]]))), 413, "more than 64 images"),
    "fractional shape": (binary(document(tensor(shape=[1.5, *SHAPE[1:]]))), 400, "shape"),
    "uneven nesting": ({"json": document(tensor(data=[[1], [2, 3]]))}, 400, "even length"),
    "other nesting": ({"json": document(tensor(data=[FLAT, FLAT]))}, 400, "nested"),
    "too few": ({"json": document(tensor(data=FLAT[1:]))}, 400, "nested"),
    "text for numbers": ({"json": document(tensor(data=["a"]))}, 400, "not numbers"),
    "true for numbers": ({"json": document(tensor(data=[True] * len(FLAT)))}, 400, "not numbers"),
    "beyond 64 bits": ({"json": document(tensor(data=[10**30] * len(FLAT)))}, 400, "64 bits"),
    "out of range": ({"json": document(tensor(data=[256, *FLAT[1:]]))}, 422, "0 to 255"),
    "negative number": ({"json": document(tensor(data=[-1, *FLAT[1:]]))}, 422, "0 to 255"),
    "not finite": (
        {"content": json.dumps(document(tensor(data=[float("nan"), *FLAT[1:]], datatype="FP32")))},
        422,
        "0 to 255",
    ),
    "files as numbers": (
        {"json": document(tensor(data=[1], datatype="BYTES", shape=[1]))},
        400,
        "Element 0 of 'image' is no string",
    ),
    "files as objects": (
        {"json": document(tensor(data=["", {"b64": ""}], datatype="BYTES", shape=[2]))},
        400,
        "Element 1 of 'image'",
    ),
    "too few files": ({"json": document(tensor(data=[""], datatype="BYTES", shape=[2]))}, 400, "1 elements, not 2"),
    "JSON in UTF-16": ({"content": json.dumps(document()).encode("utf-16-le")}, 400, "sent in UTF-8"),
    "files not base64": ({"json": document(tensor(data=["?"], datatype="BYTES", shape=[1]))}, 400, "not base64"),
    "files of two columns": ({"json": document(tensor(data=["", ""], datatype="BYTES", shape=[1, 2]))}, 400, "shape"),
    "element longer than the rest": (
        binary(
            document(tensor(datatype="BYTES", shape=[1], parameters={"binary_data_size": 8})), b"\xff\xff\xff\xffabcd"
        ),
        400,
        "should have 4294967295 bytes",
    ),
    "fewer elements": (
        binary(document(tensor(datatype="BYTES", shape=[2], parameters={"binary_data_size": 4})), bytes(4)),
        400,
        "1 whole elements",
    ),
    "raw body of another size": ({"content": b"x", "headers": {"Inference-Header-Content-Length": "0"}}, 400, "takes"),
    "unknown raw type": (
        {"content": b"x", "headers": {"Inference-Header-Content-Length": "0", "X-Image-Datatype": "FP32"}},
        400,
        "X-Image-Datatype",
    ),
    "classification by a map": (
        binary(document(outputs=[{"name": "stage1", "parameters": {"classification": 1}}])),
        400,
        "no vector",
    ),
    "output twice": (binary(document(outputs=[{"name": "logits"}] * 2)), 400, "more than once"),
    "unknown output type": (
        binary(document(outputs=[{"name": "logits", "parameters": {"datatype": "INT8"}}])),
        400,
        "FP32 or FP16",
    ),
    "shared memory": (
        binary(document(outputs=[{"name": "logits", "parameters": {"shared_memory_region": "r"}}])),
        400,
        "shared_memory_region",
    ),
    "priority is text": (binary(document(parameters={"priority": "high"})), 400, "priority"),
    "negative timeout": (binary(document(parameters={"timeout": -5})), 400, "timeout"),
    "media type": (binary(document(), Content_Type="image/png"), 415, "image/png"),
    "coding": (binary(document(), Content_Encoding="br"), 415, "'br'"),
    "not gzip": (binary(document(), Content_Encoding="gzip"), 400, "not well-formed gzip"),
}


@pytest.mark.parametrize("wrong", list(WRONG))
async def test_what_is_wrong_with_a_request_is_said(served: Served, wrong: str) -> None:
    request, status, message = WRONG[wrong]
    assert message in error_of(await served.http.post(PATH, **request), status)
    assert served.engine.slots_in_use == 0


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_compressed_body_is_limited_before_and_after_it_is_decompressed(
    model: ModelDirectory, coding: str
) -> None:
    compress = gzip.compress if coding == "gzip" else zlib.compress
    async with serving(model, max_body_bytes=20_000) as served:
        request = binary(document(), Content_Encoding=coding)
        fits = compress(request.pop("content"))
        headers = request["headers"]
        assert (await served.http.post(PATH, content=fits, headers=headers)).status_code == 200
        bomb = compress(bytes(50_000_000))
        assert len(bomb) < 100_000
        assert "larger than 20000" in error_of(
            await served.http.post(PATH, content=bomb[:20_000], headers=headers), 413
        )
        noise = compress(np.random.default_rng(1).bytes(30_000))
        assert "larger than 20000" in error_of(await served.http.post(PATH, content=noise, headers=headers), 413)
        assert "too early" in error_of(await served.http.post(PATH, content=fits[:-9], headers=headers), 400)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/tiny/versions/9/stats", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/tiny/versions/9/infer", 404),
        ("GET", "/v2/models/tiny/infer", 405),
        ("POST", "/v2", 405),
        ("GET", "/v2/systemsharedmemory/status", 404),
    ],
)
async def test_paths_that_are_not_there_are_told_in_the_protocols_form(
    served: Served, method: str, path: str, status: int
) -> None:
    response = await served.http.request(method, path)
    error_of(response, status)
    assert status != 405 or response.headers["allow"]


async def test_request_id_is_kept_and_the_body_id_repeated(served: Served) -> None:
    response = await served.http.post(
        PATH, json=document(tensor(data=FLAT), id="mine"), headers={"X-Request-ID": "abc"}
    )
    assert response.headers["x-request-id"] == "abc"
    assert response.json()["id"] == "mine"
    assert "id" not in (await served.http.post(PATH, json=document(tensor(data=FLAT)))).json()


async def test_keys_guard_everything_but_probes(model: ModelDirectory) -> None:
    async with serving(model, api_keys=entry_of("secret")) as served:
        response = await served.http.post(PATH, **binary(document()))
        error_of(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/v2", "/v2/models/tiny", "/v2/models/tiny/config", "/v2/models/stats", "/v2/models/tiny/stats"):
            error_of(await served.http.get(path), 401)
        for path in ("index", "models/tiny/load", "models/tiny/unload"):
            error_of(await served.http.post(f"/v2/repository/{path}"), 401)
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"):
            assert (await served.http.get(path)).status_code == 200
        request = binary(document(), Authorization="Bearer secret")
        assert (await served.http.post(PATH, **request)).status_code == 200


async def test_full_queue_is_429_with_when_to_come_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise Overloaded("The queue is full.", retry_after_s=2.5)

    monkeypatch.setattr(EngineClient, "check_room", full)
    response = await served.http.post(PATH, **binary(document()))
    assert error_of(response, 429) == "The queue is full."
    assert response.headers["retry-after"] == "3"


async def test_queue_is_shared_with_v1_in_images(model: ModelDirectory) -> None:
    session = GatedSession()
    async with serving(model, session, max_queued_images=4, max_images=4) as served:
        session.close()
        batch = binary(
            document(tensor(shape=[3, *SHAPE[1:]], parameters={"binary_data_size": 3 * PIXELS.nbytes})),
            PIXELS.tobytes() * 3,
        )
        running = asyncio.create_task(served.http.post(PATH, **batch))
        await session.run_began()
        error_of(await served.http.post(PATH, **batch), 429)
        image = {"content": photo("JPEG"), "headers": {"Content-Type": "image/jpeg"}}
        fits = asyncio.create_task(served.http.post("/v1/classify", **image))
        session.gate.set()
        assert (await running).status_code == 200
        assert (await fits).status_code == 200


async def test_loading_is_503_and_the_index_says_why(model: ModelDirectory) -> None:
    session = GatedSession()
    session.close()
    async with serving(model, session, wait_ready=False) as served:
        response = await served.http.post(PATH, **binary(document()))
        error_of(response, 503)
        assert response.headers["retry-after"]
        error_of(await served.http.get("/v2/health/ready"), 503)
        error_of(await served.http.get("/v2/models/tiny/ready"), 503)
        (entry,) = (await served.http.post("/v2/repository/index", json={})).json()
        assert entry["state"] == "LOADING"
        assert "loaded" in entry["reason"]
        assert (await served.http.post("/v2/repository/index", json={"ready": True})).json() == []


@pytest.mark.parametrize(
    ("query", "parameters"),
    [("timeout_ms=20", {}), ("", {"timeout": 20_000}), ("timeout_ms=20", {"timeout": 60_000_000})],
)
async def test_deadline_by_query_or_in_the_body_is_504(
    model: ModelDirectory, query: str, parameters: dict[str, int]
) -> None:
    session = GatedSession()
    async with serving(model, session) as served:
        session.close()
        response = await served.http.post(f"{PATH}?{query}", **binary(document(parameters=parameters)))
        error_of(response, 504)


@pytest.mark.parametrize(
    ("query", "parameters", "expected"),
    [
        ("", {}, Priority.INTERACTIVE),
        ("", {"priority": 0}, Priority.INTERACTIVE),
        ("", {"priority": 1}, Priority.INTERACTIVE),
        ("", {"priority": 2}, Priority.BULK),
        ("priority=bulk", {}, Priority.BULK),
    ],
)
async def test_priority_is_the_engines(
    served: Served, monkeypatch: pytest.MonkeyPatch, query: str, parameters: dict[str, int], expected: Priority
) -> None:
    seen: list[Priority] = []
    infer = served.engine.infer

    def watched(*images: Any, priority: Priority, **terms: Any) -> Awaitable[list[Answer]]:
        seen.append(priority)
        return infer(*images, priority=priority, **terms)

    monkeypatch.setattr(served.engine, "infer", watched)
    assert (await served.http.post(f"{PATH}?{query}", **binary(document(parameters=parameters)))).status_code == 200
    assert seen == [expected]


async def test_failure_of_the_engine_and_our_own_tell_nothing_of_their_inside(
    model: ModelDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = GatedSession()
    async with serving(model, session) as served:
        session.failure = RuntimeError("secret of the engine")
        assert "secret" not in error_of(await served.http.post(PATH, **binary(document())), 500)

        def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("secret of the service")

        monkeypatch.setattr(EngineClient, "check_room", broken)
        with caplog.at_level(logging.CRITICAL):
            assert "secret" not in error_of(await served.http.post(PATH, **binary(document())), 500)


async def test_requests_are_in_the_metrics_and_the_statistics(served: Served) -> None:
    for _ in range(2):
        assert (await served.http.post(PATH, **binary(document()))).status_code == 200
    error_of(await served.http.post(PATH, content=b""), 400)
    route = "/v2/models/{model}/infer"
    assert served.sample("dat_requests_total", route=route, status="200", code="ok") == 2
    assert served.sample("dat_images_total", outcome="ok") == 2
    (found,) = (await served.http.get("/v2/models/stats")).json()["model_stats"]
    assert (found["inference_count"], found["execution_count"]) == (2, 2)
    counts = {name: duration["count"] for name, duration in found["inference_stats"].items()}
    assert counts["success"] == counts["queue"] == counts["compute_infer"] == 2
    assert counts["fail"] == 1
    assert found["inference_stats"]["fail"]["ns"] > 0


async def test_all_outputs_are_described_and_answered_where_the_setting_says_so(model: ModelDirectory) -> None:
    async with serving(model, v2_outputs="all") as served:
        names = [record.name for record in model.manifest.outputs]
        metadata = (await served.http.get("/v2/models/tiny")).json()
        config = (await served.http.get("/v2/models/tiny/config")).json()
        answer = (await served.http.post(PATH, json=document(tensor(data=FLAT)))).json()
        for found in (metadata["outputs"], config["output"], answer["outputs"]):
            assert [output["name"] for output in found] == names


async def test_infer_of_the_served_model_passes_the_framework_by(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.app.router, "middleware_stack", None)  # whoever comes here fails
    assert (await served.http.get("/v2")).status_code == 500
    for path in (PATH, PATH.replace("/infer", "/versions/3/infer")):
        assert (await served.http.post(path, **binary(document()))).status_code == 200


@pytest.mark.parametrize(
    ("query", "parameters", "expected_s"),
    [
        ("", {}, 30),
        ("", {"timeout": 0}, 30),
        ("", {"timeout": 10_000_000}, 10),
        ("", {"timeout": 90_000_000}, 30),
        ("timeout_ms=10000", {"timeout": 20_000_000}, 10),
        ("timeout_ms=20000", {"timeout": 10_000_000}, 10),
    ],
)
async def test_earliest_of_all_deadlines_counts(
    served: Served, monkeypatch: pytest.MonkeyPatch, query: str, parameters: dict[str, int], expected_s: float
) -> None:
    seen: list[float] = []
    infer = served.engine.infer

    def watched(*images: Any, deadline_s: float, **terms: Any) -> Awaitable[list[Answer]]:
        seen.append(deadline_s)
        return infer(*images, deadline_s=deadline_s, **terms)

    monkeypatch.setattr(served.engine, "infer", watched)
    earliest_s = time.monotonic()
    assert (await served.http.post(f"{PATH}?{query}", **binary(document(parameters=parameters)))).status_code == 200
    assert earliest_s + expected_s <= seen[0] <= time.monotonic() + expected_s
