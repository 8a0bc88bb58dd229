"""Authorization of requests over HTTP, as `calls.authorization` decides it."""

from __future__ import annotations

from fastapi import Request

from service.calls import authorization
from service.http.context import context_of
from service.http.service import Service, ServiceDependency
from service.serving.control import ModelControl


def authorize(request: Request, service: Service) -> None:
    """Let a request pass, once, before its body; raises as `calls.authorization.authorize`."""
    authorization.authorize(context_of(request), service)


async def authorized(request: Request, service: ServiceDependency) -> None:
    """Authorize as a dependency."""
    authorize(request, service)


def authorized_control(request: Request, service: Service) -> ModelControl:
    """Return what loads and unloads models; raises as `calls.authorization.authorized_control`."""
    return authorization.authorized_control(context_of(request), service)
