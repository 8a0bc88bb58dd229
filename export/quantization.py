"""A float32 graph with its large matrix products in 8-bit integers, for ONNX Runtime on CPUs.

Static quantisation: activations are uint8 with one scale and zero point a tensor, from the range that calibration
images give them; weights are int8 with a scale for each output channel. The scales are constants of the file, so that
an image's answer does not depend on what shares its batch. `CHOICES` says what is quantised and why; all else stays as
it is, float32, and so do input and outputs.

Written with ONNX Runtime's own operators where they save time over the standard QuantizeLinear/DequantizeLinear pairs:
MatMulIntegerToFloat adds the bias in the product's last step, where the runtime leaves an Add behind from a pair
(docs/decisions/0012-int8.md), and QLinearConv reads channels last, where a Conv needs two transposes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
import onnx
import onnx_ir
from onnx import NodeProto, TensorProto, helper
from onnxscript.optimizer import fold_constants

from export import contrib
from export.errors import ExportError
from export.graph import INPUT_NAME
from export.integer_graph import IntegerWriter, MLPConv, Wiring
from export.verify import PROVIDER, Images

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read by the import below

import onnxruntime

_CHANNELS_LAST, _CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_NARROW: Final = 16
_CALIBRATION_BATCH: Final = 4


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
    graph = _with_constant_weights(graph)
    wiring = Wiring(graph)
    kinds = [(node, kind_of(node, wiring)) for node in wiring.nodes]
    chosen = [node for node, kind in kinds if kind is not None and CHOICES[kind].quantized]
    linears = [node for node in chosen if node.op_type == "MatMul"]
    convs = {id(node): conv for node in chosen if (conv := mlp_conv(node, wiring)) is not None}
    if not linears:
        raise ExportError("the graph has no matrix product with constant weights that int8 could take over")
    names = {node.input[0] for node in linears} | {
        name for each in convs.values() for name in (each.source, each.result)
    }
    writer = IntegerWriter(wiring, _ranges(graph, sorted(names), calibration))
    return writer.rewritten({id(node) for node in linears}, convs)


def kind_of(node: NodeProto, wiring: Wiring) -> Kind | None:
    """Return what a node is, None where it has no constant weights."""
    if len(node.input) < 2 or node.input[1] not in wiring.constants or node.domain not in ("", "ai.onnx"):
        return None
    shape = wiring.constants[node.input[1]].dims
    if node.op_type == "MatMul" and len(shape) == 2 and node.input[0] not in wiring.constants:
        return Kind.LINEAR if shape[1] >= _NARROW else Kind.NARROW_LINEAR
    if node.op_type == "Gemm":
        return Kind.CLASSIFIER
    if node.op_type == "Conv":
        return Kind.MLP_CONV if mlp_conv(node, wiring) is not None else Kind.OTHER_CONV
    return None


def mlp_conv(node: NodeProto, wiring: Wiring) -> MLPConv | None:
    """Return a depthwise convolution's surroundings, where it lies between transposes and before a GELU."""
    if node.op_type != "Conv" or node.input[1] not in wiring.constants:
        return None
    before, after = wiring.producer.get(node.input[0]), wiring.only_consumer(node.output[0])
    if wiring.constants[node.input[1]].dims[1] != 1 or before is None or after is None:
        return None
    if _permutation(before) != _CHANNELS_FIRST or _permutation(after) != _CHANNELS_LAST:
        return None
    result = after.output[0]
    consumers = wiring.consumers[result]
    if len(consumers) == 1 and consumers[0].op_type == "Gelu":
        return MLPConv(before.input[0], result, consumers[0], (after, consumers[0]))
    gelu = _gelu_from_erf(result, wiring)
    if not gelu:
        return None
    made = helper.make_node("Gelu", [result], [gelu[-1].output[0]], domain=contrib.DOMAIN)
    return MLPConv(before.input[0], result, made, (after, *gelu))


def _gelu_from_erf(name: str, wiring: Wiring) -> list[NodeProto]:
    """Return the nodes of x * (1 + erf(x / sqrt(2))) * 0.5, as exports below opset 20 have it; none if not that.

    A GELU is one operator here since the runtime, which would fuse it, no longer finds it once its input has two
    DequantizeLinear, one for each of the two nodes that read it.
    """
    nodes: list[NodeProto] = []
    readers = wiring.consumers[name]
    node = next((each for each in readers if each.op_type == "Div"), None) if len(readers) == 2 else None
    for wanted in ("Div", "Erf", "Add", "Mul", "Mul"):
        if node is None or node.op_type != wanted:
            return []
        nodes.append(node)
        node = wiring.only_consumer(node.output[0])
    values = [wiring.scalar(each, 1) for each in (nodes[0], nodes[2], nodes[4])]
    is_gelu = name in nodes[3].input and nodes[3] in readers and np.allclose(values, [2**0.5, 1, 0.5], rtol=1e-6)
    return nodes if is_gelu else []


def _permutation(node: NodeProto) -> tuple[int, ...]:
    """Return the order of axes that a Transpose gives; empty for another operator."""
    return tuple(node.attribute[0].ints) if node.op_type == "Transpose" and node.attribute else ()


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
