"""An ONNX graph with some of its nodes written anew for 8-bit integers.

Invariants: every tensor that a new node reads or gives under an old name has its old meaning in float32; zero is exact
in every scale; what no output needs any more is dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export import contrib

_UINT8_LEVELS, _INT8_LIMIT = 255, 127


class Wiring:
    """Who makes and who reads each tensor of a graph; nodes are known by `id`, since `nodes` keeps them."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = list(graph.graph.node)
        self.constants: dict[str, TensorProto] = {each.name: each for each in graph.graph.initializer}
        self.producer: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        self._outputs = {output.name for output in graph.graph.output}
        for node in self.nodes:
            self.producer.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.consumers[name].append(node)

    def only_consumer(self, name: str) -> NodeProto | None:
        """Return the one node that reads a tensor; None where others do, or the graph gives it out."""
        consumers = self.consumers[name]
        return consumers[0] if len(consumers) == 1 and name not in self._outputs else None

    def scalar(self, node: NodeProto, place: int) -> float:
        """Return the one number that a node reads at a place; not a number where it reads something else."""
        constant = self.constants.get(node.input[place])
        value = None if constant is None else numpy_helper.to_array(constant)
        return float(value.item()) if value is not None and value.size == 1 else float("nan")


@dataclass(frozen=True, slots=True)
class MLPConv:
    """A convolution to quantise with its surroundings: it reads `source` and gives `result`, both channels last.

    `gelu` reads `result`; `absorbed` are the nodes that it and the integer convolution take the place of.
    """

    source: str
    result: str
    gelu: NodeProto
    absorbed: tuple[NodeProto, ...]


class IntegerWriter:
    """Writes one graph anew; `ranges` are the least and greatest values of the float32 tensors that become uint8."""

    def __init__(self, wiring: Wiring, ranges: Mapping[str, tuple[float, float]]) -> None:
        self._wiring = wiring
        self._made: dict[str, TensorProto] = {}
        self._quantized: set[str] = set()
        self._weight_scales: dict[str, npt.NDArray[np.float32]] = {}
        self._scales = {name: self._activation_scale(name, *ends) for name, ends in ranges.items()}

    def rewritten(self, linears: Collection[int], convs: Mapping[int, MLPConv]) -> onnx.ModelProto:
        """Return the graph with products and convolutions, given by their nodes' `id`, replaced."""
        written: list[NodeProto] = []
        absorbed: set[int] = set()
        for node in self._wiring.nodes:
            if id(node) in absorbed:
                continue
            if id(node) in linears:
                written += self._integer_linear(node, absorbed)
            elif id(node) in convs:
                written += self._integer_conv(node, convs[id(node)], absorbed)
            else:
                written.append(node)
        return self._assembled(written)

    def _integer_linear(self, node: NodeProto, absorbed: set[int]) -> list[NodeProto]:
        source, weight = node.input
        self._integer_weight(weight, axis=1)
        bias, result = self._bias_after(node, absorbed)
        parameters = [f"{source}/scale", f"{weight}/scale", f"{source}/zero", f"{weight}/zero"]
        inputs = [f"{source}/uint8", f"{weight}/int8", *parameters, *bias]
        return [
            *self._quantize_once(source),
            helper.make_node("MatMulIntegerToFloat", inputs, [result], name=node.name, domain=contrib.DOMAIN),
        ]

    def _bias_after(self, node: NodeProto, absorbed: set[int]) -> tuple[list[str], str]:
        """Return the bias that alone is added to a product, if any, and the name of the result."""
        result = node.output[0]
        follower = self._wiring.only_consumer(result)
        if follower is None or follower.op_type != "Add":
            return [], result
        (other,) = (name for name in follower.input if name != result)
        columns = self._wiring.constants[node.input[1]].dims[1]
        if other not in self._wiring.constants or list(self._wiring.constants[other].dims) != [columns]:
            return [], result
        absorbed.add(id(follower))
        return [other], follower.output[0]

    def _integer_conv(self, node: NodeProto, conv: MLPConv, absorbed: set[int]) -> list[NodeProto]:
        weight = node.input[1]
        absorbed.update(map(id, conv.absorbed))
        weight_scales = self._integer_weight(weight, axis=0)
        source, result = conv.source, conv.result
        inputs = [f"{source}/uint8", f"{source}/scale", f"{source}/zero"]
        inputs += [f"{weight}/int8", f"{weight}/scale", f"{weight}/zero", f"{result}/scale", f"{result}/zero"]
        if len(node.input) > 2:
            bias = numpy_helper.to_array(self._wiring.constants[node.input[2]]) / (self._scales[source] * weight_scales)
            inputs.append(f"{node.output[0]}/bias")
            self._keep(inputs[-1], np.rint(bias).astype(np.int32))
        integer = helper.make_node("QLinearConv", inputs, [f"{result}/uint8"], name=node.name, domain=contrib.DOMAIN)
        integer.attribute.extend(each for each in node.attribute if each.name != "auto_pad")
        integer.attribute.append(helper.make_attribute("channels_last", 1))
        back = helper.make_node(
            "DequantizeLinear", [f"{result}/{each}" for each in ("uint8", "scale", "zero")], [result]
        )
        return [*self._quantize_once(source), integer, back, conv.gelu]

    def _quantize_once(self, name: str) -> list[NodeProto]:
        """Return the node that makes a tensor uint8, for the first that reads it."""
        if name in self._quantized:
            return []
        self._quantized.add(name)
        return [helper.make_node("QuantizeLinear", [name, f"{name}/scale", f"{name}/zero"], [f"{name}/uint8"])]

    def _activation_scale(self, name: str, low: float, high: float) -> np.float32:
        """Keep a tensor's scale and zero point, for which zero itself is exact, and return the scale."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = np.float32((high - low) / _UINT8_LEVELS) or np.float32(1)
        self._keep(f"{name}/scale", np.asarray(scale))
        self._keep(f"{name}/zero", np.asarray(np.uint8(round(-low / float(scale)))))
        return scale

    def _integer_weight(self, name: str, *, axis: int) -> npt.NDArray[np.float32]:
        """Keep a weight in int8 with a scale for each index of `axis`, and return these."""
        if name not in self._weight_scales:
            weight = numpy_helper.to_array(self._wiring.constants[name])
            others = tuple(each for each in range(weight.ndim) if each != axis)
            scales = (np.abs(weight).max(others, keepdims=True) / _INT8_LIMIT).astype(np.float32)
            scales[scales == 0] = 1
            self._keep(f"{name}/int8", np.rint(weight / scales).astype(np.int8))
            self._keep(f"{name}/scale", scales.ravel())
            self._keep(f"{name}/zero", np.zeros(scales.size, np.int8))
            self._weight_scales[name] = scales.ravel()
        return self._weight_scales[name]

    def _keep(self, name: str, values: npt.NDArray[Any]) -> None:
        self._made[name] = numpy_helper.from_array(values, name)

    def _assembled(self, nodes: list[NodeProto]) -> onnx.ModelProto:
        """Return a model of those nodes and constants that its outputs need."""
        model = onnx.ModelProto()
        model.CopyFrom(self._wiring.graph)
        needed = {output.name for output in model.graph.output}
        alive = []
        for node in reversed(nodes):
            if needed.intersection(node.output):
                alive.append(node)
                needed.update(node.input)
        constants = [each for each in (self._wiring.constants | self._made).values() if each.name in needed]
        for values, kept in ((model.graph.node, alive[::-1]), (model.graph.initializer, constants)):
            del values[:]
            values.extend(kept)
        del model.graph.value_info[:]  # tells of tensors that are gone
        if all(each.domain != contrib.DOMAIN for each in model.opset_import):
            model.opset_import.append(helper.make_opsetid(contrib.DOMAIN, contrib.VERSION))
        return model
