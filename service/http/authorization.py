"""The question that comes before all others: may the caller ask?"""

from __future__ import annotations

from fastapi import Request

from service.access.keys import find_key
from service.errors import Forbidden
from service.http.context import context_of
from service.http.service import Service, ServiceDependency
from service.serving.control import ModelControl


def authorize(request: Request, service: Service) -> None:
    """Let a request pass where no API keys are configured, or it bears one that may ask now; once, before its body.

    From here to the request's end it counts among the key's. Raises Unauthorized, RateLimited or ConcurrencyLimited.
    """
    keys = service.settings.api_keys
    if not keys:
        return
    place = find_key(keys, context_of(request).headers.get("authorization", ""))
    context = context_of(request)
    context.key = keys[place]
    context.at_end = service.key_limits.begin(place)


async def authorized(request: Request, service: ServiceDependency) -> None:
    """Authorize as a dependency."""
    authorize(request, service)


def authorized_control(request: Request, service: Service) -> ModelControl:
    """Return what loads and unloads models, to a request that was authorized and may have it done.

    Raises Forbidden where the service does not allow it at all, or not to the key that the request bears.
    """
    if service.control is None:
        raise Forbidden("--model-control is off: this server loads and unloads nothing while it runs.")
    key = context_of(request).key
    if key is not None and key.role != "admin":
        raise Forbidden(f"The API key {key.name!r} is of a user; only one with role=admin may load and unload models.")
    return service.control
