"""`fused.onnx`: what `model.onnx` computes, by operators of the domain `dat`, in float16.

Invariants: its input and outputs are those of `model.onnx`; of each pattern of `export.fused_form` it holds as many
operators as the network has places for it, so that none is left in standard operators unseen; it has been compared with
the torch model in every output, by the operators' reference on the CPU.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from export.errors import ExportError
from export.fused_form import FusedNetwork
from export.graph import INPUT_NAME, OUTPUT_NAMES, Normalisation, translate
from export.islands import FUSED_ISLANDS
from export.precision import half
from export.sampling import Strategy
from export.verify import Difference, verify
from models.dat import DAT
from operators import DOMAIN, VERSION
from service.model.manifest import FusedOutputRecord, FusedRecord

BATCH_SIZES: Final = (1, 2)
"""That it is compared at: the reference is written to be read, and takes its time."""
_EXAMPLE_BATCH: Final = 2


def fused_graph(model: DAT, normalisation: Normalisation, *, strategy: Strategy, opset: int) -> onnx.ModelProto:
    """Return the graph of a model with a fixed input size; raises ExportError as `export.graph.translate`."""
    assert model.image_size is not None  # check_job
    network = FusedNetwork(model, normalisation).eval()
    graph = translate(
        network,
        (torch.zeros(_EXAMPLE_BATCH, *model.image_size, 3, dtype=torch.uint8),),
        strategy=strategy,
        opset=opset,
        input_names=(INPUT_NAME,),
        output_names=OUTPUT_NAMES,
        dynamic_shapes=({0: "batch"},),
        domains={DOMAIN: VERSION},
    )
    graph = half(with_constant_shapes(graph), FUSED_ISLANDS)
    if (held := operators_of(graph)) != network.operators:
        raise ExportError(f"the fused graph holds {dict(held)}, where {dict(network.operators)} were put in")
    return graph


def with_constant_shapes(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with a constant for the shape of each Reshape of which only the batch is not known."""
    model = ir.from_proto(graph)
    constants: dict[tuple[int, ...], ir.Value] = {}
    for node in list(model.graph):
        shape = node.outputs[0].shape
        if node.op_type != "Reshape" or shape is None:
            continue
        sides = tuple(side if isinstance(side, int) else -1 for side in shape)
        if sides.count(-1) == 1:
            if sides not in constants:
                constants[sides] = _constant(model.graph, sides)
            node.replace_input_with(1, constants[sides])
    passes.RemoveUnusedNodesPass()(model)
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto


def _constant(graph: ir.Graph, sides: tuple[int, ...]) -> ir.Value:
    name = "shape_" + "_".join("batch" if side < 0 else str(side) for side in sides)
    value = ir.Value(name=name, const_value=ir.tensor(np.array(sides, np.int64), name=name))
    value.dtype, value.shape = ir.DataType.INT64, ir.Shape([len(sides)])
    graph.register_initializer(value)
    return value


def operators_of(graph: onnx.ModelProto) -> Counter[str]:
    """Return how many nodes of each operator of the domain a graph holds."""
    return Counter(node.op_type for node in graph.graph.node if node.domain == DOMAIN)


def verify_fused(path: Path, library: Path, model: DAT, normalisation: Normalisation) -> tuple[Difference, ...]:
    """Compare the graph at `path`, computed by `library`, with the model; raises as `export.verify.verify`."""
    assert model.image_size is not None
    return verify(
        path,
        model,
        normalisation,
        image_sizes=(model.image_size,),
        batch_sizes=BATCH_SIZES,
        precision="fp16",
        library=library,
    )


def fused_record(graph: onnx.ModelProto, differences: tuple[Difference, ...]) -> FusedRecord:
    """Return what the manifest says of the graph."""
    return FusedRecord(
        operators=tuple(sorted(operators_of(graph))),
        operators_version=VERSION,
        outputs=tuple(
            FusedOutputRecord(name=each.name, max_abs_difference=each.max_abs, rms_difference=each.rms)
            for each in differences
        ),
    )
