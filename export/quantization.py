"""A float32 graph with its large matrix products in 8-bit integers, for ONNX Runtime on CPUs.

Static quantisation: activations are uint8 with one scale and zero point a tensor, from the range that calibration
images give them; weights are int8 with a scale for each output channel. The scales are constants of the file, so that
an image's answer does not depend on what shares its batch. `CHOICES` says what is quantised and why; all else stays as
it is, float32, and so do input and outputs.

Written with ONNX Runtime's own operators where they save time over the standard QuantizeLinear/DequantizeLinear pairs:
MatMulIntegerToFloat adds the bias in the product's last step, where the runtime leaves an Add behind from a pair
(2% of the time of dat_tiny, 6% of dat_pp_tiny), and QLinearConv reads channels last, where a Conv needs two transposes.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxscript.optimizer import fold_constants

from export.errors import ExportError
from export.graph import INPUT_NAME
from export.verify import PROVIDER, Images

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read by the import below

import onnxruntime

CONTRIB: Final = "com.microsoft"
_CHANNELS_LAST, _CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_NARROW: Final = 16
_CALIBRATION_BATCH: Final = 4
_UINT8_LEVELS, _INT8_LIMIT = 255, 127


class Kind(Enum):
    """What a node with constant weights is to the network, told by its operator, weights and neighbours alone."""

    LINEAR = "matrix product with a constant matrix"
    NARROW_LINEAR = "matrix product of fewer than 16 outputs"
    CLASSIFIER = "product of pooled features (Gemm)"
    MLP_CONV = "depthwise convolution before a GELU, channels last"
    OTHER_CONV = "any other convolution"


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether a kind of node is quantised, and the reason by time and error."""

    quantized: bool
    reason: str


CHOICES: Final[dict[Kind, Choice]] = {
    Kind.LINEAR: Choice(
        True,
        "half of the float32 time; all of them together cost 1.3 to 1.6% (rms) of the logits' standard deviation on "
        "synthetic weights, and make dat_tiny 1.7 and dat_pp_tiny 1.4 times as fast",
    ),
    Kind.NARROW_LINEAR: Choice(False, "the offsets: positions in pixels, whose error moves samples; no time in them"),
    Kind.CLASSIFIER: Choice(False, "its error is the logits' own, and it works on one row an image: no time to save"),
    Kind.MLP_CONV: Choice(
        True,
        "takes 8-bit channels-last input without transposes: dat_pp_tiny goes from 1.4 to 1.7 times, and its logits' "
        "error from 1.3 to 1.35%",
    ),
    Kind.OTHER_CONV: Choice(
        False,
        "perception units end in the residual stream, whose rounding to 8 bits makes the logits' error three times "
        "as large (1.3 to 3.7%); offset networks give positions; the stem reads pixels",
    ),
}
"""What is quantised. Products of two activations (scores, weighted values), sampling, position biases, softmax,
LayerNormalization and the residual sums have no constant weights to gain from and stay float32."""


def quantize(graph: onnx.ModelProto, calibration: Images) -> onnx.ModelProto:
    """Return `graph` in 8 bits as `CHOICES` has it, with ranges from uint8 (count, height, width, 3) images.

    Raises ExportError where there is no image, or nothing to quantise.
    """
    if not len(calibration):
        raise ExportError("int8 needs at least one calibration image")
    rewriter = _Rewriter(_with_constant_weights(graph))
    if not rewriter.linears:
        raise ExportError("the graph has no matrix product with constant weights that int8 could take over")
    ranges = _ranges(rewriter.graph, rewriter.calibrated(), calibration)
    return rewriter.rewrite(ranges)


def _with_constant_weights(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Apply transposes and reshapes of constants, which hide that a product's matrix is constant."""
    model = onnx_ir.from_proto(graph)
    fold_constants(
        model,
        input_size_limit=1 << 31,
        output_size_limit=1 << 31,
        should_fold=lambda node: node.op_type in ("Transpose", "Reshape"),
    )
    return onnx_ir.to_proto(model)


def _ranges(graph: onnx.ModelProto, names: list[str], images: Images) -> dict[str, tuple[float, float]]:
    """Return the least and greatest value of each tensor over all images."""
    augmented = onnx.ModelProto()
    augmented.CopyFrom(graph)
    outputs = []
    for name in names:
        for operator in ("ReduceMin", "ReduceMax"):
            outputs.append(f"{name}/{operator}")
            augmented.graph.node.append(helper.make_node(operator, [name], outputs[-1:], keepdims=0))
            augmented.graph.output.append(helper.make_tensor_value_info(outputs[-1], TensorProto.FLOAT, []))
    onnxruntime.disable_telemetry_events()
    session = onnxruntime.InferenceSession(augmented.SerializeToString(), providers=[PROVIDER])
    batches = [images[start : start + _CALIBRATION_BATCH] for start in range(0, len(images), _CALIBRATION_BATCH)]
    found = np.array([session.run(outputs, {INPUT_NAME: batch}) for batch in batches])
    if not np.isfinite(found).all():
        raise ExportError("the model gives values that are not finite for the calibration images")
    lows, highs = found[:, 0::2].min(0), found[:, 1::2].max(0)
    return {name: (float(low), float(high)) for name, low, high in zip(names, lows, highs, strict=True)}


@dataclass(slots=True)
class _Conv:
    """A convolution that is quantised, with the tensors before and after its transposes, and the GELU that follows."""

    source: str
    result: str
    gelu: list[NodeProto]
    absorbed: list[NodeProto]


@dataclass(slots=True)
class _Rewriter:
    """One graph on its way; nodes are known by `id`, since a graph keeps them."""

    graph: onnx.ModelProto
    linears: dict[int, NodeProto] = field(default_factory=dict)
    convs: dict[int, _Conv] = field(default_factory=dict)
    _nodes: list[NodeProto] = field(default_factory=list)
    _made: dict[str, TensorProto] = field(default_factory=dict)
    _quantized: set[str] = field(default_factory=set)
    _weights: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    _producer: dict[str, NodeProto] = field(default_factory=dict)
    _consumers: dict[str, list[NodeProto]] = field(default_factory=lambda: defaultdict(list))
    _constants: dict[str, TensorProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._constants = {each.name: each for each in self.graph.graph.initializer}
        self._nodes = list(self.graph.graph.node)
        for node in self._nodes:
            self._producer.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self._consumers[name].append(node)
        for node in self._nodes:
            kind = self._kind(node)
            if kind is None or not CHOICES[kind].quantized:
                continue
            if kind is Kind.LINEAR:
                self.linears[id(node)] = node
            else:
                conv = self._mlp_conv(node)
                assert conv is not None  # _kind
                self.convs[id(node)] = conv

    def calibrated(self) -> list[str]:
        """Return the tensors whose ranges `rewrite` needs."""
        names = {node.input[0] for node in self.linears.values()}
        names |= {name for conv in self.convs.values() for name in (conv.source, conv.result)}
        return sorted(names)

    def rewrite(self, ranges: dict[str, tuple[float, float]]) -> onnx.ModelProto:
        """Return the graph with its chosen nodes replaced."""
        scales = {name: self._activation_scale(name, *ends) for name, ends in ranges.items()}
        written: list[NodeProto] = []
        absorbed: set[int] = set()
        for node in self._nodes:
            if id(node) in absorbed:
                continue
            if id(node) in self.linears:
                written += self._integer_linear(node, absorbed)
            elif id(node) in self.convs:
                written += self._integer_conv(node, scales, absorbed)
            else:
                written.append(node)
        return self._assembled(written)

    def _kind(self, node: NodeProto) -> Kind | None:
        """Return what a node is, None where it has no constant weights."""
        if len(node.input) < 2 or node.input[1] not in self._constants or node.domain not in ("", "ai.onnx"):
            return None
        shape = self._constants[node.input[1]].dims
        if node.op_type == "MatMul" and len(shape) == 2 and node.input[0] not in self._constants:
            return Kind.LINEAR if shape[1] >= _NARROW else Kind.NARROW_LINEAR
        if node.op_type == "Gemm":
            return Kind.CLASSIFIER
        if node.op_type == "Conv":
            return Kind.MLP_CONV if self._mlp_conv(node) is not None else Kind.OTHER_CONV
        return None

    def _mlp_conv(self, node: NodeProto) -> _Conv | None:
        """Return a depthwise convolution's surroundings, where it lies between transposes and before a GELU."""
        before, after = self._producer.get(node.input[0]), self._only_consumer(node.output[0])
        if self._constants[node.input[1]].dims[1] != 1 or before is None or after is None:
            return None
        if _permutation(before) != _CHANNELS_FIRST or _permutation(after) != _CHANNELS_LAST:
            return None
        result = after.output[0]
        consumers = self._consumers[result]
        if len(consumers) == 1 and consumers[0].op_type == "Gelu":
            return _Conv(before.input[0], result, [consumers[0]], [after])
        gelu = self._gelu_from_erf(result)
        if not gelu:
            return None
        made = helper.make_node("Gelu", [result], [gelu[-1].output[0]], domain=CONTRIB)
        return _Conv(before.input[0], result, [made], [after, *gelu])

    def _gelu_from_erf(self, name: str) -> list[NodeProto]:
        """Return the nodes of x * (1 + erf(x / sqrt(2))) * 0.5, as exports below opset 20 have it; none if not that.

        A GELU is one operator here since the runtime, which would fuse it, no longer finds it once its input has two
        DequantizeLinear, one for each of the two nodes that read it.
        """
        nodes: list[NodeProto] = []
        readers = self._consumers[name]
        node = next((each for each in readers if each.op_type == "Div"), None) if len(readers) == 2 else None
        for wanted in ("Div", "Erf", "Add", "Mul", "Mul"):
            if node is None or node.op_type != wanted:
                return []
            nodes.append(node)
            node = self._only_consumer(node.output[0])
        values = [self._scalar(each, 1) for each in (nodes[0], nodes[2], nodes[4])]
        is_gelu = name in nodes[3].input and nodes[3] in readers and np.allclose(values, [2**0.5, 1, 0.5], rtol=1e-6)
        return nodes if is_gelu else []

    def _scalar(self, node: NodeProto, place: int) -> float:
        constant = self._constants.get(node.input[place])
        value = None if constant is None else numpy_helper.to_array(constant)
        return float(value) if value is not None and value.size == 1 else float("nan")

    def _only_consumer(self, name: str) -> NodeProto | None:
        consumers = self._consumers[name]
        is_output = any(output.name == name for output in self.graph.graph.output)
        return consumers[0] if len(consumers) == 1 and not is_output else None

    def _integer_linear(self, node: NodeProto, absorbed: set[int]) -> list[NodeProto]:
        source, weight = node.input
        self._integer_weight(weight, axis=1)
        bias, result = self._bias_after(node, absorbed)
        parameters = [f"{source}/scale", f"{weight}/scale", f"{source}/zero", f"{weight}/zero"]
        inputs = [f"{source}/uint8", f"{weight}/int8", *parameters, *bias]
        return [
            *self._quantize_once(source),
            helper.make_node("MatMulIntegerToFloat", inputs, [result], name=node.name, domain=CONTRIB),
        ]

    def _bias_after(self, node: NodeProto, absorbed: set[int]) -> tuple[list[str], str]:
        """Return the bias that alone is added to a product, if any, and the name of the result."""
        result = node.output[0]
        follower = self._only_consumer(result)
        if follower is None or follower.op_type != "Add":
            return [], result
        (other,) = (name for name in follower.input if name != result)
        columns = self._constants[node.input[1]].dims[1]
        if other not in self._constants or list(self._constants[other].dims) != [columns]:
            return [], result
        absorbed.add(id(follower))
        return [other], follower.output[0]

    def _integer_conv(self, node: NodeProto, scales: dict[str, np.float32], absorbed: set[int]) -> list[NodeProto]:
        conv, weight = self.convs[id(node)], node.input[1]
        absorbed.update(id(each) for each in (*conv.absorbed, *conv.gelu))
        weight_scales = self._integer_weight(weight, axis=0)
        source, result = conv.source, conv.result
        inputs = [f"{source}/uint8", f"{source}/scale", f"{source}/zero"]
        inputs += [f"{weight}/int8", f"{weight}/scale", f"{weight}/zero", f"{result}/scale", f"{result}/zero"]
        if len(node.input) > 2:
            bias = numpy_helper.to_array(self._constants[node.input[2]]) / (scales[source] * weight_scales)
            inputs.append(f"{node.output[0]}/bias")
            self._keep(inputs[-1], np.rint(bias).astype(np.int32))
        integer = helper.make_node("QLinearConv", inputs, [f"{result}/uint8"], name=node.name, domain=CONTRIB)
        integer.attribute.extend(each for each in node.attribute if each.name != "auto_pad")
        integer.attribute.append(helper.make_attribute("channels_last", 1))
        back = helper.make_node(
            "DequantizeLinear", [f"{result}/{each}" for each in ("uint8", "scale", "zero")], [result]
        )
        return [*self._quantize_once(source), integer, back, *conv.gelu]

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
        if name not in self._weights:
            weight = numpy_helper.to_array(self._constants[name])
            others = tuple(each for each in range(weight.ndim) if each != axis)
            scales = (np.abs(weight).max(others, keepdims=True) / _INT8_LIMIT).astype(np.float32)
            scales[scales == 0] = 1
            self._keep(f"{name}/int8", np.rint(weight / scales).astype(np.int8))
            self._keep(f"{name}/scale", scales.ravel())
            self._keep(f"{name}/zero", np.zeros(scales.size, np.int8))
            self._weights[name] = scales.ravel()
        return self._weights[name]

    def _keep(self, name: str, values: npt.NDArray[Any]) -> None:
        self._made[name] = numpy_helper.from_array(values, name)

    def _assembled(self, nodes: list[NodeProto]) -> onnx.ModelProto:
        """Return a model of those nodes and constants that its outputs need."""
        model = onnx.ModelProto()
        model.CopyFrom(self.graph)
        needed = {output.name for output in model.graph.output}
        alive = []
        for node in reversed(nodes):
            if needed.intersection(node.output):
                alive.append(node)
                needed.update(node.input)
        constants = [each for each in (self._constants | self._made).values() if each.name in needed]
        for values, kept in ((model.graph.node, alive[::-1]), (model.graph.initializer, constants)):
            del values[:]
            values.extend(kept)
        del model.graph.value_info[:]  # tells of tensors that are gone
        if all(each.domain != CONTRIB for each in model.opset_import):
            model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        return model


def _permutation(node: NodeProto) -> tuple[int, ...]:
    """Return the order of axes that a Transpose gives; empty for another operator."""
    return tuple(node.attribute[0].ints) if node.op_type == "Transpose" and node.attribute else ()
