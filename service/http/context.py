"""Where the context of a request over HTTP is found, and its headers."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import Scope

from service.calls.context import RequestContext


def context_of(request: Request) -> RequestContext:
    """Return the context that the middleware made for a request."""
    context: RequestContext = request.scope["state"]["context"]
    return context


def headers_of(scope: Scope) -> dict[str, str]:
    """Return a request's headers by their names in lower case: of one that was sent several times the first.

    Looked at a dozen times a request, which costs a scan of them all each time where the framework does it.
    """
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
