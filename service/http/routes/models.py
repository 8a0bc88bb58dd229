"""`GET /v1/models` and `GET /v1/models/{name}`: what is served, and what became of all else that was to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from service.http.answers.model_schemas import ModelDetails, ModelList, ModelSummary, RequestLimits
from service.http.authorization import authorized
from service.http.context import context_of
from service.http.openapi import components as openapi
from service.http.service import ServiceDependency
from service.model.manifest import Manifest
from service.serving.served import ServedModels
from service.serving.states import VersionStatus

router = APIRouter(tags=["models"], dependencies=[Depends(authorized)])


@router.get("/v1/models", operation_id="list_models", summary="List the models", responses=openapi.READING_PROBLEMS)
async def list_models(service: ServiceDependency) -> ModelList:
    """Answer with every version of every model that is served, or was to be, how each is, and requests' limits.

    `object` and `data` are what OpenAI's clients list: the versions that take work, as requests name them.
    """
    models = service.models
    limits = RequestLimits.model_validate(service.settings)
    return ModelList.of(models.default, limits, _summaries(models, models.statuses), _manifests(models))


@router.get(
    "/v1/models/{name}",
    operation_id="get_model",
    summary="Describe a model",
    responses=openapi.MODEL_READING_PROBLEMS,
)
async def get_model(
    request: Request,
    name: str,
    service: ServiceDependency,
    version: Annotated[
        str | None, Query(description="The version to describe. By default the one that answers where none is named.")
    ] = None,
) -> ModelDetails:
    """Answer with a model's input, outputs, labels and origin, in one version, and with how all of them are."""
    served = service.resolve(context_of(request), name, version)
    versions = _summaries(service.models, service.models.statuses_of(name))
    shown = next(each for each in versions if each.version == served.version)
    return ModelDetails.of_model(
        served.model,
        shown,
        versions=versions,
        explain=served.explain,
        sizes=served.sizes,
        explain_sizes=served.explain_sizes,
        resize=served.settings.resize,
    )


def _summaries(models: ServedModels, statuses: Sequence[VersionStatus]) -> list[ModelSummary]:
    manifests = _manifests(models)
    return [ModelSummary.of(status, manifests.get((status.name, status.version))) for status in statuses]


def _manifests(models: ServedModels) -> dict[tuple[str, int], Manifest]:
    return {(served.name, served.version): served.manifest for served in models.served}
