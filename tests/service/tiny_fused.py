"""The tiny model with a fused graph: the same but for an operator of the library, which adds `SHIFT` to the logits.

That is far below the tolerance of a comparison, and tells which of the two graphs has run.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from operators import DOMAIN, VERSION
from service.model import manifest as contract
from tests.service import tiny_model

SHIFT = 2**-11


def graph(*, shift: float = SHIFT, operator: str = "BiasGelu") -> onnx.ModelProto:
    """The tiny graph with GELU(0 + 2 shift) added to the logits, which is nearly `shift` where that is small."""
    model = tiny_model.graph()
    constants = {
        "zeros": np.zeros((1, tiny_model.CLASSES), np.float16),
        "bias": np.full(tiny_model.CLASSES, 2 * shift, np.float16),
    }
    own = [
        helper.make_node(operator, ["zeros", "bias"], ["half"], domain=DOMAIN),
        helper.make_node("Cast", ["half"], ["added"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["plain", "added"], ["logits"]),
    ]
    for node in model.graph.node:
        if node.output[0] == "logits":
            node.output[0] = "plain"
    model.graph.node.extend(own)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    return model


def write(root: Path, fused: onnx.ModelProto | None = None) -> Path:
    """Write the tiny model with `fused`, or the graph above, beside its own; return the version's directory."""
    directory = tiny_model.write(root)
    (directory / contract.FUSED_FILE).write_bytes((fused or graph()).SerializeToString())
    outputs = tuple(
        contract.FusedOutputRecord(name=name, max_abs_difference=0.0, rms_difference=0.0)
        for name in tiny_model.shapes()
    )
    record = contract.FusedRecord(operators=("BiasGelu",), operators_version=VERSION, outputs=outputs)
    tiny_model.write_manifest(directory, fused=record)
    return directory


def package(library: Path, *, missing: Callable[[int], str | None], version: int) -> types.ModuleType:
    """What the wheel installs as `dat_operators`, for a library that is built elsewhere."""
    module = types.ModuleType("dat_operators")
    module.__dict__.update(library=lambda: library, missing=missing, VERSION=version)
    return module
