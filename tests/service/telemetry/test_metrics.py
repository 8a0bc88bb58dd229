from __future__ import annotations

from types import SimpleNamespace

from service.engine.core import DropReason
from service.engine.types import EngineState
from service.model.directory import ModelDirectory
from service.telemetry.metrics import Metrics


def test_runs_of_the_model_are_counted_by_bucket_and_timed_by_image() -> None:
    metrics = Metrics(buckets=(1, 2, 4))
    metrics.batch_ran(bucket=4, queue_s=[0.1, 0.2, 0.3], inference_s=0.5)
    metrics.batch_failed(bucket=2, images=2)
    metrics.dropped(DropReason.CANCELLED, 3)
    value = metrics.registry.get_sample_value
    assert value("dat_batches_total", {"bucket": "4", "outcome": "ok"}) == 1
    assert value("dat_batches_total", {"bucket": "2", "outcome": "failed"}) == 1
    assert value("dat_batch_size_sum") == 3
    assert value("dat_stage_duration_seconds_count", {"stage": "queue"}) == 3
    assert value("dat_stage_duration_seconds_sum", {"stage": "inference"}) == 1.5
    assert value("dat_dropped_images_total", {"reason": "failed"}) == 2
    assert value("dat_dropped_images_total", {"reason": "cancelled"}) == 3


def test_engines_gauges_are_read_at_every_scrape(model: ModelDirectory) -> None:
    metrics = Metrics(buckets=(1,))
    engine = SimpleNamespace(states=[EngineState.LOADING], queue_depth=0, slots_in_use=0)
    metrics.watch(engine)
    metrics.describe(model.manifest)
    assert b'dat_engine_state{state="loading"} 1.0' in metrics.render()
    engine.states, engine.queue_depth, engine.slots_in_use = [EngineState.READY], 5, 7
    text = metrics.render()
    assert b'dat_engine_state{state="ready"} 1.0' in text
    assert b'dat_engine_state{state="loading"} 0.0' in text
    assert b"dat_queued_images 5.0" in text
    assert b"dat_admitted_images 7.0" in text
    assert b'dat_model_info{name="tiny"' in text


def test_totals_are_of_the_routes_that_run_the_model() -> None:
    metrics = Metrics(buckets=(1, 2, 4))
    for route, status, code in (("/infer", 200, "ok"), ("/infer", 400, "malformed"), ("/models", 404, "not_found")):
        metrics.request_began()
        metrics.request_ended(route=route, status=status, code=code, duration_s=0.5)
    metrics.request_inferred({"decode": 0.1, "inference": 0.2, "postprocess": 0.05, "total": 0.5})
    metrics.batch_ran(bucket=4, queue_s=[0.1, 0.2, 0.3], inference_s=0.25)
    metrics.batch_ran(bucket=4, queue_s=[0.1], inference_s=0.25)
    metrics.batch_failed(bucket=2, images=2)
    totals = metrics.inference_totals({"/infer"})
    assert (totals.answered, totals.failed, totals.failed_s) == (1, 1, 0.5)
    assert totals.stages_s == {"decode": 0.1, "inference": 0.2, "postprocess": 0.05, "total": 0.5}
    assert (totals.images, totals.runs, totals.runs_s) == (4, {4: 2}, {4: 0.5})
    assert totals.last_run_s > 0
    assert metrics.inference_totals(()).failed == 0


def test_two_applications_share_no_metric() -> None:
    first, second = Metrics(buckets=(1,)), Metrics(buckets=(1,))
    first.images_ended("ok")
    assert second.registry.get_sample_value("dat_images_total", {"outcome": "ok"}) is None
