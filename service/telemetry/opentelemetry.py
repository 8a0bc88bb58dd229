"""OpenTelemetry's spans, made when a request has ended from what it noted of itself.

Invariants: a span holds nothing that a request's sender chose but the ids of the trace that it continues (W3C
`traceparent`; `tracestate` is not read); a request's spans lie within each other, since one offset takes all their
times from time.monotonic to the wall clock. Everything here belongs to one event loop.

The spans of a request that came to a version of a model, of its inference and of the run bear the model's name and
version.

An engine's run serves many requests, so its span `batch` belongs to none of their traces: it is the root of one of its
own, with a link to each request that it served, and each such request's span `inference` has a link to it. The engine
knows of no trace; the process that answers makes the batch's span when it first sees one of the run's answers. Where
several processes share an engine, each makes a span of the run for its own requests.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
)
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
from opentelemetry.semconv.attributes.url_attributes import URL_SCHEME
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from service.engine.types import Run
from service.telemetry.stages import Stages

SERVICE_NAME = "dat-serve"
BATCH_SIZE = "dat.batch.size"
BATCH_BUCKET = "dat.batch.bucket"
IMAGES = "dat.images"
MODEL_NAME = "dat.model.name"
"""The semantic conventions have names for generative models alone (`gen_ai.`), which none of these is."""
MODEL_VERSION = "dat.model.version"

Model = tuple[str, str]
"""The name and version of one."""

_KNOWN_METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))
_BATCH_OPEN_S = 1.0
"""How long a batch's span waits for the requests that it served, where they do not account for all its images."""
_MOST_BATCHES = 1024
"""Runs remembered for the requests that are still to end."""
_PROPAGATOR = TraceContextTextMapPropagator()


def exporting_tracer() -> OpenTelemetryTracer:
    """Return a tracer whose spans go where the OTEL_ variables say, by OTLP over HTTP, in batches."""
    own = Resource.create({"service.name": SERVICE_NAME, "process.pid": os.getpid()})
    provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetryTracer(provider)


class OpenTelemetryTracer:
    """Makes spans of ended requests; `provider` is its own, and ends with it."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE_NAME)
        self._batches: OrderedDict[tuple[Model | None, float], _Batch] = OrderedDict()

    def record(
        self,
        scope: Scope,
        stages: Stages,
        *,
        route: str | None,
        status: int | None,
        code: str,
        ended_s: float,
        model: Model | None = None,
    ) -> None:
        """Make the spans of a request that has ended, called on the event loop; times on time.monotonic.

        `route` is its path's template, None where it took no route; `status` is None where no answer began; `model` is
        the name and version that it came to, None where it came to none.
        """
        offset_ns = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            _name(scope, route),
            context=_PROPAGATOR.extract(_carrier(scope), context=Context()),
            kind=SpanKind.SERVER,
            attributes={**_attributes(scope, route=route, status=status, code=code), **_of_model(model)},
            start_time=_ns(stages.started_s, offset_ns),
        )
        if span.is_recording():
            if status is None or status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            self._record_stages(span, stages, offset_ns, model)
        span.end(_ns(ended_s, offset_ns))

    async def shutdown(self) -> None:
        """End the batches' spans, and send all that was not yet sent."""
        for batch in self._batches.values():
            batch.end()
        self._batches.clear()
        await asyncio.to_thread(self._provider.shutdown)  # which waits for the collector

    def _record_stages(self, parent: Span, stages: Stages, offset_ns: int, model: Model | None) -> None:
        """Make a span of each stage, from when the first image entered it to when the last one left."""
        context = set_span_in_context(parent, Context())

        def child(
            name: str,
            began_s: float,
            ended_s: float,
            links: Sequence[Link] = (),
            model: Model | None = None,
            **more: int,
        ) -> None:
            attributes = _of_model(model) | {_ATTRIBUTES[key]: value for key, value in more.items()}
            start_ns = _ns(began_s, offset_ns)
            span = self._tracer.start_span(name, context, attributes=attributes, links=links, start_time=start_ns)
            span.end(_ns(ended_s, offset_ns))

        if decoding := stages.decoding:
            began_s = min(each.started_s for each in decoding)
            child("decode", began_s, max(each.started_s + each.decode_s for each in decoding), images=len(decoding))
            began_s = min(each.started_s + each.decode_s for each in decoding)
            ended_s = max(each.started_s + each.decode_s + each.preprocess_s for each in decoding)
            child("preprocess", began_s, ended_s, images=len(decoding))
        if runs := stages.runs:
            began_s = min(run.started_s - run.queue_s for run in runs)
            child("queue", began_s, max(run.started_s for run in runs), images=len(runs))
        images_of: dict[float, list[Run]] = {}
        for image in runs:
            images_of.setdefault(image.started_s, []).append(image)
        for started_s, served in images_of.items():
            run = served[0]
            links = [Link(self._batch(run, len(served), parent, offset_ns, model))]
            ended_s = started_s + run.inference_s
            child(
                "inference",
                started_s,
                ended_s,
                links,
                model,
                images=len(served),
                size=run.batch_size,
                bucket=run.bucket,
            )
        if stages.postprocessed_s is not None:
            child("postprocess", *stages.postprocessed_s)

    def _batch(self, run: Run, images: int, request: Span, offset_ns: int, model: Model | None) -> SpanContext:
        """Return the span of a run, linked to one more request of which it served so many images.

        A run is known by when it began and by its model: engines of several models may begin in the same moment.
        """
        key = (model, run.started_s)
        batch = self._batches.get(key)
        if batch is None:
            span = self._tracer.start_span(
                "batch",
                context=Context(),
                attributes={BATCH_SIZE: run.batch_size, BATCH_BUCKET: run.bucket, **_of_model(model)},
                start_time=_ns(run.started_s, offset_ns),
            )
            batch = _Batch(span, run.batch_size, _ns(run.started_s + run.inference_s, offset_ns))
            self._batches[key] = batch
            if len(self._batches) > _MOST_BATCHES:
                self._batches.popitem(last=False)[1].end()
        batch.served(request.get_span_context(), images)
        return batch.span.get_span_context()


class _Batch:
    """A run's span, open until every image of it is accounted for, or for a while."""

    def __init__(self, span: Span, images: int, ended_ns: int) -> None:
        self.span = span
        self._missing = images
        self._ended_ns = ended_ns
        self._closing = asyncio.get_running_loop().call_later(_BATCH_OPEN_S, self.end)

    def served(self, request: SpanContext, images: int) -> None:
        """Link a request, unless the span has ended: the request's own link to it remains."""
        if self.span.is_recording():
            self.span.add_link(request)
        self._missing -= images
        if self._missing <= 0:
            self.end()

    def end(self) -> None:
        """End the span, at the time when the run did; again is nothing."""
        self._closing.cancel()
        if self.span.is_recording():
            self.span.end(self._ended_ns)


_ATTRIBUTES = {"images": IMAGES, "size": BATCH_SIZE, "bucket": BATCH_BUCKET}


def _of_model(model: Model | None) -> dict[str, str | int]:
    return {} if model is None else {MODEL_NAME: model[0], MODEL_VERSION: model[1]}


def _ns(time_s: float, offset_ns: int) -> int:
    return round(time_s * 1e9) + offset_ns


def _carrier(scope: Scope) -> Mapping[str, str]:
    """Return the header that continues a trace, alone."""
    for name, value in scope["headers"]:
        if name == b"traceparent":
            return {"traceparent": value.decode("latin-1")}
    return {}


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in _KNOWN_METHODS else "_OTHER"


def _name(scope: Scope, route: str | None) -> str:
    method = _method(scope)
    shown = "HTTP" if method == "_OTHER" else method
    return shown if route is None else f"{shown} {route}"


def _attributes(scope: Scope, *, route: str | None, status: int | None, code: str) -> dict[str, str | int]:
    """Return what the semantic conventions have for a server's span; `url.path` and the like are the sender's."""
    attributes: dict[str, str | int] = {HTTP_REQUEST_METHOD: _method(scope), URL_SCHEME: scope.get("scheme", "http")}
    if route is not None:
        attributes[HTTP_ROUTE] = route
    if status is not None:
        attributes[HTTP_RESPONSE_STATUS_CODE] = status
    if scope.get("server") is not None:
        address, port = scope["server"]
        attributes[SERVER_ADDRESS] = address
        if port is not None:
            attributes[SERVER_PORT] = port
    if code != "ok":
        attributes[ERROR_TYPE] = code
    return attributes
