from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from service.engine.runtime.loading import open_session
from service.engine.runtime.options import Device
from service.engine.runtime.placement import PlacedNode, check_placement, placed_nodes
from service.errors import DeviceUnavailable
from tests.service.engine.onnx_models import SHAPE, write_model

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


def node(operator: str, provider: str, *types: str, name: str = "") -> PlacedNode:
    return PlacedNode(name or operator.lower(), operator, provider, frozenset(types or ("float",)))


SHAPES_ON_THE_CPU = [node("Concat", CPU, "int64"), node("Mul", CPU, "int64"), node("Equal", CPU, "bool")]
ON_CUDA = [node("Conv", CUDA), node("MatMul", CUDA, "float16"), node("MemcpyToHost", CUDA, "int64")]


def test_shape_arithmetic_may_stay_on_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    check_placement("model.onnx", ON_CUDA + SHAPES_ON_THE_CPU, Device("cuda"), strict=True)
    assert caplog.records == []


@pytest.mark.parametrize("types", [("float",), ("uint8",), ("float", "int64")])
def test_compute_nodes_left_to_the_cpu_are_named(types: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    left = node("GridSample", CPU, *types, name="stage3_sampling")
    with caplog.at_level(logging.WARNING):
        check_placement("model.onnx", [*ON_CUDA, *SHAPES_ON_THE_CPU, left], Device("cuda"), strict=False)
    assert "cuda leaves 1 of the 3 compute nodes of model.onnx to the CPU: GridSample (stage3_sampling)." in caplog.text


def test_compute_nodes_left_to_the_cpu_are_refused_if_asked() -> None:
    left = [node("GridSample", CPU, name=f"sampling_{index}") for index in range(20)]
    with pytest.raises(DeviceUnavailable, match=r"20 of the 22 .* GridSample \(sampling_0\), .* and 8 more\."):
        check_placement("model.onnx", [*ON_CUDA, *left], Device("cuda"), strict=True)


@pytest.mark.parametrize("nodes", [SHAPES_ON_THE_CPU, [*SHAPES_ON_THE_CPU, node("Conv", CPU)], []])
def test_a_model_that_is_not_on_the_device_at_all_is_always_refused(nodes: list[PlacedNode]) -> None:
    with pytest.raises(DeviceUnavailable, match="cuda:1 takes none of the"):
        check_placement("model.onnx", nodes, Device("cuda", 1), strict=False)


def test_what_tensorrt_leaves_may_run_in_cuda(caplog: pytest.LogCaptureFixture) -> None:
    nodes = [node("TRTKernel_graph_0", TENSORRT), *ON_CUDA]
    check_placement("model.onnx", nodes, Device("tensorrt"), strict=True)
    assert caplog.records == []


def test_the_runtimes_own_profile_is_read(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "model.onnx",
        flat="flat",
        more=[
            helper.make_node("Shape", ["flat"], ["sizes"], name="shape"),
            helper.make_node("Reshape", ["flat", "sizes"], ["shaped"]),
            helper.make_node("Sin", ["shaped"], ["embedding"], name="sine"),
        ],
        constants=[helper.make_tensor("unused", TensorProto.INT64, [1], [1])],
    )
    session = open_session(str(path), [(CPU, {})], threads=1, profile=tmp_path / "run")
    for _ in range(2):
        session.run(None, {"image": np.zeros((2, *SHAPE), np.uint8)})
    nodes = {each.name: each for each in placed_nodes(json.loads(Path(session.end_profiling()).read_text()))}
    assert nodes["sine"] == PlacedNode("sine", "Sin", CPU, frozenset({"float"}))
    assert nodes["sine"].is_compute
    assert nodes["shape"].output_types == {"int64"}
    assert not nodes["shape"].is_compute
