"""float16 graphs: what stays float32, what the roundings do, and that nothing is converted back and forth."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.graph import OUTPUT_NAMES
from export.islands import ISLANDS
from export.precision import half, rounded
from export.verify import TOLERANCES, compare, open_session, reference_outputs, sample_images
from models.dat import DAT
from tests.export.conftest import NORMALISATION, ExportNetwork
from tests.export.networks import NETWORKS, SIZE

IMAGES = sample_images(3, 3, *SIZE)


def types(graph: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value in a graph."""
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    return found | {weight.name: weight.data_type for weight in inferred.initializer}


def nodes(graph: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in graph.graph.node if node.op_type == operator]


def outputs(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    session = open_session(graph.SerializeToString())
    return dict(zip(OUTPUT_NAMES, session.run(None, {"image": IMAGES}), strict=True))


FORMS = [
    ("first_generation", "separable", 18),
    ("first_generation", "gridsample", 18),
    ("second_generation", "gather", 20),
]


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: form[1])
def converted(
    request: pytest.FixtureRequest, exported_network: ExportNetwork
) -> tuple[DAT, onnx.ModelProto, onnx.ModelProto]:
    """A network in each sampling strategy: the model, its graph, and its float16 graph."""
    model, graph, _ = exported_network(*request.param)
    return model, graph, half(graph)


def test_inputs_and_outputs_are_those_of_the_float32_graph(converted: tuple[DAT, onnx.ModelProto, onnx.ModelProto]):
    _, graph, converted_graph = converted
    onnx.checker.check_model(converted_graph, full_check=True)
    assert list(converted_graph.graph.input) == list(graph.graph.input)
    assert [value.name for value in converted_graph.graph.output] == list(OUTPUT_NAMES)
    assert {value.type.tensor_type.elem_type for value in converted_graph.graph.output} == {TensorProto.FLOAT}
    assert converted_graph.graph.output[0].type == graph.graph.output[0].type


def test_heavy_work_is_in_float16_and_coordinates_are_in_float32(
    converted: tuple[DAT, onnx.ModelProto, onnx.ModelProto],
):
    graph = converted[2]
    kinds = types(graph)
    for operator in ("MatMul", "Conv", "LayerNormalization", "Softmax"):
        assert {kinds[node.output[0]] for node in nodes(graph, operator)} == {TensorProto.FLOAT16}, operator
    interpolating = [node for operator in ("Abs", "Floor", "GridSample", "Tanh") for node in nodes(graph, operator)]
    assert interpolating
    for node in (*interpolating, *nodes(graph, "Gemm"), *nodes(graph, "ReduceMean")):
        assert {kinds[name] for name in node.input[:2] if name in kinds} - {TensorProto.INT64} == {TensorProto.FLOAT}


def test_no_value_is_converted_twice_or_back(converted: tuple[DAT, onnx.ModelProto, onnx.ModelProto]):
    graph = converted[2]
    casts = nodes(graph, "Cast")
    made_by_casts = {name for cast in casts for name in cast.output}
    weights = {weight.name for weight in graph.graph.initializer}
    between_floats = [cast for cast in casts if cast.attribute[0].i in (TensorProto.FLOAT, TensorProto.FLOAT16)]
    assert max(Counter(cast.input[0] for cast in between_floats).values()) == 1
    assert not weights & {cast.input[0] for cast in casts}
    assert not made_by_casts & {cast.input[0] for cast in between_floats}


def test_both_forms_compute_the_model_within_the_tolerance(
    converted: tuple[DAT, onnx.ModelProto, onnx.ModelProto],
):
    model, _, graph = converted
    expected = reference_outputs(model, NORMALISATION, IMAGES)
    for form in (graph, rounded(graph)):
        for (name, actual), reference in zip(outputs(form).items(), expected, strict=True):
            difference = compare(name, actual, reference, "fp16")
            assert difference.passes, difference
            assert difference.max_abs > TOLERANCES["fp32"].max / 10, f"{name} shows no trace of float16"


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "first_generation"])
def test_other_layers_and_biases_convert_too(network: str, exported_network: ExportNetwork) -> None:
    model, graph, _ = exported_network(network)
    expected = reference_outputs(model, NORMALISATION, IMAGES)
    for (name, actual), reference in zip(outputs(rounded(half(graph))).items(), expected, strict=True):
        assert compare(name, actual, reference, "fp16").passes, name


def test_every_island_says_why() -> None:
    assert len({island.name for island in ISLANDS}) == len(ISLANDS)
    assert all(len(island.reason) > 40 for island in ISLANDS)


def small_graph(*, weight: np.ndarray) -> onnx.ModelProto:
    """Twice a product with the weight, so that there is something between two nodes."""
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
                helper.make_node("MatMul", ["x", "weight"], ["y"]),
                helper.make_node("MatMul", ["y", "weight"], ["z"]),
            ],
            "small",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4])],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4])],
            [numpy_helper.from_array(weight, "weight")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )


def test_rounded_graph_rounds_what_lies_between_nodes() -> None:
    weight = np.random.default_rng(0).normal(0, 0.3, (4, 4)).astype(np.float32)
    image = np.arange(8, dtype=np.uint8).reshape(2, 4) * 30
    (actual,) = open_session(rounded(half(small_graph(weight=weight), ())).SerializeToString()).run(
        None, {"image": image}
    )
    narrow = weight.astype(np.float16).astype(np.float32)
    between = (image.astype(np.float32) @ narrow).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(actual, (between @ narrow).astype(np.float16).astype(np.float32))


def test_weights_beyond_float16_are_refused_by_name() -> None:
    with pytest.raises(ExportError, match=r"weight.*--precision fp32"):
        half(small_graph(weight=np.full((4, 4), 1e5, np.float32)), ())


def test_pixels_are_counted_in_float32() -> None:
    """As a graph for any size does: ONNX has no Range of float16."""
    graph = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        counted (uint8[batch, height, 3] image) => (float[height] places)
        <float start = {0.0}, float step = {1.0}, float[1] half = {0.5}, int64[1] axis = {1}, int64[1] zero = {0}> {
            size = Shape(image)
            length = Gather(size, axis)
            number = Squeeze(length, zero)
            limit = Cast<to = 1>(number)
            cells = Range(start, limit, step)
            places = Add(cells, half)
        }
    """)
    image = np.zeros((1, 5, 3), np.uint8)
    (places,) = open_session(half(graph).SerializeToString()).run(None, {"image": image})
    assert places.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
