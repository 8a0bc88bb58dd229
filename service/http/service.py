"""What every route works with: the parts of one application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.calls.parts import Parts
from service.http.bodies.uploads import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Parts):
    """The parts of one application, made in `service.http.app` and shared by its routes."""

    body_limits: Limits


def service_of(request: Request) -> Service:
    """Return the application's parts."""
    service: Service = request.app.state.service
    return service


async def _service(request: Request) -> Service:
    return service_of(request)  # FastAPI would call a function that is not async in a thread


ServiceDependency = Annotated[Service, Depends(_service)]
