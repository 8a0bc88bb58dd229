"""What becomes of the answers that Ray's proxies give; the proxy is a small application here."""

from __future__ import annotations

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy.ray_proxy import ProblemAnswers, middlewares


async def ask(proxy: ASGIApp, path: str = "/v1/classify", **headers: str) -> httpx.Response:
    (layer,) = middlewares()
    assert layer.cls is ProblemAnswers
    transport = httpx.ASGITransport(ProblemAnswers(proxy))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        return await client.post(path, headers=headers)


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """A proxy whose replica died: it returns without an answer."""


@pytest.mark.parametrize(
    ("status", "expected", "code", "retry_after"),
    [
        (429, 429, "overloaded", "7"),
        (503, 503, "not_ready", "5"),
        (408, 504, "deadline_exceeded", None),
        (404, 404, "not_found", None),
    ],
)
async def test_the_proxys_own_answers_become_problems(
    status: int, expected: int, code: str, retry_after: str | None
) -> None:
    headers = {"Retry-After": "7"} if status == 429 else None
    answer = await ask(PlainTextResponse("Ray says no", status, headers))
    assert (answer.status_code, answer.headers["content-type"]) == (expected, "application/problem+json")
    assert answer.json()["code"] == code
    assert answer.headers.get("retry-after") == retry_after
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "Ray" not in answer.text


async def test_a_request_whose_replica_died_is_told_to_come_back() -> None:
    answer = await ask(silent, **{"X-Request-ID": "mine"})
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "not_ready", "5")
    assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]] == ["mine"]


async def test_under_the_inference_protocol_it_is_told_so_in_that_protocol() -> None:
    answer = await ask(silent, "/v2/models/dat/infer")
    assert answer.status_code == 503
    assert answer.json().keys() == {"error"}


@pytest.mark.parametrize("status", [200, 404, 429, 503])
async def test_what_the_service_answered_passes_with_its_request_id_once(status: int) -> None:
    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        (given,) = [value for name, value in scope["headers"] if name == b"x-request-id"]
        answer = JSONResponse({"code": "mine"}, status, {"X-Request-ID": given.decode()})
        answer.raw_headers.append((b"x-request-id", given))
        await answer(scope, receive, send)

    answer = await ask(proxy)
    assert (answer.status_code, answer.json()) == (status, {"code": "mine"})
    assert len(answer.headers.get_list("x-request-id")) == 1


async def test_an_id_that_the_service_would_not_take_is_replaced_before_ray_sees_it() -> None:
    seen: list[bytes] = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(value for name, value in scope["headers"] if name == b"x-request-id")

    answer = await ask(proxy, **{"X-Request-ID": "a" * 129})
    assert [value.decode() for value in seen] == [answer.headers["x-request-id"]]
    assert len(answer.headers["x-request-id"]) == 32


async def test_rays_own_pages_are_left_alone() -> None:
    answer = await ask(PlainTextResponse("draining", 503), "/-/healthz")
    assert (answer.status_code, answer.text) == (503, "draining")
