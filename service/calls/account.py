"""What is written down of a call when it has ended: a count, a line of the log, a trace. The same for every transport.

Invariants: every call is accounted for once; of a call, the log and the metrics hold its id, its method, the route that
it took and the version of a model that answered, and nothing else that its sender chose; what a call asks is kept until
it has ended, and left once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping
from typing import Any

from service.calls.context import RequestContext
from service.samples.records import SampledRequest
from service.telemetry.logs import ACCESS_LOGGER
from service.telemetry.metrics import Metrics
from service.telemetry.model_metrics import EndedRequest
from service.telemetry.tracing import Tracer

UNMATCHED = "unmatched"
"""The route of calls that took none."""

_access_log = logging.getLogger(ACCESS_LOGGER)


def account(
    context: RequestContext,
    scope: MutableMapping[str, Any],
    *,
    route: str,
    status: int | None,
    metrics: Metrics,
    tracer: Tracer | None,
) -> None:
    """Let go of what a call asked, and account for it.

    `scope` is what ASGI has of the request, of which its method and what a trace begins with are looked at; `status` is
    in HTTP's numbers, None where no answer began.
    """
    served, model = context.served, None
    if served is not None:
        served.leave()
        model = served.metrics
    if context.at_end is not None:
        context.at_end()
    stages, ended_s = context.stages, time.monotonic()
    duration_s = ended_s - stages.started_s
    # A thread may have made an answer that nobody waited for.
    stages_s = stages.durations_s if model is not None and context.code == "ok" else None
    metrics.request_ended(
        EndedRequest(
            route,
            status or 0,
            context.code,
            duration_s,
            model,
            tuple(stages.decoding),
            stages_s or None,
            context.logits if stages_s else (),
        )
    )
    if stages_s and served is not None and context.sampler is not None:
        context.sampler.take(
            SampledRequest(time.time(), context.request_id, route, served.model, served.settings.top_k, context.sampled)
        )
    fields: dict[str, object] = {
        "method": scope["method"],
        "route": route,
        "status": status,
        "code": context.code,
        "duration_ms": round(duration_s * 1000, 3),
    }
    if context.key is not None:
        fields["key"] = context.key.name
        metrics.key_used(key=context.key.name, code=context.code)
    if served is not None:
        fields["model"], fields["version"] = served.name, served.version
    if context.images is not None:
        fields["images"] = context.images
    if stages_s:
        fields["timings_ms"] = stages.durations_ms
    _access_log.info("request", extra={"fields": fields})
    if tracer is not None:
        tracer.record(
            scope,
            stages,
            route=None if route == UNMATCHED else route,
            status=status,
            code=context.code,
            ended_s=ended_s,
            model=None if model is None else model.labels,
        )
