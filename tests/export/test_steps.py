"""Each step of a graph for GPUs by itself, and all together: the same function, in the operators that it is for."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch

from export.errors import ExportError
from export.gpu_layers import WindowsAsHeads
from export.graph import OUTPUT_NAMES, export_graph
from export.inference_form import inference_form
from export.islands import islands
from export.job import ExportJob, check_job
from export.precision import half, rounded
from export.sampling import select_strategy
from export.skip_norm import fuse_skip_norms
from export.steps import ALL, STEPS, Step, min_opset, parse_steps
from export.targets import TARGETS
from export.verify import compare, open_session, reference_outputs, sample_images
from models.dat import DAT
from models.sampling import SEPARABLE
from models.variants import VARIANTS
from models.window_attention import WindowAttention
from tests.export.conftest import NORMALISATION, ExportNetwork
from tests.export.networks import NETWORKS, SIZE, dynamic
from tests.golden_files import synthetic_input, synthetic_model

IMAGES = sample_images(3, 3, *SIZE)
LAYER_STEPS = (Step.ATTENTION, Step.BIASES, Step.PATCHES, Step.GATHERS)
FORMS = [
    ("first_generation", frozenset(STEPS)),
    ("first_generation", frozenset({Step.ATTENTION})),
    ("second_generation", frozenset(STEPS)),
]


class Stepped(NamedTuple):
    """A network with its graphs in both precisions."""

    model: DAT
    single: onnx.ModelProto
    half: onnx.ModelProto


def graphs_of(model: DAT, steps: frozenset[Step]) -> Stepped:
    opset = max(18, min_opset(steps))
    plain = export_graph(
        model, NORMALISATION, strategy=select_strategy("separable", opset), opset=opset, example_size=SIZE, steps=steps
    )
    single, narrow = plain, half(plain, islands(half_weights=Step.HALF_WEIGHTS in steps))
    if Step.SKIP_NORM in steps:
        single, narrow = fuse_skip_norms(single), fuse_skip_norms(narrow)
    return Stepped(model, single, narrow)


@lru_cache
def graphs_of_network(network: str, steps: frozenset[Step]) -> Stepped:
    return graphs_of(synthetic_model(NETWORKS[network](), SIZE), steps)


def assert_computes(graph: onnx.ModelProto, model: DAT, precision: str, *, share: float) -> None:
    outputs = open_session(graph.SerializeToString()).run(None, {"image": IMAGES})
    for name, actual, wanted in zip(
        OUTPUT_NAMES, outputs, reference_outputs(model, NORMALISATION, IMAGES), strict=True
    ):
        assert compare(name, actual, wanted, precision).share <= share, name


def count(graph: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: f"{form[0]}-{'-'.join(sorted(form[1]))}")
def stepped(request: pytest.FixtureRequest) -> Stepped:
    network, steps = request.param
    return graphs_of_network(network, steps)


def test_float32_graph_computes_what_torch_computes(stepped: Stepped) -> None:
    assert_computes(stepped.single, stepped.model, "fp32", share=0.1)  # 1e-5 of the standard deviation


def test_float16_graph_is_within_the_bounds_as_it_is_and_rounded(stepped: Stepped) -> None:
    assert_computes(stepped.half, stepped.model, "fp16", share=1)
    assert_computes(rounded(stepped.half), stepped.model, "fp16", share=1)


@pytest.mark.parametrize("step", LAYER_STEPS)
@pytest.mark.parametrize("network", NETWORKS)
def test_layers_of_each_step_compute_what_the_model_computes(network: str, step: Step) -> None:
    model = synthetic_model(NETWORKS[network](), SIZE)
    image = synthetic_input(3, 2, *SIZE)
    with torch.inference_mode():
        expected = model(image)
        computed = inference_form(model, SEPARABLE, steps={step}).eval()(image)
    for actual, wanted in zip((computed.logits, *computed.stages), (expected.logits, *expected.stages), strict=True):
        assert float((actual - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.std()))


@pytest.mark.parametrize(("window", "side"), [(7, 14), (4, 8), (3, 8)])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_windows_as_heads_attend_as_windows_do(window: int, side: int, shifted: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    layer = WindowAttention(16, 2, window=window, map_size=(side, side), shifted=shifted).requires_grad_(False)
    layer.relative_position_bias_table.normal_()
    x = torch.randn(2, side, side, 16)
    form = WindowsAsHeads(layer)
    assert form.mask.shape[-1] % 4 == 0
    expected = layer(x)
    computed = form.to(dtype)(x.to(dtype)).float()
    bound = 1e-5 if dtype is torch.float32 else 1e-2
    assert float((computed - expected).abs().max()) <= bound * max(1.0, float(expected.std()))


def test_padded_keys_get_no_weight_in_float16() -> None:
    layer = WindowAttention(16, 2, window=7, map_size=(14, 14), shifted=True).requires_grad_(False)
    form = WindowsAsHeads(layer)
    scores = form.mask.half()[..., :49, :]
    assert scores.isfinite().all()
    assert (scores.float().softmax(-1)[..., 49:] == 0).all()


def test_attention_step_leaves_no_softmax_where_the_operator_attends(exported_network: ExportNetwork) -> None:
    plain = exported_network("first_generation").graph
    graph = graphs_of_network("first_generation", frozenset({Step.ATTENTION})).single
    assert count(plain)["Softmax"] == count(graph)["Attention"] == 5
    assert count(graph)["Softmax"] == count(graph)["Split"] == 0


def test_skip_norms_take_sums_and_biases(exported_network: ExportNetwork) -> None:
    exported = exported_network("first_generation")
    graph = fuse_skip_norms(exported.graph)
    before, after = count(exported.graph), count(graph)
    fused = [node for node in graph.graph.node if node.op_type == "SkipLayerNormalization"]
    # one in the middle of each block, one between two blocks of a stage, and the last norm
    assert len(fused) == 5 + 1 + 1
    assert before["LayerNormalization"] - after["LayerNormalization"] == len(fused)
    with_bias = [node for node in fused if len(node.input) == 5]
    assert len(with_bias) >= 4
    assert before["Add"] - after["Add"] == len(fused) + len(with_bias)
    assert_computes(graph, exported.model, "fp32", share=0.1)
    narrow = fuse_skip_norms(half(exported.graph))
    assert_computes(narrow, exported.model, "fp16", share=1)
    assert_computes(rounded(narrow), exported.model, "fp16", share=1)


def test_interpolation_weights_are_float16_from_the_distance_on(exported_network: ExportNetwork) -> None:
    exported = exported_network("first_generation")
    graph = half(exported.graph, islands(half_weights=True))
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    distances = [node for node in graph.graph.node if node.op_type == "Abs"]
    assert distances
    producers = {name: node for node in graph.graph.node for name in node.output}
    for node in distances:
        assert types[node.output[0]] == onnx.TensorProto.FLOAT16
        cast = producers[node.input[0]]
        assert (cast.op_type, producers[cast.input[0]].op_type) == ("Cast", "Sub")
        assert types[cast.input[0]] == onnx.TensorProto.FLOAT
    assert_computes(rounded(graph), exported.model, "fp16", share=1)


def test_biases_step_leaves_keys_and_values_without() -> None:
    form = inference_form(synthetic_model(NETWORKS["first_generation"](), SIZE), SEPARABLE, steps={Step.BIASES})
    for name, parameter in form.named_parameters():
        assert not name.endswith(("proj_k.bias", "proj_v.bias", "proj_qkv.bias")), parameter.shape


def test_patches_step_leaves_no_convolution_of_whole_patches(exported_network: ExportNetwork) -> None:
    plain = exported_network("first_generation").graph
    graph = graphs_of_network("first_generation", frozenset(STEPS)).single
    assert count(plain)["Conv"] - count(graph)["Conv"] == 4  # the stem and three down projections


@pytest.mark.full
def test_a_model_of_any_size_takes_the_steps() -> None:
    model = synthetic_model(dynamic(), None)
    graph = graphs_of(model, frozenset(STEPS))
    assert count(graph.single)["SkipLayerNormalization"] > 0
    assert_computes(graph.single, model, "fp32", share=0.1)
    images = sample_images(2, 1, 96, 64)
    for computed, wanted in zip(
        open_session(graph.single.SerializeToString()).run(None, {"image": images}),
        reference_outputs(model, NORMALISATION, images),
        strict=True,
    ):
        assert np.abs(computed - wanted).max() <= 1e-5 * max(1.0, wanted.std())


def job(target: str = "cuda", **changes: object) -> ExportJob:
    return ExportJob(variant=VARIANTS["dat_demo"], repository=Path("unused"), seed=1, target=TARGETS[target], **changes)  # type: ignore[arg-type]  # a job of these fields


def test_graphs_are_plain_unless_steps_are_asked_for() -> None:
    assert job().steps == frozenset()
    assert job().graph_opset == 18
    assert job(graph_steps="skip_norm,biases").steps == {Step.SKIP_NORM, Step.BIASES}
    assert job(graph_steps="attention").graph_opset == 23
    assert Step.HALF_WEIGHTS in parse_steps(ALL, "fp16")
    assert parse_steps(ALL, "fp32") == frozenset(STEPS) - {Step.HALF_WEIGHTS}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (job("tensorrt", graph_steps="biases"), r"tensorrt.*biases"),
        (job("cpu", graph_steps="attention"), r"cpu.*attention"),
        (job(graph_steps="warp"), r"warp.*attention, skip_norm"),
        (job(graph_steps="half_weights"), r"half_weights.*fp16"),
        (job(graph_steps="attention", opset=20), r"attention.*23.*20"),
    ],
)
def test_steps_that_cannot_be_are_refused_at_once(asked: ExportJob, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        check_job(asked)
