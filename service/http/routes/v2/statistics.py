"""The protocol's statistics."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from service.http.authorization import authorized
from service.http.routes.v2 import openapi
from service.http.routes.v2.path import NamedModel
from service.http.service import ServiceDependency
from service.protocol.schemas import Statistics
from service.protocol.statistics import statistics

router = APIRouter(tags=["inference protocol"], dependencies=[Depends(authorized)], responses=openapi.READING_ERRORS)


@router.get("/v2/models/stats", operation_id="v2_stats", summary="Statistics of all models")
async def stats(service: ServiceDependency) -> Statistics:
    """Answer with the statistics of every version of every model that takes work."""
    return await statistics(service, service.models.served)


@router.get("/v2/models/{model}/stats", operation_id="v2_model_stats", summary="Statistics of a model")
async def model_stats(service: ServiceDependency, served: NamedModel) -> Statistics:
    """Answer with the statistics of every version of a model that takes work."""
    return await statistics(service, [each for each in service.models.served if each.name == served.name])


@router.get(
    "/v2/models/{model}/versions/{version}/stats",
    operation_id="v2_model_version_stats",
    summary="Statistics of a version",
)
async def version_stats(service: ServiceDependency, served: NamedModel) -> Statistics:
    """Answer with a version's statistics."""
    return await statistics(service, [served])
