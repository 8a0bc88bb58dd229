"""float16 graphs: what is computed in half the bits, and the islands that stay in float32.

Invariants: inputs, outputs and their types are those of the float32 graph; a value is converted at most once, however
many nodes want it in the other type; weights are kept in the type in which they are used, so that no node converts
them. What is float32, and why, is in `export.islands` and nowhere else.

The arithmetic that an island's reason leaves unsaid is the device's: matrix products and convolutions of float16 add
up in float32 on tensor cores, and the CUDA kernels of LayerNormalization and Softmax compute in float32 inside
whatever they read and write, so that neither needs an island.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common as passes

from export.errors import ExportError
from export.islands import ISLANDS, MOVES, Island, gives_single, single_inputs
from operators import DOMAIN

_ANY_SIZE: Final = 2**31


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
            given = ir.DataType.FLOAT if gives_single(node) else dtype
            for index, value in enumerate(node.inputs):
                if value in floats:
                    wanted = ir.DataType.FLOAT if index in single_inputs(node) else dtype
                    node.replace_input_with(index, self._as(value, wanted))
            _retype_attributes(node, ir.DataType.FLOAT, dtype)
            for value in made:
                value.dtype = given
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
        is_own = node.domain == DOMAIN
        if is_own:
            _narrow_inputs(model.graph, node)
        for value in halves.intersection(node.outputs):
            if is_own:
                wide = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}_wide")
                value.replace_all_uses_with(wide.outputs[0])
                wide.replace_input_with(0, value)
                model.graph.insert_after(node, wide)
                continue
            value.dtype = ir.DataType.FLOAT
            if node.op_type not in MOVES:
                narrow = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16}, name=f"{value.name}_narrow")
                wide = ir.node("Cast", narrow.outputs, {"to": ir.DataType.FLOAT}, name=f"{value.name}_wide")
                value.replace_all_uses_with(wide.outputs[0])
                narrow.replace_input_with(0, value)
                model.graph.insert_after(node, [narrow, wide])
    passes.NameFixPass()(model)
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto


def _narrow_inputs(graph: ir.Graph, node: ir.Node) -> None:
    """Have an operator of our own, which takes nothing else, take float16 as it did; every value is one already."""
    for index, value in enumerate(node.inputs):
        if index not in single_inputs(node) and value is not None and value.dtype != ir.DataType.UINT8:
            narrow = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16}, name=f"{node.name}_input{index}_narrow")
            graph.insert_before(node, narrow)
            node.replace_input_with(index, narrow.outputs[0])
