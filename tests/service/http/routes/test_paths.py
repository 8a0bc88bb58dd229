"""What holds of every path alike: HEAD is as GET, no slash is added or taken away, and 405 says what is taken."""

from __future__ import annotations

import httpx
import pytest
from starlette.routing import Route

from service.model.directory import ModelDirectory
from tests.service.conftest import GatedSession, Served, make_parts, serving
from tests.service.tiny_model import NAME, VERSION

VALUES = {"model": NAME, "name": NAME, "version": VERSION, "code": "not_found"}
MEASURED = {"date", "server-timing", "x-request-id", "content-length"}
"""Headers that differ between any two answers; the length of one must be that of another for all but metrics."""


@pytest.fixture(scope="module")
def routes(model: ModelDirectory) -> dict[str, set[str]]:
    """Every path with the methods that it takes."""
    found: dict[str, set[str]] = {}
    for route in make_parts(model, lambda _: GatedSession()).app.routes:
        if isinstance(route, Route):
            path = "/page/main.js" if route.path == "/page/{name}" else route.path.format(**VALUES)
            found.setdefault(path, set()).update(route.methods or ())
    return found | {"/docs/assets/swagger-ui.css": {"GET", "HEAD"}}


def reading(routes: dict[str, set[str]]) -> list[str]:
    return [path for path, methods in routes.items() if "GET" in methods]


async def test_head_is_answered_as_get_is_everywhere(served: Served, routes: dict[str, set[str]]) -> None:
    assert len(reading(routes)) > 20
    for path in [*reading(routes), "/nowhere", f"/v1/models/{NAME}x", "/page/none.js", "/docs/assets/none.js"]:
        get, head = await served.http.get(path), await served.http.head(path)
        assert head.status_code == get.status_code, path
        assert headers_of(head) == headers_of(get), path
        if path != "/metrics":
            assert head.headers["content-length"] == str(len(get.content)), path


def headers_of(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name not in MEASURED}


async def test_head_is_counted_by_its_route(served: Served) -> None:
    await served.http.head("/v1/models")
    assert served.sample("dat_requests_total", route="/v1/models", status="200", code="ok") == 1


async def test_path_with_a_slash_too_many_or_too_few_is_404_and_never_a_redirect(
    served: Served, routes: dict[str, set[str]]
) -> None:
    other_ends = [path + "/" for path in routes if path != "/"] + ["/docs/assets", "/docs/assets/", "//", "/page/"]
    for path in [*other_ends, "//v1/classify", "/v1//classify"]:
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            response = await served.http.request(
                method, httpx.URL("http://service", raw_path=path.encode()), headers={"X-Forwarded-Proto": "https"}
            )
            # A file's name with a slash behind it is that file to those who send files.
            expected = (200, 404, 405) if path.startswith("/docs/assets/") else (404,)
            assert response.status_code in expected, (method, path)
            assert "location" not in response.headers


async def test_method_that_a_path_does_not_take_is_405_with_those_that_it_does(
    served: Served, routes: dict[str, set[str]]
) -> None:
    for path, methods in routes.items():
        for method in {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} - methods:
            response = await served.http.request(method, path)
            assert response.status_code == 405, (method, path)
            assert response.headers["allow"] == ", ".join(sorted(methods)), (method, path)


async def test_head_wants_a_key_where_get_does(model: ModelDirectory) -> None:
    async with serving(model, api_keys=f"a:{'0' * 64}") as locked:
        for path in ("/v1/models", "/v2", "/health/live", "/"):
            assert (await locked.http.head(path)).status_code == (await locked.http.get(path)).status_code
        assert (await locked.http.head("/v1/models")).status_code == 401
