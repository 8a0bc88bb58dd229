"""Spans of real requests to the real application, gathered in memory."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.engine.types import Answer, Run
from service.errors import SettingsError
from service.model.directory import ModelDirectory
from service.settings import Settings
from service.telemetry.opentelemetry import OpenTelemetryTracer
from service.telemetry.stages import Stages
from service.telemetry.tracing import load_tracer
from tests.service import tiny_model
from tests.service.conftest import GatedSession, Served, serving
from tests.service.pictures import photo

CLASSIFY = "/v1/classify"
HEADERS = {"Content-Type": "image/jpeg"}
STAGES = ["decode", "preprocess", "queue", "inference", "postprocess"]
MODEL = {"dat.model.name": tiny_model.NAME, "dat.model.version": str(tiny_model.VERSION)}
TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Traced:
    """A served model, and its spans once it has ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = OpenTelemetryTracer(provider)
        self.served: Served

    @asynccontextmanager
    async def serving(self, model: ModelDirectory, session: GatedSession | None = None) -> AsyncIterator[Served]:
        async with serving(model, session, tracer=self.tracer) as served:
            yield served

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def only(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@pytest.fixture
def traced() -> Traced:
    return Traced()


def during(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def linked_ids(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    return span.parent is not None and span.parent.span_id == parent.context.span_id


async def test_stages_of_a_request_follow_each_other_within_its_span(model: ModelDirectory, traced: Traced) -> None:
    async with traced.serving(model) as served:
        assert (await served.http.post(CLASSIFY, content=photo(), headers=HEADERS)).status_code == 200
    request = traced.only(f"POST {CLASSIFY}")
    assert request.kind is SpanKind.SERVER
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": CLASSIFY,
        "http.response.status_code": 200,
        "url.scheme": "http",
        "server.address": "service",
        **MODEL,
    }
    stages = [traced.only(name) for name in STAGES]
    assert all(is_child(stage, request) for stage in stages)
    times = [request.start_time, *(moment for stage in stages for moment in during(stage)), request.end_time]
    assert times == sorted(times, key=lambda moment: moment or 0)


async def test_batch_has_the_time_of_the_inference_and_links_both_ways(model: ModelDirectory, traced: Traced) -> None:
    async with traced.serving(model) as served:
        await served.http.post(CLASSIFY, content=photo(), headers=HEADERS)
    batch, inference = traced.only("batch"), traced.only("inference")
    assert batch.parent is None
    run = {"dat.batch.size": 1, "dat.batch.bucket": 1, **MODEL}
    assert dict(batch.attributes or {}) == run
    assert dict(inference.attributes or {}) == {**run, "dat.images": 1}
    assert linked_ids(batch) == {traced.only(f"POST {CLASSIFY}").context.span_id}
    assert linked_ids(inference) == {batch.context.span_id}
    assert during(batch) == during(inference)


async def test_requests_that_share_a_batch_link_to_the_same_span(
    model: ModelDirectory, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = GatedSession()
    async with traced.serving(model, session) as served:
        session.close()
        first = asyncio.create_task(served.http.post(CLASSIFY, content=photo(), headers=HEADERS))
        await session.run_began()
        both_queued = asyncio.Event()
        calls, infer = itertools.count(1), served.engine.infer

        def watch(*images: Any, **terms: Any) -> Awaitable[list[Answer]]:
            if next(calls) == 2:
                both_queued.set()  # the images enter the queue in this same step of the event loop
            return infer(*images, **terms)

        monkeypatch.setattr(served.engine, "infer", watch)
        queued = [asyncio.create_task(served.http.post(CLASSIFY, content=photo(), headers=HEADERS)) for _ in range(2)]
        await both_queued.wait()
        session.gate.set()
        await asyncio.gather(first, *queued)
    batches = {span.context.span_id: span for span in traced.named("batch")}
    assert len(batches) == 2
    shared = next(span for span in batches.values() if (span.attributes or {})["dat.batch.size"] == 2)
    sharing = [span for span in traced.named("inference") if linked_ids(span) == {shared.context.span_id}]
    assert len(sharing) == 2
    assert {span.parent.span_id for span in sharing if span.parent} == linked_ids(shared)


async def test_callers_trace_is_continued(model: ModelDirectory, traced: Traced) -> None:
    async with traced.serving(model) as served:
        given = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "vendor=private"}
        await served.http.get("/health/live", headers=given)
        await served.http.get("/health/live", headers={"traceparent": "00-nonsense"})
        await served.http.get("/health/live", headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"})
    continued, fresh = traced.named("GET /health/live")  # the third is not to be sampled, as its caller says
    assert f"{continued.context.trace_id:032x}" == TRACE_ID
    assert continued.parent is not None
    assert f"{continued.parent.span_id:016x}" == PARENT_ID
    assert not continued.context.trace_state
    assert fresh.parent is None


async def test_refusals_have_their_code_and_failures_the_status_too(
    model: ModelDirectory, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("private")

    async with traced.serving(model) as served:
        await served.http.post(CLASSIFY, content=b"no image", headers=HEADERS)
        monkeypatch.setattr("service.http.routes.classify.softmax", broken)
        await served.http.post(CLASSIFY, content=photo(), headers=HEADERS)
        await served.http.get("/private/path")
    refused, failed = traced.named(f"POST {CLASSIFY}")
    assert (refused.attributes or {})["error.type"] == "bad_image"
    assert refused.status.status_code is StatusCode.UNSET
    assert (failed.attributes or {})["error.type"] == "internal"
    assert failed.status.status_code is StatusCode.ERROR
    assert is_child(traced.only("inference"), failed)
    unmatched = traced.only("GET")
    assert "http.route" not in (unmatched.attributes or {})
    assert "private" not in "".join(span.to_json() for span in (refused, failed, unmatched))


async def test_images_in_several_runs_have_an_inference_span_for_each(model: ModelDirectory, traced: Traced) -> None:
    async with traced.serving(model) as served:
        files = [("image", (f"{number}.jpg", photo(), "image/jpeg")) for number in range(9)]
        assert (await served.http.post(CLASSIFY, files=files)).status_code == 200
    runs = traced.named("inference")
    assert sum((span.attributes or {})["dat.images"] for span in runs) == 9
    assert len(runs) == len(traced.named("batch")) >= 2
    assert len({next(iter(linked_ids(span))) for span in runs}) == len(runs)
    assert (traced.only("decode").attributes or {})["dat.images"] == 9


SCOPE = {"type": "http", "method": "POST", "headers": []}


def record(tracer: OpenTelemetryTracer, model: tuple[str, str] | None, *runs: Run) -> None:
    """Make the trace of a request of which these runs served an image each."""
    stages = Stages(started_s=0.5, runs=runs)
    tracer.record(SCOPE, stages, route=CLASSIFY, status=200, code="ok", ended_s=3.0, model=model)


async def test_runs_of_two_models_that_began_in_the_same_moment_are_not_taken_for_one(traced: Traced) -> None:
    run = Run(queue_s=0.1, inference_s=0.2, batch_size=2, bucket=2, started_s=1.0)
    for model in (("a", "1"), ("b", "1"), ("b", "2"), ("a", "1"), ("b", "1"), ("b", "2")):
        record(traced.tracer, model, run)
    batches = {span.context.span_id: span for span in traced.named("batch")}
    names = [
        ((span.attributes or {})["dat.model.name"], (span.attributes or {})["dat.model.version"])
        for span in batches.values()
    ]
    assert sorted(names) == [("a", "1"), ("b", "1"), ("b", "2")]
    for inference in traced.named("inference"):
        (batch,) = (batches[span_id] for span_id in linked_ids(inference))
        assert dict(batch.attributes or {}).items() <= dict(inference.attributes or {}).items()
        assert len(linked_ids(batch)) == 2
    await traced.tracer.shutdown()


async def test_a_request_that_came_to_no_model_names_none(traced: Traced) -> None:
    record(traced.tracer, None)
    attributes = traced.only(f"POST {CLASSIFY}").attributes or {}
    assert not [name for name in attributes if name.startswith("dat.")]
    await traced.tracer.shutdown()


def test_nothing_is_imported_where_traces_are_off() -> None:
    script = (
        "import sys; from service.telemetry.tracing import load_tracer; from service.settings import Settings;"
        "import service.http.app, service.commands.serve, service.processes.worker;"
        "assert load_tracer(Settings()) is None;"
        "print([name for name in sys.modules"
        " if name == 'service.telemetry.opentelemetry' or name.startswith('opentelemetry.sdk')])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


def test_absent_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "service.telemetry.opentelemetry")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"--tracing: opentelemetry.* is not installed; requirements/tracing.txt"):
        load_tracer(Settings(tracing=True))
