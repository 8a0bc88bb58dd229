"""The protocol's model repository: one model, which is there from the start to the end."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.errors import MalformedRequest, NotReady
from service.http.authorization import authorized
from service.http.bodies.json_text import parsed_json
from service.http.bodies.uploads import Limits, check_length, read_whole
from service.http.routes.v2 import openapi
from service.http.routes.v2.schemas import IndexEntry, IndexRequest, RepositoryRequest
from service.http.service import Service, ServiceDependency

router = APIRouter(tags=["inference protocol"], dependencies=[Depends(authorized)])


@router.post(
    "/v2/repository/index",
    operation_id="v2_repository_index",
    summary="List the repository",
    responses=openapi.REPOSITORY_ERRORS,
    openapi_extra=openapi.json_body(IndexRequest, "Which models; all where it is left out.", {"ready": True}),
)
async def index(request: Request, service: ServiceDependency) -> list[IndexEntry]:
    """Answer with the served model, unless only those are asked for that would answer and it would not."""
    body = await _body(request, service)
    asked = parsed_json(IndexRequest, body) if body else IndexRequest()
    manifest = service.model.manifest
    try:
        service.check_ready()
    except NotReady as error:
        entry = IndexEntry(name=manifest.name, version=str(manifest.version), state="UNAVAILABLE", reason=str(error))
        return [] if asked.ready else [entry]
    return [IndexEntry(name=manifest.name, version=str(manifest.version), state="READY", reason="")]


@router.post(
    "/v2/repository/models/{model}/load",
    operation_id="v2_load_model",
    summary="Load a model",
    response_class=Response,
    responses=openapi.REPOSITORY_ERRORS,
    openapi_extra=openapi.json_body(RepositoryRequest, "May be left out.", {}),
)
async def load(request: Request, service: ServiceDependency, model: str) -> Response:
    """Answer 200 for the served model, which is loaded already; it cannot be loaded otherwise than it was exported."""
    service.check_model(model)
    body = await _body(request, service)
    if body and parsed_json(RepositoryRequest, body).parameters:
        raise MalformedRequest("The model is served as it was exported: it cannot be loaded with parameters.")
    return Response(status_code=200)


@router.post(
    "/v2/repository/models/{model}/unload",
    operation_id="v2_unload_model",
    summary="Unload a model",
    response_class=Response,
    responses=openapi.REPOSITORY_ERRORS,
    openapi_extra=openapi.json_body(RepositoryRequest, "May be left out.", {}),
)
async def unload(service: ServiceDependency, model: str) -> Response:
    """Refuse: a server that serves one model ends with it."""
    service.check_model(model)
    raise MalformedRequest(f"This server serves {model!r} alone and cannot unload it; end the server instead.")


async def _body(request: Request, service: Service) -> bytes:
    limits = Limits.of(service.settings)
    check_length(request, limits)
    return await read_whole(request, limits)
