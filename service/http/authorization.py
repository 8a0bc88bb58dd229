"""The question that comes before all others: may the caller ask?"""

from __future__ import annotations

from fastapi import Request

from service.access.keys import find_key
from service.http.context import context_of
from service.http.service import Service, ServiceDependency


def authorize(request: Request, service: Service) -> None:
    """Let a request pass where no API keys are configured, or it bears one that may ask now; once, before its body.

    From here to the request's end it counts among the key's. Raises Unauthorized, RateLimited or ConcurrencyLimited.
    """
    keys = service.settings.api_keys
    if not keys:
        return
    place = find_key(keys, request.headers.get("authorization", ""))
    context = context_of(request)
    context.key = keys[place].name
    context.at_end = service.key_limits.begin(place)


async def authorized(request: Request, service: ServiceDependency) -> None:
    """Authorize as a dependency."""
    authorize(request, service)
