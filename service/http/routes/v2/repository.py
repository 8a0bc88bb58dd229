"""The protocol's model repository: what there is, and loading and unloading it where the settings allow that."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.http.authorization import authorized, authorized_control
from service.http.bodies.json_text import parsed_json
from service.http.bodies.uploads import check_length, read_whole
from service.http.context import context_of
from service.http.routes.v2 import openapi
from service.http.service import Service, ServiceDependency
from service.protocol import repository
from service.protocol.schemas import IndexEntry, IndexRequest, ProtocolParameters, RepositoryRequest

router = APIRouter(tags=["inference protocol"], dependencies=[Depends(authorized)])


@router.post(
    "/v2/repository/index",
    operation_id="v2_repository_index",
    summary="List the repository",
    responses=openapi.REPOSITORY_ERRORS,
    openapi_extra=openapi.json_body(IndexRequest, "Which models; all where it is left out.", {"ready": True}),
)
async def index(request: Request, service: ServiceDependency) -> list[IndexEntry]:
    """Answer with every version of every model that is served, or was to be; or with those that would answer."""
    body = await _body(request, service)
    asked = parsed_json(IndexRequest, body) if body else IndexRequest()
    return repository.index(service, ready=asked.ready)


@router.post(
    "/v2/repository/models/{model}/load",
    operation_id="v2_load_model",
    summary="Load or replace a model",
    response_class=Response,
    responses=openapi.CONTROL_ERRORS,
    openapi_extra=openapi.json_body(RepositoryRequest, "May be left out.", {}),
)
async def load(request: Request, service: ServiceDependency, model: str) -> Response:
    """Answer 200 when the versions of the model that are now to be served, of those in the repository, take work.

    What is served and unchanged stays as it is. Where a version cannot be served, all that was served still is. Only
    where `--model-control` is on and, where there are API keys, for those with `role=admin`.
    """
    control = authorized_control(request, service)
    repository.check_load(await _parameters(request, service))
    await control.load(model)
    return Response(status_code=200)


@router.post(
    "/v2/repository/models/{model}/unload",
    operation_id="v2_unload_model",
    summary="Unload a model",
    response_class=Response,
    responses=openapi.CONTROL_ERRORS,
    openapi_extra=openapi.json_body(RepositoryRequest, "May be left out.", {}),
)
async def unload(request: Request, service: ServiceDependency, model: str) -> Response:
    """Answer 200 when no version of the model takes work any more, what they had is answered, and their memory is free.

    Only where `--model-control` is on and, where there are API keys, for those with `role=admin`.
    """
    control = authorized_control(request, service)
    repository.check_unload(await _parameters(request, service))
    await control.unload(model)
    return Response(status_code=200)


async def _parameters(request: Request, service: Service) -> ProtocolParameters:
    """Return the parameters that a body gives, which may be left out, as they may."""
    body = await _body(request, service)
    return (parsed_json(RepositoryRequest, body).parameters if body else None) or {}


async def _body(request: Request, service: Service) -> bytes:
    context = context_of(request)
    check_length(context.headers, service.body_limits)
    return await read_whole(request.receive, context.work, service.body_limits)
