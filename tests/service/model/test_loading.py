"""What a model is loaded with on each device, and what is loaded at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.engine.explaining import ModelWithExplain
from service.engine.runtime.session import DeviceOptions, OnnxSession
from service.errors import RepositoryError
from service.model.directory import open_model
from service.model.loading import explain_options, explain_outputs, load_session
from service.processes.plan import Plan
from service.settings import Settings
from tests.service import tiny_explain, tiny_model


@pytest.mark.parametrize(
    ("device", "runs_on", "options"),
    [
        ("cpu", "cpu", {"a": "1"}),
        ("cuda:1", "cuda:1", {"a": "1"}),
        ("tensorrt", "cuda", {}),
        ("tensorrt:2", "cuda:2", {}),
    ],
)
def test_explanations_run_in_float32_without_graphs_or_engines(
    device: str, runs_on: str, options: dict[str, str]
) -> None:
    model = DeviceOptions(
        device=device, provider_options={"a": "1"}, precision="int8", buckets=(1, 8, 64), strict_device=True
    )
    explain = explain_options(model)
    assert (explain.device, explain.provider_options, explain.precision) == (runs_on, options, "fp32")
    assert (explain.cuda_graphs, explain.buckets, explain.strict_device) == (False, (1, 8), True)


def test_what_explains_is_loaded_where_it_is_there_and_wanted(tmp_path: Path) -> None:
    model = open_model(tiny_model.write(tmp_path / "with"))
    loaded = load_session(model, "cpu", Settings(threads=1))
    assert isinstance(loaded, ModelWithExplain)
    images = np.random.default_rng(0).integers(0, 256, (2, tiny_model.SIZE, tiny_model.SIZE, 3), np.uint8)
    told, expected = loaded.run(images, loaded.explain_names), tiny_explain.reference(images)
    for name in loaded.explain_names:
        np.testing.assert_allclose(told[name], expected[name], atol=1e-5)
    assert isinstance(load_session(model, "cpu", Settings(threads=1, explain=False)), OnnxSession)
    without = open_model(tiny_model.write(tmp_path / "without", explain=False))
    assert isinstance(load_session(without, "cpu", Settings(threads=1)), OnnxSession)
    assert explain_outputs(without, Settings()) == ()


def test_workers_memory_has_places_for_explanations_where_they_are_served(tmp_path: Path) -> None:
    model = open_model(tiny_model.write(tmp_path))

    def plan(**settings: bool) -> Plan:
        return Plan(Settings(**settings), model, devices=("cpu",), buckets=(1,), metrics_directory=tmp_path)

    assert plan().geometry.explain == tiny_explain.RECORD.outputs
    assert plan(explain=False).geometry.explain == ()


def test_model_with_more_layers_than_records_can_name_is_refused(tmp_path: Path) -> None:
    model = open_model(tiny_model.write(tmp_path))
    many = tiny_explain.RECORD.model_copy(update={"layers": tiny_explain.RECORD.layers * 15})
    model = replace(model, manifest=model.manifest.model_copy(update={"explain": many}))
    plan = Plan(Settings(), model, devices=("cpu",), buckets=(1,), metrics_directory=tmp_path)
    with pytest.raises(RepositoryError, match=r"cannot be served by several processes: .* 64 outputs"):
        _ = plan.geometry
