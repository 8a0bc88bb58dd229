"""What a model is loaded with on each device, and what is loaded at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.engine.runtime.options import DeviceOptions
from service.engine.runtime.selfcheck import Parity
from service.errors import RepositoryError
from service.model.directory import open_model
from service.model.loading import EXPLAIN, MODEL, explain_options, graphs_of, load_session, worst
from service.processes.plan import VersionPlan
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
        device=device,
        provider_options={"a": "1"},
        cuda_graph_outputs=("logits",),
        precision="int8",
        buckets=(1, 8),
        strict_device=True,
    )
    explain = explain_options(model)
    assert (explain.device, explain.provider_options, explain.precision) == (runs_on, options, "fp32")
    assert (explain.cuda_graphs, explain.cuda_graph_outputs) == (False, ())
    assert (explain.buckets, explain.strict_device) == ((1, 8), True)


def test_each_graph_of_a_model_is_loaded_from_its_own_file(tmp_path: Path) -> None:
    model = open_model(tiny_model.write(tmp_path))
    graphs = graphs_of(model, Settings(), buckets=(1, 2))
    images = np.random.default_rng(0).integers(0, 256, (2, tiny_model.SIZE, tiny_model.SIZE, 3), np.uint8)
    for graph, reference in zip(graphs, (tiny_model.reference, tiny_explain.reference), strict=True):
        session = load_session(model, graph, device="cpu", settings=Settings(threads=1))
        expected = reference(images)
        for name, values in session.run(images, tuple(graph.outputs)).items():
            assert values.shape == (2, *graph.outputs[name])
            np.testing.assert_allclose(values, expected[name], atol=1e-5)


def test_graph_that_explains_is_served_where_it_is_there_and_wanted(tmp_path: Path) -> None:
    model = open_model(tiny_model.write(tmp_path / "with"))
    without = open_model(tiny_model.write(tmp_path / "without", explain=False))
    own, explain = graphs_of(model, Settings(), buckets=(1,))
    assert (own.key, own.outputs, own.timed) == (MODEL, tiny_model.shapes(), ("logits",))
    assert (explain.key, explain.outputs) == (EXPLAIN, tiny_explain.shapes())
    assert explain.timed == tuple(tiny_explain.shapes())
    assert graphs_of(model, Settings(explain=False), buckets=(1,)) == (own,)
    assert graphs_of(without, Settings(), buckets=(1,)) == (own,)


@pytest.mark.parametrize(
    ("buckets", "explain"), [((1, 2, 4, 8), (1, 2, 4, 8)), ((1, 8, 16, 64), (1, 8)), ((16, 32), (16,))]
)
def test_explaining_takes_the_small_buckets(tmp_path: Path, buckets: tuple[int, ...], explain: tuple[int, ...]) -> None:
    graphs = graphs_of(open_model(tiny_model.write(tmp_path)), Settings(), buckets=buckets)
    assert [graph.buckets for graph in graphs] == [buckets, explain]


def test_graphs_with_outputs_of_one_name_are_refused(tmp_path: Path) -> None:
    model = open_model(tiny_model.write(tmp_path))
    (first, *others) = model.manifest.outputs
    twice = (first.model_copy(update={"name": "position0"}), *others)
    model = replace(model, manifest=model.manifest.model_copy(update={"outputs": twice}))
    with pytest.raises(RepositoryError, match="two graphs have an output position0"):
        graphs_of(model, Settings(), buckets=(1,))


def test_model_with_more_layers_than_records_can_name_is_refused(tmp_path: Path) -> None:
    model = open_model(tiny_model.write(tmp_path))
    many = tiny_explain.RECORD.model_copy(update={"layers": tiny_explain.RECORD.layers * 17})
    model = replace(model, manifest=model.manifest.model_copy(update={"explain": many}))
    plan = VersionPlan(model, Settings(batch_buckets=(1,)), devices=("cpu",), engines=(0,))
    with pytest.raises(RepositoryError, match=r"cannot be served by several processes: .* 64 outputs"):
        _ = plan.geometry


def test_the_worst_comparison_is_the_nearest_to_its_tolerance() -> None:
    near, far = Parity(0.004, 0.005), Parity(0.01, 0.1)
    assert worst([far, None, near]) == near
    assert worst([]) is None
