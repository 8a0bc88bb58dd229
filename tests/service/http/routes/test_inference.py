"""What classify and features share: admission, deadlines, priorities, bad images, overload, death."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import httpx
import numpy as np
import pytest

from service.engine.client import EngineClient
from service.engine.graphs import Graph
from service.engine.types import Answer, Priority, Shape
from service.errors import Overloaded, RepositoryError
from service.model.directory import ModelDirectory
from tests.service.conftest import GatedSession, Served, make_parts, serving
from tests.service.pictures import bilevel_png, expected, photo

CLASSIFY, FEATURES = "/v1/classify", "/v1/features"
PHOTO = photo("JPEG")
RAW: dict[str, Any] = {"content": PHOTO, "headers": {"Content-Type": "image/jpeg"}}


def as_json(*images: bytes) -> dict[str, Any]:
    return {"images": [base64.b64encode(image).decode() for image in images]}


async def problem_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code
    return problem


BAD = {
    "empty_image": b"",
    "unsupported_format": b"just text",
    "undecodable": PHOTO[: len(PHOTO) // 2],
    "too_many_pixels": bilevel_png(10_000, 10_000),
}


@pytest.mark.parametrize("path", [CLASSIFY, FEATURES])
async def test_every_bad_image_is_named_and_nothing_is_inferred(served: Served, path: str) -> None:
    before = served.sample("dat_batch_size_count")
    response = await served.http.post(path, json=as_json(PHOTO, *BAD.values()))
    problem = await problem_of(response, 422, "bad_image")
    assert [fault["index"] for fault in problem["errors"]] == [1, 2, 3, 4]
    assert [fault["code"] for fault in problem["errors"]] == list(BAD)
    assert served.sample("dat_batch_size_count") == before
    assert served.engine.slots_in_use == 0


@pytest.mark.parametrize(("form", "media_type"), [("AVIF", "image/avif"), ("HEIF", "image/heic")])
async def test_photos_of_phones_and_browsers_are_answered_in_every_form(
    served: Served, form: str, media_type: str
) -> None:
    image = photo(form)
    raw = await served.http.post(FEATURES, content=image, headers={"content-type": media_type})
    in_json = await served.http.post(FEATURES, json=as_json(image))
    in_form = await served.http.post(FEATURES, files={"image": ("photo", image, media_type)})
    wanted = expected(image, "embedding")
    for response in (raw, in_json, in_form):
        assert response.status_code == 200, response.text
        np.testing.assert_allclose(response.json()["results"][0]["features"]["embedding"], wanted, atol=1e-4)


@pytest.mark.parametrize("path", [CLASSIFY, FEATURES])
async def test_skip_answers_the_good_images_and_marks_the_bad_ones(served: Served, path: str) -> None:
    images = [BAD["undecodable"], PHOTO, BAD["too_many_pixels"], photo("PNG", seed=4)]
    response = await served.http.post(f"{path}?on_error=skip", json=as_json(*images))
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["index"] for result in results] == [0, 1, 2, 3]
    assert [result.get("error", {}).get("code") for result in results] == ["undecodable", None, "too_many_pixels", None]
    answered = "predictions" if path == CLASSIFY else "features"
    assert [answered in result for result in results] == [False, True, False, True]


async def test_skip_with_no_good_image_still_answers_in_json(served: Served) -> None:
    response = await served.http.post(f"{CLASSIFY}?on_error=skip", json=as_json(*BAD.values()))
    assert response.status_code == 200
    assert [result["error"]["code"] for result in response.json()["results"]] == list(BAD)
    assert response.json()["timings_ms"]["inference"] == 0


async def test_valid_requests_beside_bad_ones_get_their_right_answers(served: Served) -> None:
    photos = [photo("PNG", seed=seed) for seed in range(6)]
    bad = [
        served.http.post(CLASSIFY, content=data or b"x", headers={"Content-Type": "image/png"}) for data in BAD.values()
    ] + [
        served.http.post(CLASSIFY, content=PHOTO, headers={"Content-Type": "text/plain"}),
        served.http.post(CLASSIFY, json={"images": ["?"]}),
        served.http.post(f"{CLASSIFY}?timeout_ms=nan", **RAW),
        served.http.post(CLASSIFY, json=as_json(*[PHOTO] * 65)),
    ]
    good = [
        served.http.post(f"{FEATURES}?outputs=logits", content=data, headers={"Content-Type": "image/png"})
        for data in photos
    ]
    answers = await asyncio.gather(*(call for pair in zip(bad, good, strict=False) for call in pair), *bad[6:])
    wrong = [answer.status_code for answer in (*answers[0:12:2], *answers[12:])]
    assert wrong == [422, 422, 422, 422, 415, 400, 422, 413]
    for data, answer in zip(photos, answers[1:12:2], strict=True):
        logits = answer.json()["results"][0]["features"]["logits"]
        np.testing.assert_allclose(logits, expected(data, "logits"), atol=1e-3)


BAD_PARAMETERS = [
    *(f"timeout_ms={value}" for value in ("nan", "inf", "-1", "0", "", "1e999", "0.5", "NaN", "null")),
    *(f"top_k={value}" for value in ("0", "-1", "2.5", "nan", "all", "")),
    "priority=urgent",
    "on_error=ignore",
    "topk=5",
    "model=tiny&modle=tiny",
]


@pytest.mark.parametrize("query", BAD_PARAMETERS)
async def test_bad_or_unknown_parameter_is_422_and_named(served: Served, query: str) -> None:
    problem = await problem_of(await served.http.post(f"{CLASSIFY}?{query}", **RAW), 422, "invalid_parameter")
    assert query.rsplit("&", 1)[-1].split("=")[0] in problem["detail"]


async def test_unknown_model_is_404_and_the_served_one_may_be_named(served: Served) -> None:
    await problem_of(await served.http.post(f"{CLASSIFY}?model=other", **RAW), 404, "unknown_model")
    assert (await served.http.post(f"{CLASSIFY}?model=tiny", **RAW)).status_code == 200


async def test_huge_timeout_is_the_servers_own(served: Served) -> None:
    assert (await served.http.post(f"{CLASSIFY}?timeout_ms={10**30}", **RAW)).status_code == 200


async def test_deadline_that_passes_in_the_queue_is_504(model: ModelDirectory) -> None:
    session = GatedSession()
    async with serving(model, session) as served:
        session.close()
        blocking = asyncio.create_task(served.http.post(CLASSIFY, **RAW))
        await session.run_began()
        late = await served.http.post(f"{CLASSIFY}?timeout_ms=50", **RAW)
        await problem_of(late, 504, "deadline_exceeded")
        session.gate.set()
        assert (await blocking).status_code == 200


async def test_request_cannot_lengthen_the_servers_deadline(model: ModelDirectory) -> None:
    session = GatedSession()
    async with serving(model, session, timeout_ms=50) as served:
        session.close()
        response = await served.http.post(f"{CLASSIFY}?timeout_ms=60000", **RAW)
        await problem_of(response, 504, "deadline_exceeded")
        session.gate.set()


async def test_full_queue_is_429_with_retry_after(model: ModelDirectory) -> None:
    session = GatedSession()
    async with serving(model, session, max_queued_images=2, max_images=2) as served:
        session.close()
        filling = asyncio.create_task(served.http.post(CLASSIFY, json=as_json(PHOTO, PHOTO)))
        await session.run_began()
        response = await served.http.post(CLASSIFY, **RAW)
        await problem_of(response, 429, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["connection"] == "close"
        session.gate.set()
        assert (await filling).status_code == 200
        assert served.sample("dat_requests_total", route=CLASSIFY, status="429", code="overloaded") == 1
        assert (await served.http.post(CLASSIFY, **RAW)).status_code == 200


async def test_room_is_counted_in_images(model: ModelDirectory) -> None:
    session = GatedSession()
    async with serving(model, session, max_queued_images=3, max_images=3) as served:
        session.close()
        filling = asyncio.create_task(served.http.post(CLASSIFY, json=as_json(PHOTO, PHOTO)))
        await session.run_began()
        await problem_of(await served.http.post(CLASSIFY, json=as_json(PHOTO, PHOTO)), 429, "overloaded")
        one_more = asyncio.create_task(served.http.post(CLASSIFY, **RAW))
        session.gate.set()
        assert (await filling).status_code == 200
        assert (await one_more).status_code == 200


async def test_request_is_503_while_the_model_loads_and_answered_after(model: ModelDirectory) -> None:
    session = GatedSession()
    session.close()
    async with serving(model, session, wait_ready=False) as served:
        response = await served.http.post(CLASSIFY, **RAW)
        await problem_of(response, 503, "not_ready")
        assert "retry-after" in response.headers
        assert (await served.http.get("/health/ready")).status_code == 503
        assert (await served.http.get("/health/live")).status_code == 200
        session.gate.set()
        await served.ready()
        assert (await served.http.get("/health/ready")).json() == {"status": "ready"}
        assert (await served.http.post(CLASSIFY, **RAW)).status_code == 200


async def test_failing_run_is_a_500_without_internals_for_its_batch_alone(model: ModelDirectory) -> None:
    session = GatedSession()
    async with serving(model, session) as served:
        session.failure = RuntimeError("/secret/weights at 0xdeadbeef")
        response = await served.http.post(CLASSIFY, **RAW)
        await problem_of(response, 500, "inference_failed")
        assert "secret" not in response.text
        session.failure = None
        assert (await served.http.post(CLASSIFY, **RAW)).status_code == 200


async def test_engine_that_hangs_fails_what_it_held_and_is_not_ready_any_more(model: ModelDirectory) -> None:
    session = GatedSession()
    async with serving(model, session, hang_timeout_ms=50) as served:
        session.close()
        await problem_of(await served.http.post(CLASSIFY, **RAW), 503, "not_ready")
        await problem_of(await served.http.get("/health/ready"), 503, "not_ready")
        await problem_of(await served.http.post(CLASSIFY, **RAW), 503, "not_ready")
        assert (await served.http.get("/health/live")).status_code == 200
        assert served.sample("dat_engine_state", state="dead") == 1
        session.gate.set()


async def test_engine_that_cannot_load_is_reported_and_never_ready(model: ModelDirectory) -> None:
    def load(_: Graph) -> GatedSession:
        raise RepositoryError("the graph is broken")

    parts = make_parts(model, load)
    async with parts.app.router.lifespan_context(parts.app):
        with pytest.raises(RepositoryError):
            await parts.engine.wait_ready()
        await asyncio.sleep(0)  # the application waits as this test did, and is told in the same turn of the loop
        async with httpx.AsyncClient(transport=httpx.ASGITransport(parts.app), base_url="http://service") as http:
            await problem_of(await http.get("/health/ready"), 503, "not_ready")
            response = await http.post(CLASSIFY, **RAW)
            await problem_of(response, 503, "not_ready")
            assert "graph" not in response.text
        await asyncio.sleep(0)  # who watches the start is woken after this test
    assert [str(error) for error in parts.failed_starts] == ["the graph is broken"]


async def test_priority_reaches_decoding_and_the_engine(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Priority] = []
    infer = served.engine.infer

    def spy(*images: Any, priority: Priority, **terms: Any) -> Awaitable[list[Answer]]:
        given.append(priority)
        return infer(*images, priority=priority, **terms)

    pool = served.app.state.service.decode_pool
    decode = pool.run

    def decoding(priority: Priority, *work: Any) -> asyncio.Future[Any]:
        given.append(priority)
        future: asyncio.Future[Any] = decode(priority, *work)
        return future

    monkeypatch.setattr(served.engine, "infer", spy)
    monkeypatch.setattr(pool, "run", decoding)
    for query in ("", "?priority=bulk", "?priority=interactive"):
        assert (await served.http.post(f"{CLASSIFY}{query}", **RAW)).status_code == 200
    assert given == [priority for priority in (Priority.INTERACTIVE, Priority.BULK, Priority.INTERACTIVE) for _ in "12"]


async def test_work_that_cannot_be_in_time_is_429_before_its_body_is_read(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Priority, float]] = []

    def check_room(_: object, *, priority: Priority, deadline_s: float, shape: Shape) -> None:
        asked.append((priority, deadline_s - time.monotonic()))
        raise Overloaded("too late", retry_after_s=2.5)

    async def body() -> AsyncIterator[bytes]:
        assert asked  # what is read after the answer is discarded
        yield PHOTO

    monkeypatch.setattr(EngineClient, "check_room", check_room)
    response = await served.http.post(
        f"{CLASSIFY}?priority=bulk&timeout_ms=4000", content=body(), headers=RAW["headers"]
    )
    await problem_of(response, 429, "overloaded")
    assert response.headers["retry-after"] == "3"
    ((priority, left_s),) = asked
    assert priority is Priority.BULK
    assert 0 < left_s <= 4


async def test_unexpected_failure_is_a_500_without_internals(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret inside")

    monkeypatch.setattr("service.http.routes.classify.softmax", broken)
    response = await served.http.post(CLASSIFY, **RAW)
    await problem_of(response, 500, "internal")
    assert response.headers["server-timing"].startswith("total;dur=")
    assert "secret" not in response.text
    assert any(record.exc_info and "secret inside" in str(record.exc_info[1]) for record in caplog.records)


@pytest.mark.parametrize("given", ["abc-123", "!" * 128])
async def test_valid_request_id_is_echoed_in_header_and_body(served: Served, given: str) -> None:
    headers = {**RAW["headers"], "X-Request-ID": given}
    response = await served.http.post(CLASSIFY, content=PHOTO, headers=headers)
    assert response.headers["x-request-id"] == response.json()["request_id"] == given


@pytest.mark.parametrize("given", [b"", b"two words", b"!" * 129, b"tab\there", "ünïcode".encode("latin-1")])
async def test_bad_request_id_is_replaced(served: Served, given: bytes) -> None:
    response = await served.http.get("/health/live", headers=[(b"X-Request-ID", given)])
    assert len(response.headers["x-request-id"]) == 32


async def test_access_line_has_what_is_needed_and_nothing_of_the_content(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        files = [("image", ("private name.jpg", PHOTO, "image/jpeg"))]
        response = await served.http.post(f"{CLASSIFY}?top_k=2&model=tiny", files=files)
    (record,) = [record for record in caplog.records if record.name == "service.access"]
    fields = record.fields  # type: ignore[attr-defined]
    assert (fields["method"], fields["route"], fields["status"]) == ("POST", CLASSIFY, 200)
    assert (fields["images"], fields["code"]) == (1, "ok")
    assert fields["timings_ms"] == response.json()["timings_ms"]
    ours = [record for record in caplog.records if record.name.startswith("service")]
    text = " ".join(f"{record.getMessage()} {record.__dict__}" for record in ours)
    assert "private name" not in text
    assert "top_k" not in text
    assert "class 0" not in text


@pytest.mark.parametrize("path", [CLASSIFY, FEATURES, "/v1/models", "/v1/models/tiny"])
async def test_api_key_is_asked_for_before_anything_else(model: ModelDirectory, path: str) -> None:
    entries = ",".join(f"{key}:{hashlib.sha256(key.encode()).hexdigest()}" for key in ("first-key", "second-key"))
    async with serving(model, api_keys=entries) as served:
        ask = served.http.get if "models" in path else served.http.post
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic first-key"}):
            response = await ask(f"{path}?nonsense=1", headers=headers)
            await problem_of(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        for key in ("first-key", "second-key"):
            headers = {"Authorization": f"bearer {key}", "Content-Type": "image/jpeg"}
            response = await served.http.request(
                "GET" if "models" in path else "POST", path, headers=headers, content=PHOTO
            )
            assert response.status_code == 200
        for path_without_key in ("/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs"):
            assert (await served.http.get(path_without_key)).status_code == 200
