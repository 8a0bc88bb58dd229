"""Whole graphs of small networks: every layer kind and switch, every strategy, against torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.graph import INPUT_NAME, OUTPUT_NAMES, export_graph
from export.sampling import STRATEGY_NAMES, select_strategy
from export.source import from_seed
from export.verify import open_session, sample_images, verify
from models.config import SizeError
from models.dat import DAT
from tests.export.conftest import NORMALISATION, Exported, ExportNetwork
from tests.export.networks import NETWORKS, SIZE, dynamic, first_generation
from tests.golden_files import synthetic_model

OPSETS = {"separable": 18, "gridsample": 18, "gather": 20}
IN_EVERY_RUN = {
    ("first_generation", "gridsample"), ("second_generation", "gather"), *((name, "separable") for name in NETWORKS),
}  # fmt: skip
"""Every network, and every strategy: which one a layer samples by is independent of its other switches."""

# A layer of windows takes one, a shifted one four: its windows inside, on either border, and in the corner. One of
# neighbourhoods takes one where its map is small, and not padded.
FUSED_ATTENTIONS = {
    "first_generation": 9,
    "first_generation_biases": 0,
    "second_generation": 1,
    "second_generation_biases": 5,
}


def exported(
    model: DAT, path: Path, *, sampling: str = "gridsample", opset: int = 18, tuned_for_cpu: bool = False
) -> onnx.ModelProto:
    graph = export_graph(
        model,
        NORMALISATION,
        strategy=select_strategy(sampling, opset),
        opset=opset,
        example_size=SIZE,
        tuned_for_cpu=tuned_for_cpu,
    )
    onnx.save(graph, path)
    return graph


def axes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", ["first_generation", "second_generation"])
def test_no_score_underflows_to_a_denormal_weight(exported_network: ExportNetwork, name: str) -> None:
    graph = exported_network(name).graph
    scores = [node.input[0] for node in graph.graph.node if node.op_type == "Softmax"]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(each) for each in scores)
    computed = open_session(graph.SerializeToString()).run(scores, {INPUT_NAME: sample_images(2, 2, *SIZE)})
    below = [(each.max(-1, keepdims=True) - each).max() for each in computed]
    assert max(below) > 40  # keys are hidden
    assert np.exp(-max(below)) / 49 > np.finfo(np.float32).tiny


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        pytest.param(name, sampling, marks=() if (name, sampling) in IN_EVERY_RUN else pytest.mark.full)
        for name in NETWORKS
        for sampling in STRATEGY_NAMES
    ],
)
def test_every_layer_kind_and_switch_computes_what_torch_computes(
    name: str, sampling: str, exported_network: ExportNetwork
) -> None:
    model, graph, path = exported_network(name, sampling, OPSETS[sampling])
    differences = verify(path, model, NORMALISATION, image_sizes=[SIZE])
    assert [difference.name for difference in differences] == list(OUTPUT_NAMES)
    assert all(difference.reference_std > 0 for difference in differences)
    assert {node.domain for node in graph.graph.node} == {""}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("first_generation", (96, 64)),
        pytest.param("first_generation_biases", SIZE, marks=pytest.mark.full),  # nothing of it is fused
        ("second_generation", SIZE),
        ("second_generation_biases", SIZE),
    ],
)
def test_graph_tuned_for_the_cpu_computes_what_torch_computes(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    model = synthetic_model(NETWORKS[name](), size)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = tmp_path / "model.onnx"
    graph = exported(model, path, sampling="separable", tuned_for_cpu=True)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    verify(path, model, NORMALISATION, image_sizes=[size])
    operators = Counter((node.domain, node.op_type) for node in graph.graph.node)
    assert {domain for domain, _ in operators} <= {"", "com.microsoft"}
    assert operators["com.microsoft", "Attention"] == FUSED_ATTENTIONS[name]


@pytest.mark.parametrize(
    "sampling", [pytest.param(name, marks=() if name == "separable" else pytest.mark.full) for name in STRATEGY_NAMES]
)
def test_dynamic_graph_takes_other_sizes_and_shapes(sampling: str, tmp_path: Path) -> None:
    model = synthetic_model(dynamic(), None)
    path = tmp_path / "model.onnx"
    graph = exported(model, path, sampling=sampling, tuned_for_cpu=sampling == "separable")
    assert axes(graph.graph.input[0]) == ["batch", "height", "width", 3]
    verify(path, model, NORMALISATION, image_sizes=[(64, 64), (33, 33), (97, 45), (64, 160)], batch_sizes=[1, 2])


def test_windowed_model_of_any_size_is_refused() -> None:
    with pytest.raises(SizeError, match="generation 2"):
        from_seed(0, first_generation(), image_size=None)


def test_names_types_and_axes_are_those_of_the_contract(first_exported: Exported) -> None:
    graph = first_exported.graph.graph
    (image,) = graph.input
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert axes(image) == ["batch", 64, 64, 3]
    assert {output.name: axes(output) for output in graph.output} == {
        "logits": ["batch", 5],
        "embedding": ["batch", 32],
        "stage1": ["batch", 16, 16, 16],
        "stage2": ["batch", 16, 8, 8],
        "stage3": ["batch", 32, 4, 4],
        "stage4": ["batch", 32, 2, 2],
    }
    assert {output.type.tensor_type.elem_type for output in graph.output} == {onnx.TensorProto.FLOAT}


def test_weights_are_in_the_graph_once(first_exported: Exported) -> None:
    weights = sum(parameter.numel() for parameter in first_exported.model.parameters())
    stored = sum(np.prod(tensor.dims, dtype=int) for tensor in first_exported.graph.graph.initializer)
    assert weights * 0.95 < stored < weights * 1.25
    assert not any(tensor.external_data for tensor in first_exported.graph.graph.initializer)


def test_file_says_nothing_of_the_machine_it_was_made_on(first_exported: Exported) -> None:
    content = first_exported.path.read_bytes()
    assert str(Path.cwd()).encode() not in content
    assert b".py" not in content


@pytest.mark.full
def test_export_is_reproducible(first_exported: Exported, tmp_path: Path) -> None:
    exported(first_exported.model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == first_exported.path.read_bytes()
