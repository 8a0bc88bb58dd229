"""`GET /v1/models` and `GET /v1/models/{name}`: what is served."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from service.http.answers.model_schemas import ModelDetails, ModelList, ModelSummary
from service.http.authorization import authorized
from service.http.openapi import components as openapi
from service.http.service import ServiceDependency

router = APIRouter(tags=["models"], responses=openapi.READING_PROBLEMS, dependencies=[Depends(authorized)])


@router.get("/v1/models", operation_id="list_models", summary="List the served models")
async def list_models(service: ServiceDependency) -> ModelList:
    """Answer with every model that is served."""
    return ModelList(models=[ModelSummary.model_validate(service.model.manifest)])


@router.get("/v1/models/{name}", operation_id="get_model", summary="Describe a model")
async def get_model(name: str, service: ServiceDependency) -> ModelDetails:
    """Answer with a model's input, outputs, labels and origin."""
    service.check_model(name)
    return ModelDetails.of(service.model, explain=service.explain)
