"""The page's files as they are sent: types, caching, policy, and no way out of their folder."""

from __future__ import annotations

import re

import pytest

from service.http.routes.page import DIRECTORY, MEDIA_TYPES
from service.model.directory import ModelDirectory
from tests.api_keys import entry_of
from tests.service.conftest import Served, serving

FILES = sorted(path.name for path in DIRECTORY.iterdir())


async def test_page_is_sent_under_a_strict_policy(served: Served) -> None:
    response = await served.http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "form-action": "'none'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["permissions-policy"] == "camera=(self)"


@pytest.mark.parametrize("name", FILES)
async def test_file_is_sent_with_its_type_and_kept_until_it_changes(served: Served, name: str) -> None:
    response = await served.http.get(f"/page/{name}")
    assert response.status_code == 200
    assert response.content == (DIRECTORY / name).read_bytes()
    assert response.headers["content-type"] == MEDIA_TYPES["." + name.rsplit(".", 1)[1]]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    again = await served.http.get(f"/page/{name}", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = await served.http.head(f"/page/{name}")
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(response.content)))


@pytest.mark.parametrize(
    "path", ["/page", "/page/", "/page/none.js", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/%00"]
)
async def test_nothing_else_is_sent(served: Served, path: str) -> None:
    response = await served.http.get(path, follow_redirects=False)
    assert response.status_code == 404
    assert b"import" not in response.content
    assert not any(name.encode() in response.content for name in FILES)


async def test_page_wants_no_key_and_is_not_in_the_document(model: ModelDirectory) -> None:
    async with serving(model, api_keys=entry_of("secret")) as locked:
        assert (await locked.http.get("/")).status_code == 200
        assert (await locked.http.get("/page/main.js")).status_code == 200
        assert (await locked.http.get("/v1/models")).status_code == 401
        paths = (await locked.http.get("/openapi.json")).json()["paths"]
    assert not any(path == "/" or path.startswith("/page") for path in paths)


def test_files_name_no_outside_address_and_hold_nothing_inline() -> None:
    for path in DIRECTORY.iterdir():
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`]*", path.read_text()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name
    html = (DIRECTORY / "index.html").read_text()
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html) == []
    assert re.findall(r"""(?:src|href)="/""", html) == []  # relative, so that a path prefix keeps working
