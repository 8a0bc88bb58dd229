"""What the server and its models are, and whether they are ready."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from service.http.authorization import authorized
from service.http.context import context_of
from service.http.routes.v2 import openapi
from service.http.routes.v2.path import NamedModel
from service.http.service import ServiceDependency
from service.protocol import metadata
from service.protocol.images import IMAGE_DATATYPE
from service.protocol.schemas import Live, ModelConfiguration, ModelMetadata, ModelReady, Ready, ServerMetadata

probes = APIRouter(tags=["inference protocol"])
"""Without a key, as every probe."""
router = APIRouter(tags=["inference protocol"], dependencies=[Depends(authorized)])


@router.get("/v2", operation_id="v2_server_metadata", summary="Describe the server", responses=openapi.READING_ERRORS)
async def server_metadata() -> ServerMetadata:
    """Answer with the server's name, version and extensions."""
    return metadata.server_metadata()


@probes.get("/v2/health/live", operation_id="v2_live", summary="Is it alive?", responses=openapi.PLAIN_ERRORS)
async def live() -> Live:
    """Answer, which is all that there is to show."""
    return Live(live=True)


@probes.get("/v2/health/ready", operation_id="v2_ready", summary="Would it answer?", responses=openapi.READINESS_ERRORS)
async def ready(service: ServiceDependency) -> Ready:
    """Answer 200 while a request would be answered, and 503 otherwise."""
    service.check_ready()
    return Ready(ready=True)


@probes.get(
    "/v2/models/{model}/versions/{version}/ready",
    operation_id="v2_model_version_ready",
    summary="Would the version answer?",
    responses=openapi.MODEL_READINESS_ERRORS,
)
@probes.get(
    "/v2/models/{model}/ready",
    operation_id="v2_model_ready",
    summary="Would the model answer?",
    responses=openapi.MODEL_READINESS_ERRORS,
)
async def model_ready(request: Request, model: str, service: ServiceDependency) -> ModelReady:
    """Answer 200 while a request would be answered, 503 with the reason while not, and 404 where there is no such."""
    service.check_model_ready(model, request.path_params.get("version"))
    return ModelReady(name=model, ready=True)


_DESCRIBED: dict[str, Any] = {
    "responses": openapi.READING_ERRORS,
    "openapi_extra": {"parameters": [openapi.parameter_ref(IMAGE_DATATYPE)]},
}


@router.get(
    "/v2/models/{model}/versions/{version}",
    operation_id="v2_model_version_metadata",
    summary="Describe a version",
    **_DESCRIBED,
)
@router.get("/v2/models/{model}", operation_id="v2_model_metadata", summary="Describe a model", **_DESCRIBED)
async def model_metadata(request: Request, service: ServiceDependency, served: NamedModel) -> ModelMetadata:
    """Answer with a model's versions, its input and the outputs that a request gets by default."""
    return metadata.model_metadata(service, served, context_of(request).headers)


@router.get(
    "/v2/models/{model}/versions/{version}/config",
    operation_id="v2_model_version_config",
    summary="A version's configuration",
    **_DESCRIBED,
)
@router.get(
    "/v2/models/{model}/config", operation_id="v2_model_config", summary="A model's configuration", **_DESCRIBED
)
async def model_config(request: Request, service: ServiceDependency, served: NamedModel) -> ModelConfiguration:
    """Answer with the configuration that a Triton server would need to serve the model so."""
    return metadata.model_configuration(service, served, context_of(request).headers)
