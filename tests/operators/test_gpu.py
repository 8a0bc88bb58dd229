"""The operators on a real GPU, in machine code: beside their reference, launched one by one and by a CUDA graph."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

pytest.importorskip("triton")

from operators.build import build
from tests.operators.conftest import node_graph
from tests.operators.fake_cuda.cases import CASES
from tests.operators.test_cuda import ABSOLUTE, RELATIVE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(),
        reason="this build of ONNX Runtime has no CUDA provider",
    ),
]

COMPILE = """
import sys
from pathlib import Path
from kernels.compile import TARGETS, compile_all
from tests.operators.fake_cuda.cases import specializations
compile_all(specializations(), TARGETS, Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def kernels(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with the kernels of all cases, compiled where Triton does not interpret."""
    folder = tmp_path_factory.mktemp("kernels")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(folder / "compiled")]
    subprocess.run(command, env=environment, check=True)
    return build(folder / "libdat_operators.so", folder / "compiled")


def on_the_gpu(kernels: Path, graph: bytes, **options: str) -> Any:
    """Return a session that the CPU takes nothing of."""
    ort.preload_dlls()
    chosen = ort.SessionOptions()
    chosen.register_custom_ops_library(str(kernels))
    chosen.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return ort.InferenceSession(graph, chosen, providers=[("CUDAExecutionProvider", options)], enable_fallback=0)


@pytest.mark.parametrize("is_captured", [False, True], ids=["launched", "captured"])
@pytest.mark.parametrize("name", CASES)
def test_every_operator_computes_what_its_reference_does(
    kernels: Path, session_of: Callable[[bytes], Any], name: str, *, is_captured: bool
) -> None:
    case = CASES[name]
    graph = node_graph(case.operator, case.inputs, case.outputs, **(case.attributes | case.graph))
    reference = session_of(graph)
    session = on_the_gpu(kernels, graph, enable_cuda_graph=str(int(is_captured)))
    binding = session.io_binding()
    inputs = {key: ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0) for key, value in case.inputs.items()}
    outputs = [
        ort.OrtValue.ortvalue_from_shape_and_type(value.shape, value.dtype, "cuda", 0)
        for value in reference.run(None, case.inputs)
    ]
    for key, value in inputs.items():
        binding.bind_ortvalue_input(key, value)
    for node, value in zip(session.get_outputs(), outputs, strict=True):
        binding.bind_ortvalue_output(node.name, value)
    first = next(iter(inputs))
    # the runtime captures in one of the first runs, and then plays on other values what it has captured
    for values in (case.inputs[first], case.inputs[first], np.flip(case.inputs[first], -1).copy()):
        inputs[first].update_inplace(values)
        session.run_with_iobinding(binding)
        expected = reference.run(None, case.inputs | {first: values})
        for actual, wanted in zip(outputs, expected, strict=True):
            error = abs(actual.numpy().astype(np.float64) - wanted)
            assert (error <= ABSOLUTE + RELATIVE * abs(wanted.astype(np.float64))).all(), error.max()
