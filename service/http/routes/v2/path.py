"""The model, and maybe the version, that a path of the protocol names: most routes are there with it and without."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from service.http.context import context_of
from service.http.service import Service, ServiceDependency
from service.serving.served import Served


def resolve_path(request: Request, service: Service) -> Served:
    """Return what answers for what the request's path names, to its end; raises as `Service.resolve`."""
    names = request.path_params
    return service.resolve(context_of(request), names.get("model"), names.get("version"))


async def _named(request: Request, service: ServiceDependency) -> Served:
    return resolve_path(request, service)


NamedModel = Annotated[Served, Depends(_named)]
"""What answers for what the path names."""
