"""What those who run the service ask: is it alive, is it ready, its metrics, and what a problem's type means.

These want no API key: probes and scrapers have none, and no answer holds anything of a request.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from service.http.answers.schemas import Health
from service.http.openapi import components as openapi
from service.http.problems import all_kinds
from service.http.service import ServiceDependency

router = APIRouter(tags=["operations"])


@router.get("/health/live", operation_id="live", summary="Is the process alive?", responses=openapi.PLAIN_PROBLEMS)
async def live() -> Health:
    """Answer, which is all that there is to show."""
    return Health(status="alive")


@router.get(
    "/health/ready", operation_id="ready", summary="Would a request be answered?", responses=openapi.READINESS_PROBLEMS
)
async def ready(service: ServiceDependency) -> Health:
    """Answer 200 once every model of the start takes work, and 503 before, and while one hangs, fails or is dead."""
    service.check_ready()
    return Health(status="ready")


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Metrics in Prometheus's text format",
    response_class=Response,
    responses={
        200: {"description": "All metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **openapi.PLAIN_PROBLEMS,
    },
)
async def metrics(service: ServiceDependency) -> Response:
    """Answer with every metric, in the version of the format that every scraper knows."""
    text = await asyncio.to_thread(service.metrics.render)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


@router.get("/problems/{code}", include_in_schema=False)
async def problem(code: str) -> Response:
    """Answer with the meaning of a kind of problem: what the `type` of a problem document refers to."""
    kind = all_kinds().get(code)
    if kind is None:
        raise HTTPException(404)
    return PlainTextResponse(f"{kind.title} ({kind.status})\n\n{kind.meaning}\n")
