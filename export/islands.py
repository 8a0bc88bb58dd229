"""What stays in float32 in a float16 graph: islands, each with its reason, found by what computes what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

import onnx_ir as ir

from export.operator_calls import SINGLE_INPUTS, SINGLE_OUTPUTS
from operators import DOMAIN

MOVES: Final = frozenset(
    [
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)
_ARITHMETIC: Final = frozenset({"Add", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Sub", "Tanh"})
_HAT: Final = frozenset({"Add", "Clip", "Max", "Min", "Neg", "Relu", "Sub"})
"""What turns a distance in pixels into an interpolation weight."""


@dataclass(frozen=True, slots=True)
class Island:
    """A part of the graph that stays in float32."""

    name: str
    reason: str
    nodes: Callable[[ir.Graph], set[ir.Node]]
    """Finds it, by what computes what and not by names."""


def single_inputs(node: ir.Node) -> frozenset[int]:
    """Return which inputs an operator of our own takes in float32 whatever the others are."""
    return SINGLE_INPUTS.get(node.op_type, frozenset()) if node.domain == DOMAIN else frozenset()


def gives_single(node: ir.Node) -> bool:
    """Tell whether an operator of our own gives float32 whatever the others give."""
    return node.domain == DOMAIN and node.op_type in SINGLE_OUTPUTS


def _before(values: Iterable[ir.Value | None], through: frozenset[str]) -> set[ir.Node]:
    """Return the nodes of the kinds `through` that lead to values without a break."""
    found: set[ir.Node] = set()
    left = list(values)
    while left:
        value = left.pop()
        node = None if value is None else value.producer()
        if node is not None and node not in found and node.op_type in through:
            found.add(node)
            left.extend(node.inputs)
    return found


def _after(nodes: Iterable[ir.Node], through: frozenset[str]) -> set[ir.Node]:
    """Return the nodes of the kinds `through` that follow from nodes without a break."""
    found: set[ir.Node] = set()
    left = list(nodes)
    while left:
        for value in left.pop().outputs:
            for use in value.uses():
                if use.node.op_type in through and use.node not in found:
                    found.add(use.node)
                    left.append(use.node)
    return found


def pixels(graph: ir.Graph) -> set[ir.Node]:
    """Find what is done to the image before the first convolution."""
    through = MOVES | _ARITHMETIC | {"Cast"}
    first = {use.node for image in graph.inputs for use in image.uses() if use.node.op_type in through}
    return first | _after(first, through)


def coordinates(graph: ir.Graph) -> set[ir.Node]:
    """Find what leads from offsets to interpolation weights, or to the sampler.

    What interpolates takes a distance (Abs), a whole pixel (Floor), or a grid (GridSample). Coordinates are what leads
    there by arithmetic alone, and weights what a few more steps of it make.
    """
    measured = {node for node in graph if node.op_type in ("Abs", "Floor")}
    grids = [node.inputs[1] for node in graph if node.op_type == "GridSample"]
    before = _before([*(node.inputs[0] for node in measured), *grids], MOVES | _ARITHMETIC)
    return before | measured | _after(measured, _HAT)


def distances(graph: ir.Graph) -> set[ir.Node]:
    """Find `coordinates` without what makes interpolation weights of a distance in pixels.

    A distance is small where its weight is not 0, and float16 is as fine there as for the weight.
    """
    island = coordinates(graph)
    for node in [node for node in island if node.op_type == "Abs"]:
        weights = _after([node], _HAT)
        if any(each.op_type == "Relu" for each in weights):
            island -= weights | {node}
    return island


def pixel_arithmetic(graph: ir.Graph) -> set[ir.Node]:
    """Find `pixels` as far as they are computed with: a pixel itself is a whole number that float16 has."""
    island = pixels(graph)
    computing = {node for node in island if node.op_type in _ARITHMETIC}
    return computing | (island & _before([value for node in computing for value in node.inputs], MOVES | {"Cast"}))


def positions(graph: ir.Graph) -> set[ir.Node]:
    """Find what leads by arithmetic to the positions that operators of our own take, and `coordinates`."""
    ends = [node.inputs[index] for node in graph for index in single_inputs(node)]
    return coordinates(graph) | _before(ends, MOVES | _ARITHMETIC)


def classifier(graph: ir.Graph) -> set[ir.Node]:
    """Find `head` without the pooling, and what leads from there."""
    return {node for node in head(graph) if node.op_type not in ("GlobalAveragePool", "ReduceMean")}


def ranges(graph: ir.Graph) -> set[ir.Node]:
    """Find the nodes of the operator Range, and the arithmetic that leads from a map's size to them."""
    counting = {node for node in graph if node.op_type == "Range"}
    ends = [value for node in counting for value in node.inputs]
    return counting | _before(ends, MOVES | _ARITHMETIC | {"Cast"})


def samplers(graph: ir.Graph) -> set[ir.Node]:
    """Find the nodes of the operator GridSample."""
    return {node for node in graph if node.op_type == "GridSample"}


def head(graph: ir.Graph) -> set[ir.Node]:
    """Find what leads from the last normalisation to the outputs that are vectors: the pooling and the classifier."""
    ends = [value for value in graph.outputs if value.shape is not None and len(value.shape) == 2]
    return _before(ends, MOVES | {"Add", "Gemm", "GlobalAveragePool", "MatMul", "ReduceMean"})


ISLANDS: Final[tuple[Island, ...]] = (
    Island(
        "pixels",
        "Every later value depends on them; in float16 the normalisation adds half as much again to the error of the "
        "first stage's features. It is a thousandth of the work.",
        pixels,
    ),
    Island(
        "coordinates",
        "From 32 pixels on, the numbers of a float16 are a 32nd of a pixel apart, which is an error of as much in an "
        "interpolation weight. Two small conversions a sampling bring the offsets in and the weights out.",
        coordinates,
    ),
    Island("ranges", "ONNX has no Range of float16. Graphs for any size count their pixels with it.", ranges),
    Island(
        "samplers",
        "ONNX Runtime's CUDA kernel of GridSample is float32 only; in float16 the node would go to the CPU.",
        samplers,
    ),
    Island(
        "head",
        "Its outputs are float32 anyway: one conversion before the pooling replaces two after it, and the logits are "
        "spared three roundings.",
        head,
    ),
)
"""All that stays in float32, each with the reason; docs/decisions/0011 has the measurements."""


FUSED_ISLANDS: Final[tuple[Island, ...]] = (
    Island("positions", "As coordinates above, and the operators take and give positions in float32.", positions),
    Island("classifier", "The logits are spared two roundings; a pooled vector is converted, and no map.", classifier),
)
"""What stays in float32 in a graph of the operators of the domain `dat`, which the operators do not want otherwise."""


def islands(*, half_weights: bool) -> tuple[Island, ...]:
    """Return `ISLANDS`, or with `half_weights` those where interpolation weights are float16 from the distance on."""
    if not half_weights:
        return ISLANDS
    return tuple(replace(each, nodes=distances) if each.name == "coordinates" else each for each in ISLANDS)
