from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from service.engine.core import DropReason
from service.engine.types import EngineState
from service.images.preprocessing import ImageTimings
from service.model.directory import ModelDirectory
from service.model.manifest import GraphForm
from service.serving.states import ModelState, Parity, VersionStatus
from service.telemetry.metrics import Metrics
from service.telemetry.model_metrics import EndedRequest, ModelMetrics
from service.telemetry.series import STAGE_BUCKETS_S, Histogram

TINY = {"model": "tiny", "version": "1"}


def shown(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metric by its labels' values, sorted by the labels' names."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def test_runs_of_a_model_are_counted_by_bucket_and_timed_by_image() -> None:
    metrics = Metrics()
    tiny = metrics.of_model("tiny", 1)
    tiny.batch_ran(bucket=4, queue_s=[0.1, 0.2, 0.3], inference_s=0.5)
    tiny.batch_failed(bucket=2, images=2)
    tiny.dropped(DropReason.CANCELLED, 3)
    value = metrics.registry.get_sample_value
    assert value("dat_batches_total", {**TINY, "bucket": "4", "outcome": "ok"}) == 1
    assert value("dat_batches_total", {**TINY, "bucket": "2", "outcome": "failed"}) == 1
    assert value("dat_batch_size_sum", TINY) == 3
    assert value("dat_stage_duration_seconds_count", {**TINY, "stage": "queue"}) == 3
    assert value("dat_stage_duration_seconds_sum", {**TINY, "stage": "inference"}) == 1.5
    assert value("dat_dropped_images_total", {**TINY, "reason": "failed"}) == 2
    assert value("dat_dropped_images_total", {**TINY, "reason": "cancelled"}) == 3


def test_a_model_that_never_ran_says_so_from_its_start() -> None:
    metrics = Metrics()
    metrics.of_model("tiny", 1)
    assert metrics.registry.get_sample_value("dat_last_run_timestamp_seconds", TINY) == 0
    assert set(shown(metrics, "dat_model_loads_total").values()) == {0}
    assert shown(metrics, "dat_dropped_images_total") == {
        ("tiny", reason, "1"): 0 for reason in ("deadline", "cancelled", "failed")
    }


def test_restarts_are_counted_by_what_was_started_again_from_0_on() -> None:
    metrics = Metrics()
    metrics.may_restart("engine-0", "worker-0")
    metrics.restarted("worker-0")
    metrics.restarted("service", 2)
    assert shown(metrics, "dat_restarts_total") == {("engine-0",): 0, ("worker-0",): 1, ("service",): 2}


def test_versions_are_counted_apart_and_requests_to_none_without_either_label() -> None:
    metrics = Metrics()
    first, second = metrics.of_model("tiny", 1), metrics.of_model("tiny", 2)
    for model in (first, second, second, None):
        metrics.request_began()
        metrics.request_ended(EndedRequest("/r", 200, "ok", 0.5, model))
    second.images_ended("answered", 3)
    assert shown(metrics, "dat_requests_total") == {
        ("ok", "tiny", "/r", "200", "1"): 1,
        ("ok", "tiny", "/r", "200", "2"): 2,
        ("ok", "", "/r", "200", ""): 1,
    }
    assert shown(metrics, "dat_images_total") == {("tiny", "answered", "2"): 3}
    assert shown(metrics, "dat_requests_in_flight") == {(): 0}


def gauges(model: ModelDirectory, **engine: Any) -> Any:
    return SimpleNamespace(name="tiny", version=1, manifest=model.manifest, engine=SimpleNamespace(**engine))


def test_engines_gauges_are_read_at_every_scrape_of_the_versions_that_take_work(model: ModelDirectory) -> None:
    metrics = Metrics()
    served: list[Any] = []
    metrics.watch(lambda: served)
    assert shown(metrics, "dat_engine_state") == {}
    served.append(gauges(model, states=[EngineState.LOADING], queue_depth=0, slots_in_use=0))
    assert shown(metrics, "dat_engine_state")["tiny", "loading", "1"] == 1
    served[0] = gauges(model, states=[EngineState.READY, EngineState.READY], queue_depth=5, slots_in_use=7)
    assert shown(metrics, "dat_engine_state") == {
        ("tiny", "loading", "1"): 0,
        ("tiny", "ready", "1"): 2,
        ("tiny", "dead", "1"): 0,
    }
    assert shown(metrics, "dat_queued_images") == {("tiny", "1"): 5}
    assert shown(metrics, "dat_admitted_images") == {("tiny", "1"): 7}
    assert list(shown(metrics, "dat_model_info")) == [("tiny", "fp32", "tiny", "1")]


def test_states_of_all_versions_and_what_was_compared_with_the_cpu_are_shown() -> None:
    metrics = Metrics()
    statuses = [
        VersionStatus("a", 1, ModelState.DRAINING),
        VersionStatus(
            "a",
            2,
            ModelState.READY,
            is_default=True,
            graphs=(GraphForm.FUSED, GraphForm.STANDARD, GraphForm.FUSED),
            parity=Parity(error=2e-4, tolerance=1e-3),
        ),
        VersionStatus("b", 7, ModelState.FAILED, reason="It differs.", parity=Parity(error=0.5, tolerance=1e-3)),
    ]
    metrics.watch_versions(lambda: statuses)
    assert shown(metrics, "dat_model_state") == {
        ("a", "draining", "1"): 1,
        ("a", "ready", "2"): 1,
        ("b", "failed", "7"): 1,
    }
    assert shown(metrics, "dat_default_version") == {("a",): 2}
    assert shown(metrics, "dat_model_graphs") == {("fused", "a", "2"): 2, ("standard", "a", "2"): 1}
    assert shown(metrics, "dat_parity_error") == {("a", "2"): 2e-4, ("b", "7"): 0.5}
    assert shown(metrics, "dat_parity_tolerance") == {("a", "2"): 1e-3, ("b", "7"): 1e-3}


def test_loads_are_counted_by_how_they_ended_and_timed_where_they_came_to_something() -> None:
    metrics = Metrics()
    metrics.load_ended(model="a", outcome="loaded", duration_s=3.0)
    metrics.load_ended(model="a", outcome="failed", duration_s=500.0)
    metrics.load_ended(model="a", outcome="unloaded")
    assert shown(metrics, "dat_model_loads_total") == {("a", "loaded"): 1, ("a", "failed"): 1, ("a", "unloaded"): 1}
    assert shown(metrics, "dat_model_load_duration_seconds_sum") == {("a",): 3.0}
    last = shown(metrics, "dat_last_load_timestamp_seconds")["a",]
    metrics.load_ended(model="a", outcome="failed")
    assert shown(metrics, "dat_last_load_timestamp_seconds")["a",] == last > 0


def test_totals_are_of_the_routes_that_run_a_version_and_of_that_version() -> None:
    metrics = Metrics()
    tiny, other = metrics.of_model("tiny", 1), metrics.of_model("tiny", 2)
    for route, status, code, model in (
        ("/infer", 200, "ok", tiny),
        ("/infer", 400, "malformed", tiny),
        ("/infer", 400, "malformed", other),
        ("/infer", 404, "unknown_model", None),
        ("/models", 404, "not_found", tiny),
    ):
        metrics.request_began()
        metrics.request_ended(EndedRequest(route, status, code, 0.5, model))
    for model in (tiny, other):
        model.requests_inferred([{"decode": 0.1, "inference": 0.2, "postprocess": 0.05, "total": 0.5}])
        model.batch_ran(bucket=4, queue_s=[0.1, 0.2, 0.3], inference_s=0.25)
    tiny.batch_ran(bucket=4, queue_s=[0.1], inference_s=0.25)
    tiny.batch_failed(bucket=2, images=2)
    totals = metrics.inference_totals({"/infer"}, name="tiny", version=1)
    assert (totals.answered, totals.failed, totals.failed_s) == (1, 1, 0.5)
    assert totals.stages_s == {"decode": 0.1, "inference": 0.2, "postprocess": 0.05, "total": 0.5}
    assert (totals.images, totals.runs, totals.runs_s) == (4, {4: 2}, {4: 0.5})
    assert totals.last_run_s > 0
    assert metrics.inference_totals((), name="tiny", version=1).failed == 0
    unknown = metrics.inference_totals({"/infer"}, name="nobody", version=1)
    assert (unknown.answered, unknown.images, unknown.runs, unknown.last_run_s) == (0, 0, {}, 0)


def ended(metrics: Metrics, *models: ModelMetrics) -> None:
    """Have a request to each end, while one that never does is in flight."""
    for model in models:
        metrics.request_began()
        stages_s = {"decode": 0.002, "postprocess": 0.001, "total": 0.004}
        timings = ImageTimings(0.002, 0.001, 480, 640, started_s=0.0)
        metrics.request_ended(EndedRequest("/r", 200, "ok", 0.004, model, (timings,), stages_s))


def test_requests_that_end_under_load_are_counted_together_and_none_is_lost() -> None:
    metrics = Metrics()
    first, second = metrics.of_model("tiny", 1), metrics.of_model("tiny", 2)
    value = metrics.registry.get_sample_value
    metrics.request_began()
    ended(metrics, *[first, second] * 100)
    counted = value("dat_requests_total", {**TINY, "route": "/r", "status": "200", "code": "ok"})
    assert counted is not None
    assert 0 < counted < 100
    each = {("ok", "tiny", "/r", "200", version): 100 for version in ("1", "2")}
    assert shown(metrics, "dat_requests_total") == each
    of_total, duration = {**TINY, "stage": "total"}, "dat_stage_duration_seconds"
    assert value(f"{duration}_count", of_total) == 100
    assert value(f"{duration}_sum", of_total) == pytest.approx(0.4)
    assert [value(f"{duration}_bucket", {**of_total, "le": le}) for le in ("0.0025", "0.005")] == [0, 100]
    assert value(f"{duration}_count", {**TINY, "stage": "preprocess"}) == 100


@given(st.lists(st.floats(0, 100) | st.sampled_from(STAGE_BUCKETS_S), min_size=1))
def test_amounts_recorded_together_are_as_recorded_one_by_one(amounts: list[float]) -> None:
    one, all_ = (Histogram("h", "h", buckets=STAGE_BUCKETS_S, registry=None) for _ in range(2))
    for amount in amounts:
        one.observe(amount)
    all_.observe_all(amounts)
    (expected,), (found,) = one.collect(), all_.collect()
    for left, right in zip(expected.samples, found.samples, strict=True):
        if not left.name.endswith("_created"):
            assert (left.name, left.labels, left.value) == (right.name, right.labels, pytest.approx(right.value))


def count_all(metrics: Metrics, version: int) -> None:
    model = metrics.of_model("tiny", version)
    metrics.request_began()
    metrics.request_ended(EndedRequest("/r", 500, "internal", 0.5, model))
    model.requests_inferred([{"postprocess": 0.1, "total": 0.2}])
    model.images_ended("answered")
    model.batch_ran(bucket=1, queue_s=[0.1], inference_s=0.2)
    model.batch_failed(bucket=1, images=1)


def series_of(metrics: Metrics, version: str) -> int:
    families = text_string_to_metric_families(metrics.render().decode())
    return sum(sample.labels.get("version") == version for family in families for sample in family.samples)


def test_a_version_that_is_forgotten_is_shown_once_more_and_counted_anew_if_it_comes_back() -> None:
    metrics = Metrics()
    count_all(metrics, 1)
    count_all(metrics, 2)
    both = series_of(metrics, "2")
    assert series_of(metrics, "1") == both > 0
    metrics.forget("tiny", 1)
    assert [series_of(metrics, "1") for _ in range(2)] == [both, 0]  # what it counted last is not lost
    assert series_of(metrics, "2") == both
    count_all(metrics, 1)
    assert metrics.registry.get_sample_value("dat_batch_size_sum", TINY) == 1


def test_a_version_that_comes_back_before_it_was_shown_for_the_last_time_goes_on() -> None:
    metrics = Metrics()
    count_all(metrics, 1)
    metrics.forget("tiny", 1)
    count_all(metrics, 1)
    metrics.render()
    count_all(metrics, 1)
    assert metrics.registry.get_sample_value("dat_batch_size_sum", TINY) == 3


OF_TWO_PROCESSES = """
import os, sys
from pathlib import Path
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from service.telemetry.metrics import Metrics
from service.telemetry.model_metrics import EndedRequest, ModelMetrics
from service.telemetry.series import STAGE_BUCKETS_S, Histogram
def count():
    metrics = Metrics(directory=Path(sys.argv[1]))
    metrics.of_model("tiny", int(sys.argv[2])).batch_ran(bucket=1, queue_s=[0.1], inference_s=0.2)
    metrics.load_ended(model="tiny", outcome="loaded", duration_s=1.0)
    return metrics
metrics = count()
metrics.forget("tiny", 1)
print(metrics.render().decode())
"""


def test_several_processes_are_summed_by_version_and_what_they_counted_stays(tmp_path: Path) -> None:
    for version in ("1", "2"):
        command = [sys.executable, "-W", "error", "-c", OF_TWO_PROCESSES, str(tmp_path), version]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = set(text.splitlines())
    assert 'dat_batch_size_sum{model="tiny",version="1"} 1.0' in lines
    assert 'dat_batch_size_sum{model="tiny",version="2"} 1.0' in lines
    assert 'dat_model_loads_total{model="tiny",outcome="loaded"} 2.0' in lines


@pytest.mark.parametrize("name", ['quo"te', "back\\slash"])
def test_a_name_that_wants_escaping_is_read_back_as_it_is(name: str) -> None:
    metrics = Metrics()
    metrics.watch_versions(lambda: [VersionStatus(name, 1, ModelState.READY)])
    assert shown(metrics, "dat_model_state") == {(name, "ready", "1"): 1}


def test_two_applications_share_no_metric() -> None:
    first, second = Metrics(), Metrics()
    first.of_model("tiny", 1).images_ended("ok")
    assert second.registry.get_sample_value("dat_images_total", {**TINY, "outcome": "ok"}) is None
