"""The protocol's statistics, read from the metrics: the same counts, of all processes, in other words."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable

from fastapi import APIRouter, Depends
from prometheus_client.samples import Sample

from service.http.authorization import authorized
from service.http.routes.v2 import openapi
from service.http.routes.v2.schemas import (
    BatchStatistics,
    Duration,
    InferenceStatistics,
    ModelStatistics,
    Statistics,
)
from service.http.service import Service, ServiceDependency
from service.model.directory import Manifest

router = APIRouter(tags=["inference protocol"], dependencies=[Depends(authorized)], responses=openapi.READING_ERRORS)
_NOTHING = Duration(count=0, ns=0)


@router.get("/v2/models/stats", operation_id="v2_stats", summary="Statistics of all models")
async def stats(service: ServiceDependency) -> Statistics:
    """Answer with the served model's statistics."""
    return await _statistics(service)


@router.get("/v2/models/{model}/stats", operation_id="v2_model_stats", summary="Statistics of a model")
async def model_stats(service: ServiceDependency, model: str) -> Statistics:
    """Answer with a model's statistics."""
    service.check_model(model)
    return await _statistics(service)


@router.get(
    "/v2/models/{model}/versions/{version}/stats",
    operation_id="v2_model_version_stats",
    summary="Statistics of a version",
)
async def model_version_stats(service: ServiceDependency, model: str, version: str) -> Statistics:
    """Answer with a version's statistics."""
    service.check_model(model, version)
    return await _statistics(service)


async def _statistics(service: Service) -> Statistics:
    manifest, metrics = service.model.manifest, service.metrics
    return await asyncio.to_thread(
        lambda: Statistics(
            model_stats=[statistics_of(metrics.samples(), manifest, inference_routes=service.inference_routes)]
        )
    )


def statistics_of(
    samples: Iterable[Sample], manifest: Manifest, *, inference_routes: frozenset[str]
) -> ModelStatistics:
    """Return a model's statistics from samples of `service.telemetry.metrics`.

    `inference_routes` are those whose requests run the model; requests to others do not count.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    by_stage: defaultdict[str, float] = defaultdict(float)
    runs: defaultdict[int, int] = defaultdict(int)
    run_seconds: defaultdict[int, float] = defaultdict(float)
    answered = 0
    for sample in samples:
        labels = sample.labels
        match sample.name:
            case "dat_request_stage_seconds_total":
                by_stage[labels["stage"]] += sample.value
            case "dat_stage_duration_seconds_count" if labels["stage"] == "total":
                answered += int(sample.value)
            case "dat_batches_total" if labels["outcome"] == "ok":
                runs[int(labels["bucket"])] += int(sample.value)
            case "dat_batch_seconds_total":
                run_seconds[int(labels["bucket"])] += sample.value
            case "dat_requests_total" if labels["route"] in inference_routes and labels["code"] != "ok":
                sums["failed"] += sample.value
            case "dat_failed_request_seconds_total" if labels["route"] in inference_routes:
                sums["failed_seconds"] += sample.value
            case "dat_batch_size_sum":
                sums["images"] += sample.value
            case "dat_last_run_timestamp_seconds":
                sums["last_run"] = max(sums["last_run"], sample.value)

    def stage(*names: str) -> Duration:
        return Duration(count=answered, ns=_ns(sum(by_stage[name] for name in names)))

    return ModelStatistics(
        name=manifest.name,
        version=str(manifest.version),
        last_inference=int(sums["last_run"] * 1000),
        inference_count=int(sums["images"]),
        execution_count=sum(runs.values()),
        inference_stats=InferenceStatistics(
            success=stage("total"),
            fail=Duration(count=int(sums["failed"]), ns=_ns(sums["failed_seconds"])),
            queue=stage("queue"),
            compute_input=stage("decode", "preprocess"),
            compute_infer=stage("inference"),
            compute_output=stage("postprocess"),
            cache_hit=_NOTHING,
            cache_miss=_NOTHING,
        ),
        batch_stats=[
            BatchStatistics(
                batch_size=size,
                compute_input=Duration(count=count, ns=0),
                compute_infer=Duration(count=count, ns=_ns(run_seconds[size])),
                compute_output=Duration(count=count, ns=0),
            )
            for size, count in sorted(runs.items())
            if count
        ],
    )


def _ns(duration_s: float) -> int:
    return round(duration_s * 1e9)
