"""An image that comes again is answered as before, by whatever call, and neither decoded nor run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from service.access.keys import make_key
from service.model.directory import ModelDirectory
from tests.service.conftest import GatedSession, Served, serving
from tests.service.pictures import photo

PHOTOS = [photo("PNG", seed=seed) for seed in range(4)]
NPZ, RAW = "application/x-npz", "application/octet-stream"
CALLS = {
    "classify": ("/v1/classify?top_k=7", {}),
    "classify some": ("/v1/classify?classes=1,2&min_score=0.01", {}),
    "logits": ("/v1/features?outputs=logits", {}),
    "embedding": ("/v1/features?normalize=true", {}),
    "maps": ("/v1/features?outputs=stage4&outputs=logits&outputs=stage1", {}),
    "base64": ("/v1/features?outputs=stage2&encoding=base64&dtype=float16", {}),
    "archive": ("/v1/features?outputs=embedding&outputs=logits", {"Accept": NPZ}),
    "raw": ("/v1/features?outputs=stage3", {"Accept": RAW}),
    "explain": ("/v1/explain", {}),
    "explain a place": ("/v1/explain?query=60,40&layer=0", {}),
    "picture": ("/v1/explain?layer=0", {"Accept": "image/png"}),
}


@pytest.fixture
async def caching(model: ModelDirectory) -> AsyncIterator[tuple[Served, GatedSession]]:
    session = GatedSession()
    async with serving(model, session, cache_images=100) as served:
        session.sizes.clear()
        yield served, session


async def ask(served: Served, url: str, *images: bytes, **headers: str) -> httpx.Response:
    files = [("image", (f"{place}.png", data, "image/png")) for place, data in enumerate(images)]
    response = await served.http.post(url, files=files, headers=headers)
    assert response.status_code == 200, response.text
    return response


def values(response: httpx.Response) -> Any:
    """All of an answer but the request's id and times."""
    if response.headers["content-type"] != "application/json":
        return response.content
    return {name: value for name, value in response.json().items() if name not in ("request_id", "timings_ms")}


def lookups(served: Served) -> tuple[float, float]:
    return tuple(served.sample("dat_cache_lookups_total", outcome=outcome) for outcome in ("hit", "miss"))  # type: ignore[return-value]


@pytest.mark.parametrize("name", CALLS)
async def test_every_answer_is_the_same_from_the_cache_as_without_one(
    model: ModelDirectory, caching: tuple[Served, GatedSession], name: str
) -> None:
    url, headers = CALLS[name]
    served, session = caching
    async with serving(model, GatedSession()) as plain:
        without = values(await ask(plain, url, PHOTOS[0], **headers))
        assert plain.sample("dat_cache_lookups_total") == plain.sample("dat_cache_images") == 0
    first = values(await ask(served, url, PHOTOS[0], **headers))
    runs = len(session.sizes)
    response = await ask(served, url, PHOTOS[0], **headers)
    assert first == without
    assert values(response) == without
    assert len(session.sizes) == runs
    assert lookups(served) == (1, 1)
    assert served.sample("dat_cache_images") == 1
    assert served.sample("dat_cache_bytes") > 0
    assert served.sample("dat_images_total", outcome="ok") == 2
    for stage in ("decode", "preprocess", "queue", "inference"):
        assert f"{stage};dur=0," in response.headers["server-timing"]
        assert served.sample("dat_stage_duration_seconds_count", stage=stage) == 1


async def test_calls_find_what_another_call_has_computed(caching: tuple[Served, GatedSession]) -> None:
    served, session = caching
    await ask(served, "/v1/classify?top_k=1", PHOTOS[0])
    for name in ("classify", "classify some", "logits", "embedding", "archive"):
        await ask(served, CALLS[name][0], PHOTOS[0])
    assert len(session.sizes) == 1
    file = np.array([PHOTOS[0]], np.object_)
    image = triton.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(file)
    body, length = triton.InferenceServerClient.generate_request_body([image])
    headers = {"Inference-Header-Content-Length": str(length)}
    assert (await served.http.post("/v2/models/tiny/infer", content=body, headers=headers)).status_code == 200
    assert len(session.sizes) == 1
    statistics = (await served.http.get("/v2/models/tiny/stats")).json()["model_stats"][0]
    counts = {name: statistics["inference_stats"][name]["count"] for name in ("cache_hit", "cache_miss")}
    assert (counts, statistics["inference_count"]) == ({"cache_hit": 6, "cache_miss": 1}, 1)


async def test_of_a_request_only_what_is_missing_is_computed_and_all_come_in_order(
    model: ModelDirectory, caching: tuple[Served, GatedSession]
) -> None:
    served, _ = caching
    url = "/v1/features?outputs=logits&outputs=stage4&on_error=skip"
    await ask(served, url, PHOTOS[1], PHOTOS[3])
    images = [PHOTOS[0], PHOTOS[1], b"no image", PHOTOS[2], PHOTOS[3], PHOTOS[1]]
    async with serving(model, GatedSession()) as plain:
        for accept in ("application/json", NPZ):
            without = await ask(plain, url, *images, Accept=accept)
            assert values(await ask(served, url, *images, Accept=accept)) == values(without)
    assert served.sample("dat_batch_size_sum") == 2 + 2
    assert lookups(served) == (3 + 5, 2 + 3 + 1)  # what is no image is never found
    assert served.sample("dat_images_total", outcome="unsupported_format") == 2


async def test_a_bad_image_fails_the_request_whatever_is_kept_of_the_others(
    caching: tuple[Served, GatedSession],
) -> None:
    served, _ = caching
    await ask(served, "/v1/classify", PHOTOS[0])
    files = [("image", PHOTOS[0]), ("image", b"no image")]
    response = await served.http.post("/v1/classify", files=files)
    assert (response.status_code, response.json()["code"]) == (422, "bad_image")
    assert [each["index"] for each in response.json()["errors"]] == [1]


async def test_a_place_outside_is_refused_of_an_image_that_is_kept_too(caching: tuple[Served, GatedSession]) -> None:
    served, _ = caching
    await ask(served, "/v1/explain", PHOTOS[0])
    for image in (PHOTOS[0], PHOTOS[1]):
        response = await served.http.post("/v1/explain?query=99999,1", files=[("image", image)])
        assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
        assert "is outside" in response.json()["detail"]


async def test_pixels_are_kept_by_their_type_and_values(caching: tuple[Served, GatedSession]) -> None:
    served, session = caching
    pixels = np.zeros((2, 56, 56, 3), np.uint8)
    pixels[1] = 9

    async def infer(batch: np.ndarray, datatype: str) -> list[float]:
        tensor = {"name": "image", "datatype": datatype, "shape": list(batch.shape), "data": batch.reshape(-1).tolist()}
        response = await served.http.post("/v2/models/tiny/infer", json={"inputs": [tensor]})
        data: list[float] = response.json()["outputs"][0]["data"]
        return data

    both = await infer(pixels, "UINT8")
    session.sizes.clear()
    assert await infer(pixels[::-1], "UINT8") == both[7:] + both[:7]
    assert session.sizes == []
    assert lookups(served) == (2, 2)


async def test_keys_never_find_what_others_have_sent(model: ModelDirectory) -> None:
    (one, entry), (other, second) = make_key("one"), make_key("other")
    session = GatedSession()
    async with serving(model, session, cache_images=100, api_keys=f"{entry},{second}") as served:
        session.sizes.clear()
        for key, runs in ((one, 1), (one, 1), (other, 2), (other, 2), (one, 2)):
            await ask(served, "/v1/classify", PHOTOS[0], Authorization=f"Bearer {key}")
            assert len(session.sizes) == runs
        refused = await served.http.post("/v1/classify", content=PHOTOS[0], headers={"Content-Type": "image/png"})
        assert refused.status_code == 401


async def test_what_fails_is_not_kept(caching: tuple[Served, GatedSession]) -> None:
    served, session = caching
    session.failure = RuntimeError("the device is gone")
    response = await served.http.post("/v1/classify", files=[("image", PHOTOS[0])])
    assert response.status_code == 500
    session.failure = None
    await ask(served, "/v1/classify", PHOTOS[0])
    assert lookups(served) == (0, 2)
    await ask(served, "/v1/classify", PHOTOS[0])
    assert lookups(served) == (1, 2)


async def test_what_is_kept_is_answered_while_there_is_no_room_for_more(model: ModelDirectory) -> None:
    session = GatedSession()
    async with serving(model, session, cache_images=100, max_queued_images=2, max_images=2) as served:
        await ask(served, "/v1/classify", PHOTOS[0], PHOTOS[1])
        session.close()
        waiting = asyncio.create_task(ask(served, "/v1/classify", PHOTOS[2]))
        await session.run_began()
        await ask(served, "/v1/classify", PHOTOS[0], PHOTOS[1])  # one place is free, and none is taken
        assert (await served.http.post("/v1/classify", files=[("image", PHOTOS[3])] * 2)).status_code == 429
        session.gate.set()
        await waiting


async def test_large_images_are_found_as_small_ones_are(caching: tuple[Served, GatedSession]) -> None:
    served, session = caching
    large = photo("BMP", width=400, height=300)
    assert len(large) > 128 * 1024
    first = values(await ask(served, "/v1/classify", large))
    assert values(await ask(served, "/v1/classify", large)) == first
    assert values(await ask(served, "/v1/classify", large[:-1] + bytes([large[-1] ^ 255]))) != {}
    assert (len(session.sizes), lookups(served)) == (2, (1, 2))
