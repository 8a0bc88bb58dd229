"""The sampling strategies against torch, in ONNX Runtime, and what they refuse."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from export.errors import ExportError
from export.graph import translate
from export.sampling import MAX_OPSET, MIN_OPSET, STRATEGIES, STRATEGY_NAMES, Strategy, check_graph, select_strategy

OPSETS = range(MIN_OPSET, MAX_OPSET + 1)
SAMPLERS = tuple(name for name in STRATEGY_NAMES if name != "separable")
# Beyond 2^62 pixels ONNX Runtime's GridSample overflows its pixel index; the gathers clamp before they convert.
FARTHEST_EXPONENT = {"gridsample": 16, "gather": 30}
EXACT = {"mode": "bilinear", "padding_mode": "zeros", "align_corners": True}


class Sampler(nn.Module):
    def __init__(self, **arguments: object) -> None:
        super().__init__()
        self.arguments = EXACT | arguments

    def forward(self, image: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(image, grid, **self.arguments)  # type: ignore[arg-type]


def sampler_graph(name: str, opset: int, **arguments: object) -> onnx.ModelProto:
    return translate(
        Sampler(**arguments).eval(),
        (torch.zeros(2, 3, 5, 6), torch.zeros(2, 4, 7, 2)),
        strategy=select_strategy(name, opset),
        opset=opset,
        input_names=("image", "grid"),
        output_names=("sampled",),
        dynamic_shapes=(
            {0: "batch", 1: "channels", 2: "height", 3: "width"},
            {0: "batch", 1: "rows", 2: "columns"},
        ),
    )


@functools.cache
def exact_graph(name: str, opset: int) -> onnx.ModelProto:
    return sampler_graph(name, opset)


@functools.cache
def session(name: str, opset: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = exact_graph(name, opset).SerializeToString()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def corner_positions(length: int) -> list[float]:
    """Where bilinear sampling has its seams: every pixel, the border, and one pixel beyond it."""
    if length == 1:
        return [-1.0, 0.0, 1.0]
    on_pixels = [2 * index / (length - 1) - 1 for index in range(-1, length + 1)]
    return [*on_pixels, -1.0, 1.0, float(np.nextafter(np.float32(1), np.float32(2))), -1.0 - 1e-6]


@st.composite
def samplings(draw: st.DrawFn, farthest_exponent: int) -> tuple[np.ndarray, np.ndarray]:
    batch, channels = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    image = random.standard_normal((batch, channels, height, width), np.float32)
    axes = []
    for length in (width, height):
        kinds = draw(st.lists(st.sampled_from(("inside", "around", "far", "seam")), min_size=1, max_size=4))
        choices = {
            "inside": random.uniform(-1, 1, (batch, rows, columns)),
            "around": random.uniform(-1.5, 1.5, (batch, rows, columns)),
            "far": random.uniform(-1, 1, (batch, rows, columns)) * 10.0 ** random.integers(1, farthest_exponent + 1),
            "seam": random.choice(corner_positions(length), (batch, rows, columns)),
        }
        picked = random.integers(len(kinds), size=(batch, rows, columns))
        axes.append(np.choose(picked, [choices[kind] for kind in kinds]))
    return image, np.stack(axes, -1).astype(np.float32)


@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_strategy_equals_torch_at_any_size_and_position(name: str, opset: int, data: st.DataObject) -> None:
    image, grid = data.draw(samplings(FARTHEST_EXPONENT[name]))
    (computed,) = session(name, opset).run(None, {"image": image, "grid": grid})
    expected = Sampler()(torch.from_numpy(image), torch.from_numpy(grid)).numpy()
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_positions_on_pixels_give_the_pixels_and_beyond_the_border_zero(name: str) -> None:
    image = np.arange(1, 13, dtype=np.float32).reshape(1, 1, 3, 4)
    rows, columns = np.linspace(-2, 2, 5), np.linspace(-1 - 2 / 3, 1 + 2 / 3, 6)  # one pixel beyond on every side
    grid = np.stack(np.meshgrid(columns, rows), -1)[None].astype(np.float32)
    (computed,) = session(name, MIN_OPSET).run(None, {"image": image, "grid": grid})
    np.testing.assert_allclose(computed, np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1))), atol=1e-5)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_graph_declares_the_opset_asked_for_and_standard_operators_only(name: str, opset: int) -> None:
    graph = exact_graph(name, opset)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", opset)]
    operators = [node.op_type for node in graph.graph.node]
    if name == "gather":
        assert "GridSample" not in operators
        assert operators.count("GatherND") == 4
        return
    (node,) = graph.graph.node
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    assert node.op_type == "GridSample"
    mode = b"linear" if opset >= 20 else b"bilinear"
    assert attributes == {"mode": mode, "padding_mode": b"zeros", "align_corners": 1}


WRITING = [strategy for strategy in STRATEGIES if strategy.translate is not None]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((1, 0, True), "mode='nearest'"),
        ((2, 0, True), "mode='bicubic'"),
        ((0, 1, True), "padding_mode='border'"),
        ((0, 2, True), "padding_mode='reflection'"),
        ((0, 0, False), "align_corners=False"),
    ],
)
@pytest.mark.parametrize("strategy", WRITING, ids=lambda strategy: f"{strategy.name}-{strategy.min_opset}")
def test_other_samplings_are_refused(strategy: Strategy, arguments: tuple[int, int, bool], named: str) -> None:
    assert strategy.translate is not None
    with pytest.raises(ExportError, match=f"grid_sample with {named} "):
        strategy.translate(SimpleNamespace(shape=(2, 3, 5, 6)), None, *arguments)


@pytest.mark.parametrize("name", SAMPLERS)
def test_refusal_of_a_sampling_is_what_the_export_raises(name: str) -> None:
    with pytest.raises(ExportError, match="mode='nearest', padding_mode='border'"):
        sampler_graph(name, MIN_OPSET, mode="nearest", padding_mode="border")


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_of_volumes_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match="4-D"):
        translate(
            Sampler().eval(),
            (torch.zeros(2, 3, 4, 5, 6), torch.zeros(2, 4, 5, 6, 3)),
            strategy=select_strategy(name, MIN_OPSET),
            opset=MIN_OPSET,
            input_names=("image", "grid"),
            output_names=("sampled",),
            dynamic_shapes=({0: "batch"}, {0: "batch"}),
        )


def test_separable_refuses_a_model_that_calls_the_sampler() -> None:
    with pytest.raises(ExportError, match="separable"):
        sampler_graph("separable", MIN_OPSET)


@pytest.mark.parametrize("opset", [16, 17, 24])
@pytest.mark.parametrize("name", STRATEGY_NAMES)
def test_unsupported_opset_is_refused_with_those_supported(name: str, opset: int) -> None:
    with pytest.raises(ExportError, match=rf"opset {opset} .*: {', '.join(map(str, OPSETS))}$"):
        select_strategy(name, opset)


def test_unknown_strategy_is_refused_with_those_known() -> None:
    with pytest.raises(ExportError, match=rf"'plugin'.*: {', '.join(STRATEGY_NAMES)}$"):
        select_strategy("plugin", 18)


def tampered(name: str, opset: int = 18) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(exact_graph(name, opset))
    return copy


def check(graph: onnx.ModelProto, name: str, *, opset: int = 18, samplings: int = 1) -> None:
    check_graph(graph, strategy=select_strategy(name, opset), opset=opset, samplings=samplings, domains={})


@pytest.mark.parametrize(("attribute", "value"), [("mode", "nearest"), ("padding_mode", "border")])
def test_graph_with_another_mode_is_refused(attribute: str, value: str) -> None:
    graph = tampered("gridsample")
    (entry,) = (each for each in graph.graph.node[0].attribute if each.name == attribute)
    entry.s = value.encode()
    with pytest.raises(ExportError, match=value):
        check(graph, "gridsample")


def test_mode_of_another_opset_is_refused() -> None:
    graph = tampered("gridsample", 18)
    graph.opset_import[0].version = 20
    with pytest.raises(ExportError, match="linear"):
        check(graph, "gridsample", opset=20)


def test_graph_that_keeps_another_opset_is_refused() -> None:
    with pytest.raises(ExportError, match="opset 19"):
        check(tampered("gridsample", 18), "gridsample", opset=19)


def test_graph_with_an_operator_of_another_domain_is_refused() -> None:
    graph = tampered("gridsample")
    graph.graph.node[0].domain = "com.example"
    with pytest.raises(ExportError, match=r"com\.example::GridSample"):
        check(graph, "gridsample")


def test_graph_with_a_function_is_refused() -> None:
    graph = tampered("gridsample")
    graph.functions.add(name="Sample", domain="local")
    with pytest.raises(ExportError, match="holds functions: Sample"):
        check(graph, "gridsample")


def test_missing_and_surplus_samplings_are_refused() -> None:
    with pytest.raises(ExportError, match=r"gridsample: .*1 GridSample nodes for 2"):
        check(tampered("gridsample"), "gridsample", samplings=2)
    with pytest.raises(ExportError, match=r"gather: .*4 GatherND nodes for 2"):
        check(tampered("gather"), "gather", samplings=2)
    with pytest.raises(ExportError, match=r"gather: .*1 GridSample nodes for 1"):
        check(tampered("gridsample"), "gather")
