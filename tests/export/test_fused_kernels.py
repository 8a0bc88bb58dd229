"""That every operator of a fused graph has a kernel compiled for its sizes: the exporter and the kernels agree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.fused import fused_graph
from export.graph import Normalisation
from export.sampling import select_strategy
from export.source import from_seed
from kernels.table import specializations
from models.variants import VARIANTS
from operators import DOMAIN
from service.model.manifest import FUSED_FILE

KERNELS = {
    "ResidualLayerNorm": "residual_layer_norm",
    "BiasGelu": "bias_gelu",
    "WindowAttention": "window_attention",
    "NeighborhoodAttention": "neighborhood_attention",
    "SampleFeatures": "feature_sampling",
    "DeformableAttention": "deformable_attention",
    "DepthwiseConvolution": "depthwise_convolution",
    "PatchEmbedding": "patch_embedding",
    "PerceptionNorm": "perception_norm",
    "SamplingPositions": "sampling_positions",
}


def constants_of(operator: str, attributes: dict[str, Any], shapes: list[tuple[int, ...]]) -> dict[str, Any]:
    """What a node fixes of its kernel's constants; shapes are without the batch where there is one."""
    first = shapes[0]
    if operator in ("ResidualLayerNorm", "BiasGelu"):
        return {"channels": first[-1]}
    size = {"height": first[0], "width": first[1]}
    heads = attributes.get("heads")
    if operator == "WindowAttention":
        facts = {"heads": heads, "head_dim": first[2] // 3 // heads}
        return size | facts | {name: attributes[name] for name in ("window", "shift")}
    if operator == "NeighborhoodAttention":
        return size | {"heads": heads, "head_dim": first[2] // 3 // heads, "kernel": attributes["kernel"]}
    if operator == "SampleFeatures":
        return size | {"groups": shapes[1][0], "channels": first[2] // shapes[1][0]}
    if operator == "DeformableAttention":
        table = {"table_height": shapes[4][1], "table_width": shapes[4][2]}
        facts = {"keys": shapes[1][0], "heads": heads, "groups": shapes[3][0], "head_dim": first[2] // heads}
        return size | facts | table | {"generation": attributes["generation"]}
    if operator == "PerceptionNorm":
        return size | {"channels": first[2], "kernel": shapes[3][0]}
    if operator == "SamplingPositions":
        names = ("stride", "padding", "generation", "bound")
        channels = shapes[1][2]
        facts = {"groups": first[2] // channels, "channels": channels, "kernel": shapes[1][0]}
        return size | facts | {name: attributes[name] for name in names}
    convolved = {name: attributes[name] for name in ("stride", "padding")} | {"kernel": shapes[2][0]}
    if operator == "PatchEmbedding":
        channels = {"colours": first[2], "channels": shapes[2][3]}
        return size | convolved | channels | {"has_gelu": bool(attributes["gelu"])}
    channels = {"channels": first[2], "weight_channels": shapes[2][2]}
    return size | convolved | channels | {f"has_{name}": bool(attributes[name]) for name in ("skip", "gelu")}


def needs(graph: onnx.GraphProto) -> Iterator[tuple[str, dict[str, Any]]]:
    """The kernel and the constants of every node of the domain."""
    shapes: dict[str, tuple[int, ...]] = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    for value in (*graph.value_info, *graph.input):
        # a dynamic batch is left out
        shapes[value.name] = tuple(
            dimension.dim_value for dimension in value.type.tensor_type.shape.dim if dimension.HasField("dim_value")
        )
    for node in graph.node:
        if node.domain == DOMAIN:
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            constants = constants_of(node.op_type, attributes, [shapes[name] for name in node.input])
            yield KERNELS[node.op_type], constants


def assert_compiled(graph: onnx.GraphProto, name: str) -> None:
    compiled = [(each.kernel.name, each.constants) for each in specializations([name])]
    for kernel, constants in needs(graph):
        assert any(kernel == other and constants.items() <= given.items() for other, given in compiled), (
            kernel,
            constants,
        )


def test_kernels_are_compiled_for_every_operator_of_the_demo(fused_demo: Path) -> None:
    graph = onnx.load(fused_demo / FUSED_FILE).graph
    assert len(list(needs(graph))) > 30
    assert_compiled(graph, "dat_demo")


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "dat_demo"])
def test_kernels_are_compiled_for_every_operator(name: str) -> None:
    variant = VARIANTS[name]
    size = (variant.input_size, variant.input_size)
    model = from_seed(0, variant.config, image_size=size).model
    normalisation = Normalisation(variant.mean, variant.std)
    graph = fused_graph(model, normalisation, strategy=select_strategy("separable", 18), opset=18)
    assert_compiled(graph.graph, name)
