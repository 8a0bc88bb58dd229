"""float16 graphs: what is computed in half the bits, and the islands that stay in float32.

Invariants: inputs, outputs and their types are those of the float32 graph; a value is converted at most once, however
many nodes want it in the other type; weights are kept in the type in which they are used, so that no node converts
them. What is float32, and why, is in `ISLANDS` and nowhere else.

The arithmetic that an island's reason leaves unsaid is the device's: matrix products and convolutions of float16 add
up in float32 on tensor cores, and the CUDA kernels of LayerNormalization and Softmax compute in float32 inside
whatever they read and write, so that neither needs an island.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common as passes

from export.errors import ExportError

_ANY_SIZE: Final = 2**31
_MOVES: Final = frozenset(
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


def half(graph: onnx.ModelProto, islands: Iterable[Island] | None = None) -> onnx.ModelProto:
    """Return the graph in float16 with float32 islands, by default all of `ISLANDS`; its inputs and outputs stay.

    Raises ExportError where a weight is too large for float16.
    """
    model = passes.ShapeInferencePass()(ir.from_proto(graph)).model
    # the runtime folds with its CPU kernels, and has few for float16: what is constant would be computed in every run
    onnxscript.optimizer.fold_constants(model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE)
    single = {node for island in (ISLANDS if islands is None else islands) for node in island.nodes(model.graph)}
    _Conversion(model.graph, single).run()
    for cleaning in (
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.NameFixPass(),
    ):
        cleaning(model)
    proto: onnx.ModelProto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return proto


class _Conversion:
    """One graph on its way to float16; `single` are the nodes that stay."""

    def __init__(self, graph: ir.Graph, single: set[ir.Node]) -> None:
        self._graph = graph
        self._single = single
        self._converted: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        floats = {value for node in self._graph for value in node.outputs if _dtype(node, value) == ir.DataType.FLOAT}
        floats.update(value for value in self._graph.initializers.values() if value.dtype == ir.DataType.FLOAT)
        for node in list(self._graph):
            made = floats.intersection(node.outputs)
            if not made:  # what gives no floats, such as a position's pixel index, takes them as they are
                continue
            dtype = ir.DataType.FLOAT if node in self._single else ir.DataType.FLOAT16
            for index, value in enumerate(node.inputs):
                if value in floats:
                    node.replace_input_with(index, self._as(value, dtype))
            _retype_attributes(node, ir.DataType.FLOAT, dtype)
            for value in made:
                value.dtype = dtype
        for index, value in enumerate(self._graph.outputs):
            if value.dtype == ir.DataType.FLOAT16:
                self._graph.outputs[index] = self._output(value)

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return a value in a type: itself, or its one conversion."""
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self._converted:
            convert = self._weight if value.is_initializer() else self._cast
            self._converted[value, dtype] = convert(value, dtype)
        return self._converted[value, dtype]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        cast = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}_{_SUFFIX[dtype]}_cast")
        (result,) = cast.outputs
        result.name, result.shape = f"{value.name}_{_SUFFIX[dtype]}", value.shape
        result.dtype = dtype
        producer = value.producer()
        assert producer is not None  # the graph's inputs are no floats
        self._graph.insert_after(producer, cast)
        return result

    def _weight(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return a weight for those that want another type; what nobody wants any more is removed later."""
        weight = ir.Value(name=f"{value.name}_{_SUFFIX[dtype]}", shape=value.shape, const_value=value.const_value)
        _become(weight, dtype)
        self._graph.register_initializer(weight)
        return weight

    def _output(self, value: ir.Value) -> ir.Value:
        """Return an output of the graph in float32, which takes over its name."""
        name = value.name
        value.name = f"{name}_{_SUFFIX[ir.DataType.FLOAT16]}"
        result = self._as(value, ir.DataType.FLOAT)
        result.name = name
        return result


_SUFFIX: Final = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16"}


def _dtype(node: ir.Node, value: ir.Value) -> ir.DataType | None:
    """Return the type of what a node makes; where inference does not know the operator, that of its first input."""
    if value.dtype is None and node.inputs and (first := node.inputs[0]) is not None and first.dtype is not None:
        value.dtype = first.dtype
    return value.dtype


def _is_half(node: ir.Node, value: ir.Value) -> bool:
    """Tell whether an output is float16; one without a name is not made."""
    return bool(value.name) and _dtype(node, value) == ir.DataType.FLOAT16


def _become(weight: ir.Value, dtype: ir.DataType) -> None:
    """Give a weight another type, rounding it; ExportError where it is too large for that."""
    assert weight.const_value is not None
    before = weight.const_value.numpy()
    with np.errstate(over="ignore"):
        after = before.astype(dtype.numpy())
    if np.isfinite(after).sum() != np.isfinite(before).sum():
        raise ExportError(f"{weight.name} holds numbers beyond float16; export this model with --precision fp32")
    weight.const_value = ir.tensor(after, name=weight.name)
    weight.type = ir.TensorType(dtype)


def _retype_attributes(node: ir.Node, before: ir.DataType, after: ir.DataType) -> None:
    """Have a node that is told a type, or holds a tensor of it, make the other."""
    for name, attribute in list(node.attributes.items()):
        if name in ("to", "dtype") and attribute.value == before:
            node.attributes[name] = ir.AttrInt64(name, after)
        elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == before:
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.value.numpy().astype(after.numpy())))


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
    through = _MOVES | _ARITHMETIC | {"Cast"}
    first = {use.node for image in graph.inputs for use in image.uses() if use.node.op_type in through}
    return first | _after(first, through)


def coordinates(graph: ir.Graph) -> set[ir.Node]:
    """Find what leads from offsets to interpolation weights, or to the sampler.

    What interpolates takes a distance (Abs), a whole pixel (Floor), or a grid (GridSample). Coordinates are what leads
    there by arithmetic alone, and weights what a few more steps of it make.
    """
    measured = {node for node in graph if node.op_type in ("Abs", "Floor")}
    grids = [node.inputs[1] for node in graph if node.op_type == "GridSample"]
    before = _before([*(node.inputs[0] for node in measured), *grids], _MOVES | _ARITHMETIC)
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


def ranges(graph: ir.Graph) -> set[ir.Node]:
    """Find the nodes of the operator Range, and the arithmetic that leads from a map's size to them."""
    counting = {node for node in graph if node.op_type == "Range"}
    ends = [value for node in counting for value in node.inputs]
    return counting | _before(ends, _MOVES | _ARITHMETIC | {"Cast"})


def samplers(graph: ir.Graph) -> set[ir.Node]:
    """Find the nodes of the operator GridSample."""
    return {node for node in graph if node.op_type == "GridSample"}


def head(graph: ir.Graph) -> set[ir.Node]:
    """Find what leads from the last normalisation to the outputs that are vectors: the pooling and the classifier."""
    ends = [value for value in graph.outputs if value.shape is not None and len(value.shape) == 2]
    return _before(ends, _MOVES | {"Add", "Gemm", "GlobalAveragePool", "MatMul", "ReduceMean"})


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


def islands(*, half_weights: bool) -> tuple[Island, ...]:
    """Return `ISLANDS`, or with `half_weights` those where interpolation weights are float16 from the distance on."""
    if not half_weights:
        return ISLANDS
    return tuple(replace(each, nodes=distances) if each.name == "coordinates" else each for each in ISLANDS)


def rounded(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph that computes what a device does with a float16 one: every float16 value is rounded.

    Without float16 arithmetic ONNX Runtime computes such a graph in float32 and leaves the roundings between its nodes
    out, so that nothing but the weights is float16. There, this is the graph to compare. Within one operator sums are
    in float32, as on tensor cores.
    """
    model = passes.ShapeInferencePass()(ir.from_proto(graph)).model
    halves = {value for node in model.graph for value in node.outputs if _is_half(node, value)}
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT16:
            _become(value, ir.DataType.FLOAT)
    for node in list(model.graph):
        _retype_attributes(node, ir.DataType.FLOAT16, ir.DataType.FLOAT)
        for value in halves.intersection(node.outputs):
            value.dtype = ir.DataType.FLOAT
            if node.op_type not in _MOVES:
                narrow = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16}, name=f"{value.name}_narrow")
                wide = ir.node("Cast", narrow.outputs, {"to": ir.DataType.FLOAT}, name=f"{value.name}_wide")
                value.replace_all_uses_with(wide.outputs[0])
                narrow.replace_input_with(0, value)
                model.graph.insert_after(node, [narrow, wide])
    passes.NameFixPass()(model)
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto
