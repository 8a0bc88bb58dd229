from __future__ import annotations

import time

import numpy as np
import pytest

from service.engine.types import Answer, Run
from service.images.preprocessing import ImageTimings
from service.telemetry.stages import Stages


def test_each_stage_counts_as_long_as_its_slowest_image() -> None:
    now_s = time.monotonic()
    stages = Stages(now_s - 2.0)
    stages.decoding = [ImageTimings(0.25, 0.5, 1, 1, now_s), ImageTimings(0.75, 0.125, 1, 1, now_s)]
    outputs = {"logits": np.zeros(7, np.float32)}
    stages.inferred([Answer(outputs, Run(0.5, 0.25, 2, 2, now_s)), Answer(outputs, Run(0.125, 1.0, 1, 1, now_s))])
    assert stages.durations_s == {}, "nothing is answered yet"
    stages.postprocessed(now_s - 0.5)
    durations_s = dict(stages.durations_s)
    total_s, postprocess_s = durations_s.pop("total"), durations_s.pop("postprocess")
    assert durations_s == {"decode": 0.75, "preprocess": 0.5, "queue": 0.5, "inference": 1.0}
    assert total_s - postprocess_s == pytest.approx(1.5)
    assert stages.durations_ms["decode"] == 750.0
    assert list(stages.durations_ms) == ["decode", "preprocess", "queue", "inference", "postprocess", "total"]


def test_request_without_images_took_no_time_in_their_stages() -> None:
    stages = Stages(time.monotonic())
    stages.postprocessed(time.monotonic())
    assert {stages.durations_ms[stage] for stage in ("decode", "preprocess", "queue", "inference")} == {0.0}
