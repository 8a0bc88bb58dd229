"""Residual sums followed by a norm as ONNX Runtime's SkipLayerNormalization, which adds, keeps the sum and normalises.

The runtime finds such a pair itself only in tensors of three dimensions; maps here have four. The operator takes
(tokens, channels), and tensors stay in that shape from one operator to the next.

Invariant: the graph computes what it did, in its types. The CUDA kernel takes its statistics in the type of its
inputs unless the provider's `enable_skip_layer_norm_strict_mode` is on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from export import contrib


class _Pair(NamedTuple):
    """A residual sum with the norm of it; `bias` is what ended the branch, taken out of it."""

    add: ir.Node
    norm: ir.Node
    skip: ir.Value
    branch: ir.Value
    bias: ir.Value | None


def fuse_skip_norms(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph, float32 or float16, with one operator for each residual sum and its norm."""
    model = passes.ShapeInferencePass()(ir.from_proto(graph)).model
    flattened: dict[ir.Value, ir.Value] = {}
    for norm in list(model.graph):
        if (pair := _pair_of(norm)) is not None:
            _fuse(model.graph, pair, flattened)
    model.opset_imports[contrib.DOMAIN] = contrib.VERSION
    for cleaning in (passes.RemoveUnusedNodesPass(), passes.RemoveUnusedOpsetsPass(), passes.NameFixPass()):
        cleaning(model)
    proto: onnx.ModelProto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return proto


def _pair_of(norm: ir.Node) -> _Pair | None:
    """Return the pair that a node is the norm of, if it is one."""
    if norm.op_type != "LayerNormalization" or len(norm.inputs) != 3 or norm.attributes.get_int("axis", -1) != -1:
        return None
    total = norm.inputs[0]
    add = None if total is None else total.producer()
    if total is None or add is None or add.op_type != "Add" or total.is_graph_output():
        return None
    skip, branch = add.inputs
    if skip is None or branch is None or skip.is_initializer() or branch.is_initializer():
        return None
    if skip.shape is None or skip.shape != branch.shape or skip.dtype != branch.dtype:
        return None  # a sum that broadcasts is no residual
    before, bias = _split_bias(branch)
    if bias is None:
        skip, branch = branch, skip
        before, bias = _split_bias(branch)
    return _Pair(add, norm, skip, before, bias)


def _split_bias(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """Return a value without the bias a channel that ends it, and that bias."""
    node = value.producer()
    if node is not None and node.op_type == "Add" and len(value.uses()) == 1 and not value.is_graph_output():
        for before, bias in (node.inputs, reversed(node.inputs)):
            if before is None or bias is None or bias.shape is None or not bias.is_initializer():
                continue
            if len(bias.shape) == 1 and before.shape == value.shape:
                return before, bias
    return value, None


def _fuse(graph: ir.Graph, pair: _Pair, flattened: dict[ir.Value, ir.Value]) -> None:
    """Put the one operator where the sum was; `flattened` has the flat form of values that were made from one."""
    add, norm = pair.add, pair.norm
    total, normed = add.outputs[0], norm.outputs[0]
    _, gamma, beta = norm.inputs
    assert total.shape is not None
    channels = total.shape[-1]
    new: list[ir.Node] = []

    def flat(value: ir.Value) -> ir.Value:
        if value not in flattened:
            rows = _shape(graph, [-1, channels], f"{value.name}_rows")
            new.append(ir.node("Reshape", [value, rows], name=f"{value.name}_flatten"))
            flattened[value] = _typed(new[-1].outputs[0], value, ir.Shape([None, channels]), f"{value.name}_flat")
        return flattened[value]

    fused = ir.node(
        "SkipLayerNormalization",
        [flat(pair.skip), flat(pair.branch), gamma, beta, pair.bias],
        {"epsilon": norm.attributes.get_float("epsilon", 1e-5)},
        domain=contrib.DOMAIN,
        num_outputs=4,
        name=f"{norm.name}_skip",
    )
    new.append(fused)
    fused.outputs[1].name = fused.outputs[2].name = ""  # mean and inverse deviation, which nothing wants
    dims = [-1 if place == 0 else side for place, side in enumerate(total.shape)]
    if all(isinstance(side, int) for side in dims):
        back = _shape(graph, dims, f"{total.name}_dims")
    else:
        new.append(ir.node("Shape", [pair.skip], name=f"{total.name}_shape"))
        back = new[-1].outputs[0]
        back.name, back.dtype = f"{total.name}_dims", ir.DataType.INT64
    for place, value in ((0, normed), (3, total)):
        row = _typed(fused.outputs[place], total, ir.Shape([None, channels]), f"{value.name}_flat")
        new.append(ir.node("Reshape", [row, back], name=f"{value.name}_unflatten"))
        whole = _typed(new[-1].outputs[0], total, total.shape, f"{value.name}_whole")
        flattened[whole] = row
        value.replace_all_uses_with(whole, replace_graph_outputs=True)
    graph.insert_after(add, new)
    graph.remove([norm, add], safe=True)


def _typed(value: ir.Value, like: ir.Value, shape: ir.Shape, name: str) -> ir.Value:
    value.name, value.shape, value.type = name, shape, like.type
    return value


def _shape(graph: ir.Graph, dims: Sequence[object], name: str) -> ir.Value:
    """Return a constant of the graph that Reshape takes."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(name=name, const_value=ir.tensor(np.array(dims, np.int64), name=name))
    value.dtype, value.shape = ir.DataType.INT64, ir.Shape([len(dims)])
    graph.register_initializer(value)
    return value
