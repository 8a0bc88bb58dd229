from __future__ import annotations

from pathlib import Path

import pytest
from starlette.responses import Response

from service.http.security_headers import SecurityHeaders
from service.model.directory import ModelDirectory
from tests.service.conftest import GatedSession, Served, serving
from tests.service.pictures import photo

ORIGIN = "https://example.org"
EXPECTED = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "frame-ancestors 'none'",
    "x-frame-options": "DENY",
}
ANSWERS = [
    ("GET", "/health/live", 200), ("GET", "/docs", 200), ("GET", "/openapi.json", 200), ("GET", "/metrics", 200),
    ("GET", "/nowhere", 404), ("GET", "/v1/classify", 405), ("POST", "/v1/classify", 415), ("GET", "/v1/models", 200),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "status"), ANSWERS)
async def test_every_answer_has_the_security_headers_and_a_request_id(
    served: Served, method: str, path: str, status: int
) -> None:
    response = await served.http.request(method, path)
    assert response.status_code == status
    assert {name: response.headers[name] for name in EXPECTED} == EXPECTED
    assert response.headers["x-request-id"]
    assert "strict-transport-security" not in response.headers
    assert "access-control-allow-origin" not in response.headers


async def test_classification_has_the_security_headers(served: Served) -> None:
    response = await served.http.post("/v1/classify", content=photo("JPEG"), headers={"Content-Type": "image/jpeg"})
    assert response.status_code == 200
    assert {name: response.headers[name] for name in EXPECTED} == EXPECTED


async def test_header_that_a_route_has_set_stays(served: Served) -> None:
    @served.app.get("/page")
    async def page() -> Response:
        return Response(headers={"Content-Security-Policy": "default-src 'self'", "X-Frame-Options": "SAMEORIGIN"})

    response = await served.http.get("/page")
    assert response.headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert response.headers.get_list("x-frame-options") == ["SAMEORIGIN"]
    assert response.headers["x-content-type-options"] == "nosniff"


def test_only_under_tls_browsers_are_told_to_come_back_by_https() -> None:
    assert b"strict-transport-security" in dict(SecurityHeaders(tls=True).headers)
    assert b"strict-transport-security" not in dict(SecurityHeaders(tls=False).headers)


async def test_https_service_tells_browsers_to_come_back_by_https(model: ModelDirectory) -> None:
    async with serving(model, tls_certificate=Path("used by the server alone")) as served:
        assert (await served.http.get("/health/live")).headers["strict-transport-security"] == "max-age=31536000"


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/models", "/health/live"])
async def test_preflight_of_an_allowed_origin_is_granted(model: ModelDirectory, path: str) -> None:
    async with serving(model, cors_origins=f"https://other.example,{ORIGIN}", api_keys=f"a:{'0' * 64}") as served:
        response = await served.http.options(
            path,
            headers={
                "Origin": ORIGIN,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type,x-request-id,traceparent",
            },
        )
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in response.headers["access-control-allow-methods"]
        assert response.headers["x-request-id"]
        assert response.headers["x-content-type-options"] == "nosniff"


async def test_preflight_of_another_origin_is_refused(model: ModelDirectory) -> None:
    async with serving(model, cors_origins=ORIGIN) as served:
        response = await served.http.options(
            "/v1/classify", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        )
        assert response.status_code == 400
        assert "access-control-allow-origin" not in response.headers


async def test_answers_can_be_read_by_the_allowed_origin_and_no_other(model: ModelDirectory) -> None:
    async with serving(model, cors_origins=ORIGIN) as served:
        for content_type, status in (("image/jpeg", 200), ("text/plain", 415)):
            for origin, allowed in ((ORIGIN, ORIGIN), ("https://evil.example", None)):
                response = await served.http.post(
                    "/v1/classify", content=photo("JPEG"), headers={"Content-Type": content_type, "Origin": origin}
                )
                assert response.status_code == status
                assert response.headers.get("access-control-allow-origin") == allowed
                assert "Origin" in response.headers["vary"]
                if allowed:
                    assert "Server-Timing" in response.headers["access-control-expose-headers"]
        # What is refused for want of a route goes through the framework's layers.
        response = await served.http.get("/nowhere", headers={"Origin": ORIGIN})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (404, ORIGIN)


async def test_answer_to_an_unexpected_failure_can_be_read_too(
    model: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(model, GatedSession(), cors_origins=ORIGIN) as served:

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("not expected")

        monkeypatch.setattr(served.engine, "check_room", fail)
        response = await served.http.post(
            "/v1/classify", content=b"x", headers={"Content-Type": "image/jpeg", "Origin": ORIGIN}
        )
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (500, ORIGIN)
        assert response.headers["x-frame-options"] == "DENY"


async def test_any_origin_may_ask_where_the_star_says_so(model: ModelDirectory) -> None:
    async with serving(model, cors_origins="*") as served:
        response = await served.http.get("/v1/models", headers={"Origin": "https://anyone.example"})
        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers
