"""API keys and their limits, as requests meet them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from service.access.keys import make_key
from service.model.directory import ModelDirectory
from tests.service.conftest import GatedSession, serving
from tests.service.pictures import photo

CLASSIFY = "/v1/classify"
PHOTO = photo("JPEG")


def as_key(key: str) -> dict[str, Any]:
    return {"content": PHOTO, "headers": {"Authorization": f"Bearer {key}", "Content-Type": "image/jpeg"}}


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


async def test_request_over_the_rate_is_told_when_to_come_back(model: ModelDirectory) -> None:
    key, entry = make_key("slow")
    async with serving(model, api_keys=f"{entry}:rate=0.01:burst=2") as served:
        for _ in range(2):
            assert (await served.http.post(CLASSIFY, **as_key(key))).status_code == 200
        response = await served.http.get("/v1/models", headers=as_key(key)["headers"])
        assert code_of(response) == (429, "rate_limited")
        assert 90 <= int(response.headers["retry-after"]) <= 100
        assert "slow" in response.json()["detail"]


async def test_limits_are_looked_at_before_the_body_and_after_the_key(model: ModelDirectory) -> None:
    key, entry = make_key("slow")

    async with serving(model, api_keys=f"{entry}:rate=0.01") as served:
        wrong = {"Authorization": "Bearer wrong", "Content-Type": "image/jpeg"}
        unknown = await served.http.post(CLASSIFY, content=PHOTO, headers=wrong)
        assert unknown.status_code == 401
        assert (await served.http.post(CLASSIFY, **as_key(key))).status_code == 200
        refused = await served.http.post(CLASSIFY, **as_key(key))
        assert code_of(refused) == (429, "rate_limited")
        for response in (unknown, refused):  # the mark of an answer that was sent with the body unread
            assert response.headers["connection"] == "close"


async def test_request_in_flight_counts_until_it_ends_however_it_does(model: ModelDirectory) -> None:
    session = GatedSession()
    key, entry = make_key("one-by-one")
    other_key, other_entry = make_key("unlimited")
    async with serving(model, session, api_keys=f"{entry}:concurrency=1,{other_entry}") as served:
        session.close()
        first = asyncio.create_task(served.http.post(CLASSIFY, **as_key(key)))
        await session.run_began()
        refused = await served.http.post(CLASSIFY, **as_key(key))
        assert code_of(refused) == (429, "concurrency_limited")
        assert refused.headers["retry-after"] == "1"
        assert (await served.http.get("/v1/models", headers=as_key(other_key)["headers"])).status_code == 200
        session.failure = RuntimeError("on purpose")
        session.gate.set()
        assert (await first).status_code == 500
        session.failure = None
        assert (await served.http.post(CLASSIFY, **as_key(key))).status_code == 200


async def test_request_that_is_cancelled_no_longer_counts(model: ModelDirectory) -> None:
    session = GatedSession()
    key, entry = make_key("one-by-one")
    async with serving(model, session, api_keys=f"{entry}:concurrency=1") as served:
        session.close()
        asking = asyncio.create_task(served.http.post(CLASSIFY, **as_key(key)))
        await session.run_began()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        session.gate.set()
        assert (await served.http.post(CLASSIFY, **as_key(key))).status_code == 200


async def test_name_of_the_key_is_logged_and_counted(model: ModelDirectory, caplog: pytest.LogCaptureFixture) -> None:
    key, entry = make_key("phone-app")
    async with serving(model, api_keys=entry) as served:
        with caplog.at_level("INFO", logger="service.access"):
            await served.http.post(CLASSIFY, **as_key(key))
            await served.http.post(CLASSIFY, headers={"Authorization": "Bearer guess"})
        lines = [record.__dict__["fields"] for record in caplog.records if record.name == "service.access"]
        assert [fields.get("key") for fields in lines] == ["phone-app", None]
        assert served.sample("dat_key_requests_total", key="phone-app", code="ok") == 1
        assert served.sample("dat_key_requests_total", key="phone-app", code="unauthorized") == 0
