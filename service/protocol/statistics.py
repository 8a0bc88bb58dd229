"""The protocol's statistics: what the metrics of all processes count, in other words."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from service.calls.parts import Parts
from service.model.manifest import Manifest
from service.protocol.schemas import (
    BatchStatistics,
    Duration,
    InferenceStatistics,
    ModelStatistics,
    Statistics,
)
from service.serving.served import Served
from service.telemetry.metrics import InferenceTotals


async def statistics(parts: Parts, models: Sequence[Served]) -> Statistics:
    """Return the statistics of versions."""

    def look() -> list[ModelStatistics]:
        totals, routes = parts.metrics.inference_totals, parts.inference_routes
        return [statistics_of(each.manifest, totals(routes, name=each.name, version=each.version)) for each in models]

    return Statistics(model_stats=await asyncio.to_thread(look))


def statistics_of(manifest: Manifest, totals: InferenceTotals) -> ModelStatistics:
    """Return a version's statistics in the protocol's terms."""

    def stage(*names: str) -> Duration:
        return Duration(count=totals.answered, ns=_ns(sum(totals.stages_s.get(name, 0.0) for name in names)))

    return ModelStatistics(
        name=manifest.name,
        version=str(manifest.version),
        last_inference=int(totals.last_run_s * 1000),
        inference_count=totals.images,
        execution_count=sum(totals.runs.values()),
        inference_stats=InferenceStatistics(
            success=stage("total"),
            fail=Duration(count=totals.failed, ns=_ns(totals.failed_s)),
            queue=stage("queue"),
            compute_input=stage("decode", "preprocess"),
            compute_infer=stage("inference"),
            compute_output=stage("postprocess"),
            cache_hit=Duration(count=totals.cache_hits, ns=0),
            cache_miss=Duration(count=totals.cache_misses, ns=0),
        ),
        batch_stats=[
            BatchStatistics(
                batch_size=size,
                compute_input=Duration(count=count, ns=0),
                compute_infer=Duration(count=count, ns=_ns(totals.runs_s.get(size, 0.0))),
                compute_output=Duration(count=count, ns=0),
            )
            for size, count in sorted(totals.runs.items())
            if count
        ],
    )


def _ns(duration_s: float) -> int:
    return round(duration_s * 1e9)
