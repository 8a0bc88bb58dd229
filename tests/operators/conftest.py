"""Graphs of one node, and sessions of them with the library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper

from operators import DOMAIN, VERSION

Arrays = dict[str, NDArray[Any]]
Run = Callable[..., list[NDArray[Any]]]


def node_graph(
    operator: str,
    inputs: Arrays,
    outputs: int = 1,
    *,
    batch: str | None = None,
    made: str | None = None,
    gives: int = onnx.TensorProto.FLOAT16,
    **attributes: Any,
) -> bytes:
    """Return a graph of one node, whose inputs are as given; `batch` names the first axis of those of four.

    The input `made` is none of the graph's, which makes it of zeros, in the shape that its input `shape` has.
    """
    infos, nodes = [], []
    for name, value in inputs.items():
        if name == made:
            infos.append(helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [value.ndim]))
            zero = helper.make_tensor("zero", helper.np_dtype_to_tensor_dtype(value.dtype), [1], [0])
            nodes.append(helper.make_node("ConstantOfShape", ["shape"], [name], value=zero))
            continue
        shape: list[int | str] = list(value.shape)
        if batch is not None and value.ndim == 4:
            shape[0] = batch
        infos.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), shape))
    names = [f"out{number}" for number in range(outputs)]
    node = helper.make_node(operator, list(inputs), names, domain=DOMAIN, **attributes)
    given = [helper.make_tensor_value_info(name, gives, None) for name in names]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph([*nodes, node], "one", infos, given)
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return made


@pytest.fixture
def session_of(library: Path) -> Callable[[bytes], Any]:
    """Opens a graph on the CPU with the operators."""

    def opened(graph: bytes) -> Any:
        options = ort.SessionOptions()
        options.register_custom_ops_library(str(library))
        options.log_severity_level = 4
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    return opened


@pytest.fixture
def run(session_of: Callable[[bytes], Any]) -> Run:
    """Runs one node on its inputs, by name."""

    def ran(operator: str, inputs: Arrays, outputs: int = 1, **attributes: Any) -> list[NDArray[Any]]:
        session = session_of(node_graph(operator, inputs, outputs, **attributes))
        given: list[NDArray[Any]] = session.run(None, inputs)
        return given

    return ran


def half(generator: np.random.Generator, *shape: int, scale: float = 1.0) -> NDArray[np.float16]:
    """Return normally distributed values."""
    return (generator.standard_normal(shape) * scale).astype(np.float16)
