"""The operators on a fake GPU: which kernel is chosen, what it is given, and what comes out, beside the reference.

Nothing here shows that machine code runs: the kernels are interpreted, on the very addresses that a device would get.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from operators.build import build
from tests.operators.conftest import Arrays, node_graph
from tests.operators.fake_cuda.cases import CASES, WARPS, Case, specializations
from tests.operators.fake_cuda.machine import KERNELS, LARGE_SHARED_BYTES, STREAM, Machine, fake_kernels

ABSOLUTE, RELATIVE = 4e-3, 2**-9
"""Twice what a kernel may be from float64 (tests/kernels/bounds.py): the reference is float16 too."""


@pytest.fixture(scope="module")
def kernels(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with the kernels of all cases, as `python -m operators` builds it."""
    folder = tmp_path_factory.mktemp("kernels")
    return build(folder / "libdat_operators.so", fake_kernels(specializations(), (80, 86, 89, 90), folder / "compiled"))


@pytest.fixture(scope="module")
def built_machine(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    machine = Machine(tmp_path_factory.mktemp("driver"))
    if not machine.is_the_processs_driver():
        pytest.skip("this process has loaded another driver")
    return machine


@pytest.fixture
def machine(built_machine: Machine) -> Iterator[Machine]:
    """A machine with an H100; at its end nothing may be left on its devices."""
    built_machine.start(90)
    yield built_machine
    for device in range(2):
        assert built_machine.driver.fake_modules(device) == 0
        assert built_machine.driver.fake_retained(device) == 0
    assert built_machine.driver.fake_depth() == 0


def graph_of(case: Case, **changed: Any) -> bytes:
    return node_graph(case.operator, case.inputs, case.outputs, **(case.attributes | case.graph | changed))


@pytest.mark.parametrize("name", CASES)
def test_every_operator_computes_what_its_reference_does(
    machine: Machine, kernels: Path, session_of: Callable[[bytes], Any], name: str
) -> None:
    case = CASES[name]
    expected = session_of(graph_of(case)).run(None, case.inputs)
    given = machine.open(kernels, graph_of(case)).run(None, case.inputs)
    assert machine.failed is None
    (launch,) = machine.launches
    assert launch.entry == case.kernel
    assert launch.code["constants"] == case.specialization.constants
    assert launch.threads == 32 * WARPS
    assert launch.stream == STREAM
    assert len(given) == case.outputs
    for actual, reference in zip(given, expected, strict=True):
        error = abs(actual.astype(np.float64) - reference)
        assert (error <= ABSOLUTE + RELATIVE * abs(reference.astype(np.float64))).all(), error.max()


@pytest.mark.parametrize("name", ["window", "sampling", "deformable, first generation", "gelu", "norm"])
def test_any_batch_is_computed_by_one_kernel(
    machine: Machine, kernels: Path, session_of: Callable[[bytes], Any], name: str
) -> None:
    case = CASES[name]
    shared = {"bias", "position_bias", "table", "gain", "shift"}
    graph = _graph_of_any_batch(case, shared)
    session, reference = machine.open(kernels, graph), session_of(graph)
    for images in (1, 3, 0):
        inputs = {
            key: value if key in shared else np.resize(value, (images, *value.shape[1:]))
            for key, value in case.inputs.items()
        }
        for actual, expected in zip(session.run(None, inputs), reference.run(None, inputs), strict=True):
            np.testing.assert_allclose(actual, expected, RELATIVE, ABSOLUTE)
    assert machine.failed is None
    assert len(machine.launches) == 2  # nothing is launched for no images
    assert machine.launches[0].grid < machine.launches[1].grid


def _graph_of_any_batch(case: Case, shared: set[str]) -> bytes:
    import onnx

    graph = onnx.load_model_from_string(graph_of(case))
    for each in graph.graph.input:
        if each.name not in shared:
            each.type.tensor_type.shape.dim[0].dim_param = "batch"
    made: bytes = graph.SerializeToString()
    return made


def test_a_run_calls_the_driver_for_nothing_but_the_launch(machine: Machine, kernels: Path) -> None:
    case = CASES["deformable, first generation"]
    session = machine.open(kernels, graph_of(case))
    opened = machine.calls()
    assert {"cuModuleLoadData", "cuModuleGetFunction", "cuFuncLoad", "cuFuncSetAttribute"} <= set(opened)
    for _ in range(2):
        session.run(None, case.inputs)
    assert machine.calls() == ["cuLaunchKernel"] * 2
    assert machine.launches[0].shared_bytes == LARGE_SHARED_BYTES


@pytest.mark.parametrize(
    ("capability", "target", "is_ptx"),
    [(80, 80, False), (87, 86, False), (89, 89, False), (90, 90, False), (100, 89, True), (120, 89, True)],
)
def test_each_device_gets_the_code_that_it_runs(
    machine: Machine, kernels: Path, capability: int, target: int, is_ptx: bool
) -> None:
    machine.start(capability)
    case = CASES["gelu"]
    machine.open(kernels, graph_of(case)).run(None, case.inputs)
    (launch,) = machine.launches
    assert (launch.code["target"], launch.code.get("ptx", False)) == (target, is_ptx)


def test_two_devices_have_their_own_modules_and_nodes_of_one_device_share_theirs(
    machine: Machine, kernels: Path
) -> None:
    machine.start(80, 90)
    case = CASES["gelu"]
    first = [machine.open(kernels, graph_of(case), device=0) for _ in range(2)]
    second = machine.open(kernels, graph_of(case), device=1)
    assert [machine.driver.fake_modules(device) for device in range(2)] == [1, 1]
    for session in (*first, second):
        session.run(None, case.inputs)
    assert [launch.code["target"] for launch in machine.launches] == [80, 80, 90]
    del first[0]
    assert machine.driver.fake_modules(0) == 1
    first[0].run(None, case.inputs)
    assert len(machine.launches) == 4
    del first, second, session


def test_sessions_of_many_threads(machine: Machine, kernels: Path) -> None:
    def opened(_: int) -> None:
        machine.open(kernels, graph_of(CASES["window"]))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(opened, range(24)))


def refusal(machine: Machine, kernels: Path, graph: bytes) -> str:
    with pytest.raises(Exception, match=r"dat\.\w+: ") as refused:
        machine.open(kernels, graph)
    return str(refused.value)


def test_sizes_without_a_kernel_are_named_with_those_that_there_are(machine: Machine, kernels: Path) -> None:
    inputs: Arrays = CASES["gelu"].inputs | {"x": np.zeros((2, 40), np.float16), "bias": np.zeros(40, np.float16)}
    said = refusal(machine, kernels, node_graph("BiasGelu", inputs))
    assert "dat.BiasGelu: no kernel is built for channels=40; there are channels=33" in said
    said = refusal(machine, kernels, graph_of(CASES["window"], shift=1))
    assert "no kernel is built for height=8 width=4 heads=2 head_dim=16 window=4 shift=1; there are height=8" in said
    assert "height=6 width=9 heads=2 head_dim=16 window=4 shift=2" in said
    assert "block" not in said


def test_maps_of_any_size_are_refused_when_the_graph_is_opened(machine: Machine, kernels: Path) -> None:
    import onnx

    graph = onnx.load_model_from_string(graph_of(CASES["window"]))
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"
    said = refusal(machine, kernels, graph.SerializeToString())
    assert "dat.WindowAttention: its height is not known when the graph is opened" in said


def test_attributes_that_do_not_fit_are_refused_as_on_the_cpu(machine: Machine, kernels: Path) -> None:
    said = refusal(machine, kernels, graph_of(CASES["window"], heads=0))
    assert "0 heads do not divide 32 channels" in said


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        ("cuInit", 100, "cuInit: CUDA_ERROR_NO_DEVICE, no CUDA-capable device is detected"),
        ("cuDevicePrimaryCtxRetain", 2, "cuDevicePrimaryCtxRetain: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuModuleLoadData", 218, "cuModuleLoadData: CUDA_ERROR_INVALID_PTX"),
        ("cuModuleGetFunction", 4321, "cuModuleGetFunction: error 4321, which the driver has no name for"),
        ("cuFuncLoad", 2, "cuFuncLoad: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuFuncSetAttribute", 1, "cuFuncSetAttribute: CUDA_ERROR_INVALID_VALUE"),
    ],
)
def test_errors_of_the_driver_come_by_their_names_and_leave_nothing(
    machine: Machine, kernels: Path, call: str, error: int, said: str
) -> None:
    machine.fail(call, error)
    assert f"dat.DeformableAttention: {said}" in refusal(
        machine, kernels, graph_of(CASES["deformable, first generation"])
    )


def test_a_launch_that_fails(machine: Machine, kernels: Path) -> None:
    case = CASES["gelu"]
    session = machine.open(kernels, graph_of(case))
    machine.fail("cuLaunchKernel", 719)
    with pytest.raises(Exception, match=r"dat\.BiasGelu: cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED"):
        session.run(None, case.inputs)


@pytest.mark.parametrize(
    ("capabilities", "more", "device", "said"),
    [
        ((75,), {}, 0, "device 0 has compute capability 7.5, and bias_gelu is built for 8.0, 8.6, 8.9, 9.0"),
        ((90,), {}, 1, "there is no device 1: the driver shows 1"),
        ((90,), {"version": 11040}, 0, "is too old: it is for CUDA 11.4, and the kernels want one for 12.0 or later"),
        ((120,), {"version": 12040}, 0, "is too old: it is for CUDA 12.4, and the kernels want one for 12.8 or later"),
    ],
)  # fmt: skip
def test_what_a_machine_lacks_is_said(
    machine: Machine, kernels: Path, capabilities: tuple[int, ...], more: dict[str, int], device: int, said: str
) -> None:
    machine.start(*capabilities, **more)
    with pytest.raises(Exception, match=r"dat\.BiasGelu: ") as refused:
        machine.open(kernels, graph_of(CASES["gelu"]), device)
    assert said in str(refused.value)


def missing(library: Path, device: int) -> str:
    text = ctypes.create_string_buffer(500)
    length = ctypes.CDLL(str(library)).dat_operators_missing(device, text, ctypes.c_size_t(len(text)))
    assert length == len(text.value)
    return text.value.decode()


def test_a_device_is_asked_before_there_is_a_session(machine: Machine, library: Path, kernels: Path) -> None:
    machine.start(90, 75)
    assert missing(kernels, 0) == ""
    assert missing(kernels, 1).startswith("device 1 has compute capability 7.5")
    assert missing(kernels, 2) == "there is no device 2: the driver shows 2"
    assert missing(library, 0) == "the operators were built without kernels for GPUs"
    assert not {call for call in machine.calls() if call.startswith(("cuModule", "cuCtx", "cuDevicePrimary"))}
    machine.fail("cuInit", 100)
    assert missing(kernels, 0) == "cuInit: CUDA_ERROR_NO_DEVICE, no CUDA-capable device is detected"


def test_a_machine_without_the_driver(library: Path, kernels: Path) -> None:
    """In a process of its own, as this one has the fake driver."""
    script = """
import ctypes, sys
try:
    ctypes.CDLL("libcuda.so.1")
except OSError:
    text = ctypes.create_string_buffer(500)
    ctypes.CDLL(sys.argv[1]).dat_operators_missing(0, text, ctypes.c_size_t(500))
    print(text.value.decode())
"""
    told = subprocess.run([sys.executable, "-c", script, kernels], capture_output=True, text=True, check=True).stdout
    if not told:
        pytest.skip("this machine has NVIDIA's driver")
    assert told.startswith("NVIDIA's driver is not there: libcuda.so.1")


def test_a_tensor_that_does_not_begin_where_kernels_want_it(machine: Machine, kernels: Path) -> None:
    case = CASES["gelu"]
    x = case.inputs["x"]
    room = np.zeros(x.size + 1, np.float16)
    given = case.inputs | {"x": room[1:].reshape(x.shape)}
    with pytest.raises(Exception, match=r"dat\.BiasGelu: x lies at 0x[0-9a-f]+, which 16 does not divide"):
        machine.open(kernels, graph_of(case)).run(None, given)
    assert machine.launches == []


def test_a_batch_that_no_grid_holds(machine: Machine, kernels: Path) -> None:
    case = CASES["sampling of one pixel"]
    inputs = {name: np.zeros((65_536, *value.shape[1:]), value.dtype) for name, value in case.inputs.items()}
    with pytest.raises(Exception, match=r"dat\.SampleFeatures: a batch of 65536 is more than one launch takes"):
        machine.open(kernels, node_graph(case.operator, inputs)).run(None, inputs)


def test_shared_memory_that_a_device_has_not(machine: Machine, kernels: Path) -> None:
    machine.start(90, optin_bytes=50_000)
    said = refusal(machine, kernels, graph_of(CASES["deformable, first generation"]))
    assert f"deformable_attention takes {LARGE_SHARED_BYTES} bytes of shared memory, and device 0 has 50000" in said


def test_a_library_without_kernels_says_so(machine: Machine, library: Path, tmp_path: Path) -> None:
    # a file of its own, as the process may have the other one loaded with the runtime's own registrations
    alone = Path(shutil.copy(library, tmp_path))
    said = refusal(machine, alone, graph_of(CASES["gelu"]))
    assert "dat.BiasGelu: the library was built without a kernel for it" in said


def test_every_kernel_has_a_case() -> None:
    assert {case.kernel for case in CASES.values()} == KERNELS.keys()
