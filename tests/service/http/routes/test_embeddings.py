"""`POST /v1/embeddings`: the bodies that OpenAI's clients send, and what is decided before and behind them."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.access.keys import make_key
from service.model.directory import ModelDirectory, open_model
from tests.service import tiny_dynamic, tiny_model
from tests.service.conftest import GatedSession, Served, serving, until
from tests.service.pictures import bilevel_png, expected, photo

PATH = "/v1/embeddings"
PHOTOS = (photo("JPEG", seed=1), photo("PNG", seed=2))
INPUT = [base64.b64encode(data).decode() for data in PHOTOS]
CHANNELS = 3


def plain() -> NDArray[np.float32]:
    return np.stack([expected(data, "embedding") for data in PHOTOS])


def unit() -> NDArray[np.float32]:
    vectors = plain()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def error_of(response: httpx.Response, status: int, code: str) -> str:
    """The message of an error, which says the same in both forms that it has."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    error = problem["error"]
    assert (problem["code"], error["code"], error["param"]) == (code, code, None)
    assert error["message"].startswith(problem["detail"])
    kind = {429: "rate_limit_error"}.get(status, "invalid_request_error" if status < 500 else "server_error")
    assert error["type"] == kind
    message: str = error["message"]
    return message


async def test_answer_is_openais(served: Served) -> None:
    response = await served.http.post(PATH, json={"input": INPUT}, headers={"X-Request-ID": "mine"})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["object"], answer["model"]) == ("list", f"{tiny_model.NAME}:{tiny_model.VERSION}")
    assert answer["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    assert [(each["object"], each["index"]) for each in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    np.testing.assert_allclose([each["embedding"] for each in answer["data"]], unit(), atol=1e-3)
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["x-model-name"] == tiny_model.NAME
    assert "inference" in response.headers["server-timing"]


async def test_base64_is_the_same_numbers(served: Served) -> None:
    asked = {"input": INPUT, "encoding_format": "base64", "user": "me", "dimensions": CHANNELS, "modality": "image"}
    answer = (await served.http.post(PATH, json=asked)).json()
    vectors = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in answer["data"]]
    listed = (await served.http.post(PATH, json={"input": INPUT, "encoding_format": "float"})).json()
    np.testing.assert_array_equal(vectors, np.array([each["embedding"] for each in listed["data"]], np.float32))


async def test_not_normalized_they_are_those_of_features(served: Served) -> None:
    answer = (await served.http.post(PATH, json={"input": INPUT, "normalize": False})).json()
    features = (await served.http.post("/v1/features", json={"images": INPUT})).json()
    assert [each["embedding"] for each in answer["data"]] == [
        each["features"]["embedding"] for each in features["results"]
    ]


@pytest.mark.parametrize(
    ("asked", "status", "code", "message"),
    [
        ({"input": "a cat"}, 400, "malformed_request", "input is text, or no image. The model is a vision model"),
        ({"input": ["https://example.com/a.jpg"]}, 400, "malformed_request", "No image is fetched from an address"),
        ({"input": [INPUT[0], "data:image/png;base64,AAAA"]}, 422, "bad_image", "Image 1: Not an image in a format"),
        ({"input": [base64.b64encode(bilevel_png(10_000, 10_000)).decode()]}, 422, "bad_image", "Image 0: "),
        ({"input": INPUT, "dimensions": 2}, 422, "invalid_parameter", "have 3 numbers; none is shortened"),
        ({"input": INPUT, "dimensions": 0}, 400, "malformed_request", "wrong at dimensions"),
        ({"input": INPUT, "encoding_format": "int8"}, 400, "malformed_request", "wrong at encoding_format"),
        ({"input": INPUT, "modality": "text"}, 400, "malformed_request", "wrong at modality"),
        ({"input": INPUT, "model": "text-embedding-3-small"}, 404, "unknown_model", "'tiny' is served"),
        ({"input": INPUT, "model": "tiny:9"}, 404, "unknown_model", "no version '9'"),
        ({"input": INPUT, "inputs": 1}, 400, "malformed_request", "wrong at inputs"),
        ({"input": INPUT, "messages": []}, 400, "malformed_request", "both 'input' and 'messages'"),
        ({"model": "tiny"}, 400, "malformed_request", "no 'input'"),
        ({"input": INPUT[:1] * 65}, 413, "too_large", "more than 64 images"),
        ({"input": list(range(8000))}, 413, "too_large", "more parts"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_said_where_openais_clients_look(
    served: Served, asked: dict[str, Any], status: int, code: str, message: str
) -> None:
    assert message in error_of(await served.http.post(PATH, json=asked), status, code)
    assert served.engine.slots_in_use == 0


async def test_headers_and_query_are_looked_at_before_the_body(served: Served) -> None:
    image = await served.http.post(PATH, content=PHOTOS[0], headers={"Content-Type": "image/jpeg"})
    assert "send application/json" in error_of(image, 415, "unsupported_media_type")
    nothing = await served.http.post(PATH, content=b"")
    assert "no Content-Type" in error_of(nothing, 415, "unsupported_media_type")
    coded = await served.http.post(PATH, json={"input": INPUT}, headers={"Content-Encoding": "gzip"})
    assert "gzip" in error_of(coded, 415, "unsupported_media_type")
    accept = await served.http.post(PATH, json={"input": INPUT}, headers={"Accept": "text/csv"})
    error_of(accept, 406, "not_acceptable")
    query = await served.http.post(f"{PATH}?input=x", json={"input": INPUT})
    assert "no such parameter" in error_of(query, 422, "invalid_parameter")


async def test_key_and_limits_are_those_of_every_call(model: ModelDirectory) -> None:
    key, entry = make_key("app")
    async with serving(model, api_keys=f"{entry}:rate=0.001:burst=1", max_body_bytes=40_000) as served:
        error_of(await served.http.post(PATH, json={"input": INPUT}), 401, "unauthorized")
        bearer = {"Authorization": f"Bearer {key}"}
        long = await served.http.post(PATH, json={"input": INPUT * 30}, headers=bearer)
        error_of(long, 413, "too_large")
        limited = await served.http.post(PATH, json={"input": INPUT}, headers=bearer)
        error_of(limited, 429, "rate_limited")
        assert int(limited.headers["retry-after"]) > 0


async def test_below_a_prefix_the_error_has_its_type_there(model: ModelDirectory) -> None:
    async with serving(model, root_path="/vision") as served:
        response = await served.http.post(f"/vision{PATH}", json={"input": "a cat"})
        error_of(response, 400, "malformed_request")
        assert response.json()["type"] == "/vision/problems/malformed_request"


async def test_full_server_refuses_whatever_is_in_the_body(model: ModelDirectory) -> None:
    session = GatedSession()
    async with serving(model, session, max_queued_images=2, max_images=2) as served:
        session.close()
        first = asyncio.create_task(served.http.post(PATH, json={"input": INPUT}))
        await until(lambda: served.engine.slots_in_use == 2)
        refused = await served.http.post(PATH, content=b"no JSON", headers={"Content-Type": "application/json"})
        error_of(refused, 429, "overloaded")
        session.gate.set()
        assert (await first).status_code == 200


async def test_late_answer_is_a_deadline(model: ModelDirectory) -> None:
    session = GatedSession()
    async with serving(model, session) as served:
        session.close()
        late = await served.http.post(f"{PATH}?timeout_ms=50", json={"input": INPUT})
        error_of(late, 504, "deadline_exceeded")


async def test_model_is_named_with_its_version(model: ModelDirectory, tmp_path: Path) -> None:
    tiny_model.write(tmp_path, name="other", seed=11)
    other = open_model(tmp_path / "other" / str(tiny_model.VERSION))
    async with serving(model, others=[other]) as served:
        for name in ("other", f"other:{tiny_model.VERSION}"):
            answer = (await served.http.post(PATH, json={"input": INPUT[0], "model": name})).json()
            assert answer["model"] == f"other:{tiny_model.VERSION}"
        listed = (await served.http.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert [(each["id"], each["object"]) for each in listed["data"]] == [("tiny", "model"), ("other", "model")]
        assert {each["created"] for each in listed["data"]} == {1_767_225_600}


async def test_other_sizes_are_asked_for_in_the_query(tmp_path: Path) -> None:
    async with serving(open_model(tiny_dynamic.write(tmp_path)), max_input_pixels=20_000) as served:
        answer = await served.http.post(f"{PATH}?size=33x91", json={"input": INPUT, "normalize": False})
        features = await served.http.post("/v1/features?size=33x91", json={"images": INPUT})
        assert [each["embedding"] for each in answer.json()["data"]] == [
            each["features"]["embedding"] for each in features.json()["results"]
        ]
        error_of(await served.http.post(f"{PATH}?size=9000", json={"input": INPUT}), 422, "invalid_parameter")
