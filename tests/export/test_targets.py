"""What a target decides, refuses, and takes a machine for."""

from __future__ import annotations

import ctypes

import onnx
import pytest
from onnx import TensorProto, helper

from export import targets
from export.errors import ExportError
from export.sampling import select_strategy
from export.targets import TARGETS, contrib_operators, find_target


def graph_with(domain: str, operator: str) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    return helper.make_model(helper.make_graph([node], "one", value[:1], value[1:]))


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_defaults_of_a_target_are_possible_there(target: targets.Target) -> None:
    target.check_opset(target.opset)
    assert select_strategy(target.sampling, target.opset).name == target.sampling


def test_tensorrt_refuses_opsets_that_its_parser_misreads() -> None:
    TARGETS["tensorrt"].check_opset(19)
    with pytest.raises(ExportError, match=r"\btensorrt\b.*\b19\b.*\b20\b"):
        TARGETS["tensorrt"].check_opset(20)
    TARGETS["cuda"].check_opset(20)


def test_only_targets_of_onnx_runtime_take_its_own_operators() -> None:
    graph = graph_with("com.microsoft", "Gelu")
    assert contrib_operators(graph) == ("Gelu",)
    TARGETS["cpu"].check(graph)
    TARGETS["cuda"].check(graph)
    with pytest.raises(ExportError, match=r"\btensorrt\b.*com\.microsoft::Gelu"):
        TARGETS["tensorrt"].check(graph)
    with pytest.raises(ExportError, match=r"\bcpu\b.*elsewhere::Gelu"):
        TARGETS["cpu"].check(graph_with("elsewhere", "Gelu"))
    assert contrib_operators(graph_with("", "Relu")) == ()


@pytest.mark.parametrize(("visible", "name"), [(True, "cuda"), (False, "cpu")])
def test_without_a_name_the_machine_decides(visible: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "cuda_visible", lambda: visible)
    assert find_target(None).name == name
    assert find_target("tensorrt").name == "tensorrt"


class Driver:
    """The two calls of CUDA's driver library that are asked."""

    def __init__(self, *, status: int, devices: int) -> None:
        self.status, self.devices = status, devices

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, count: ctypes.c_void_p) -> int:  # noqa: N802
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self.devices
        return 0


@pytest.mark.parametrize(("status", "devices", "visible"), [(0, 2, True), (0, 0, False), (100, 1, False)])
def test_a_gpu_counts_where_the_driver_offers_one(
    status: int, devices: int, visible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(status=status, devices=devices))
    assert targets.cuda_visible() is visible


def test_a_machine_without_the_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not targets.cuda_visible()
