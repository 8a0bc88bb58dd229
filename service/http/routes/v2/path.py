"""The model, and maybe the version, that a path of the protocol names: most routes are there with it and without."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from service.http.service import Service, ServiceDependency


def check_path(request: Request, service: Service) -> None:
    """Raise UnknownModel unless what the request's path names is served."""
    service.check_model(request.path_params.get("model"), request.path_params.get("version"))


async def _checked(request: Request, service: ServiceDependency) -> Service:
    check_path(request, service)
    return service


CheckedService = Annotated[Service, Depends(_checked)]
"""The service, where what the path names is served."""
