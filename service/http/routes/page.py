"""The page for people: `GET /`, and the files that it is made of, as they lie in `http/page/`.

It wants no API key, since it shows nothing until it has asked `/v1`, which does. Its own headers forbid it whatever it
does not need: nothing of another origin is loaded or asked, nothing inline runs, and no other page may frame it.
Browsers keep the files, but ask each time whether they have changed, so that a page never runs with the scripts of
another release.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

DIRECTORY = Path(__file__).parents[1] / "page"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Type of each kind of file there is; what the system's table says differs between systems."""
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Permissions-Policy": "camera=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _PageFiles(StaticFiles):
    """The files of the page; sends no others, and lists none."""

    def file_response(self, full_path: Any, *arguments: Any, **named: Any) -> Response:
        """Answer with a file, or that it has not changed, under the page's headers."""
        response = super().file_response(full_path, *arguments, **named)
        response.headers.update(HEADERS)
        if response.status_code == 200:
            response.headers["Content-Type"] = MEDIA_TYPES[Path(full_path).suffix]
        return response


_FILES = _PageFiles(directory=DIRECTORY)


@router.get("/")
async def page(request: Request) -> Response:
    """Answer with the page itself."""
    return await _FILES.get_response("index.html", request.scope)


@router.get("/page/{name}")
async def page_file(name: str, request: Request) -> Response:
    """Answer with one of the page's files; 404 for any other name."""
    return await _FILES.get_response(name, request.scope)
