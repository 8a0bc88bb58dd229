from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from service.engine import session as module
from service.engine.batcher import Batcher, BucketCosts
from service.engine.core import EngineCore
from service.engine.session import OnnxSession, resolve_device, runtime_version
from service.engine.slots import SlotPool
from service.errors import DeviceUnavailable, RepositoryError

SHAPE = (2, 4, 3)
OUTPUTS = ("logits", "embedding")


def write_model(
    path: Path,
    *,
    input_name: str = "image",
    input_type: int = TensorProto.UINT8,
    dims: tuple[str | int, ...] = ("batch", *SHAPE),
    output_type: int = TensorProto.FLOAT,
) -> Path:
    """A model whose `embedding` is the image flattened, and whose `logits` are the embedding's sum."""
    nodes = [
        helper.make_node("Cast", [input_name], ["pixels"], to=output_type),
        helper.make_node("Flatten", ["pixels"], ["embedding"], axis=1),
        helper.make_node("ReduceSum", ["embedding", "axes"], ["logits"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, input_type, dims)],
        [helper.make_tensor_value_info(name, output_type, ("batch", None)) for name in OUTPUTS],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def load(path: Path, *, device: str = "cpu", output_names: tuple[str, ...] = OUTPUTS, threads: int = 0) -> OnnxSession:
    return OnnxSession.load(path, device=device, input_shape=SHAPE, output_names=output_names, threads=threads)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


def test_a_model_runs_on_the_cpu(model_path: Path) -> None:
    session = load(model_path, threads=1)
    images = np.arange(2 * 24, dtype=np.uint8).reshape(2, *SHAPE)
    results = session.run(images, OUTPUTS)
    assert session.device == "cpu"
    assert session.input_shape == SHAPE
    assert session.output_names == OUTPUTS
    assert results["embedding"].dtype == np.float32
    np.testing.assert_array_equal(results["embedding"], images.reshape(2, -1))
    np.testing.assert_array_equal(results["logits"], images.reshape(2, -1).sum(1, keepdims=True))


def test_only_the_outputs_asked_for_are_returned_in_their_order(model_path: Path) -> None:
    session = load(model_path)
    images = np.zeros((1, *SHAPE), np.uint8)
    assert list(session.run(images, ("embedding",))) == ["embedding"]
    assert list(session.run(images, ("embedding", "logits"))) == ["embedding", "logits"]


def test_the_core_warms_up_on_a_real_session(model_path: Path) -> None:
    session = load(model_path)
    costs = BucketCosts([1, 2, 4])
    EngineCore(session, SlotPool(4, SHAPE), Batcher(costs), clock=iter(range(1000)).__next__).warm_up()
    assert costs.images_per_s == pytest.approx(4.0)


def test_open_height_and_width_take_the_size_that_is_served(tmp_path: Path) -> None:
    session = load(write_model(tmp_path / "model.onnx", dims=("batch", "height", "width", 3)))
    assert session.run(np.ones((3, *SHAPE), np.uint8), ("logits",))["logits"].tolist() == [[24.0]] * 3


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"input_type": TensorProto.FLOAT}, "input image should be tensor.uint8., not tensor.float."),
        ({"input_name": "pixel_values"}, "should have one input, image; it has: pixel_values"),
        ({"dims": (1, *SHAPE)}, "with the batch left open"),
        ({"dims": ("batch", 2, 5, 3)}, r"should have the shape \(batch, 2, 4, 3\)"),
        ({"dims": ("batch", 2, 4)}, r"should have the shape \(batch, 2, 4, 3\)"),
        ({"output_type": TensorProto.DOUBLE}, r"output logits should be tensor\(float\), not tensor\(double\)"),
    ],
)
def test_a_graph_that_is_not_what_the_service_expects_is_refused(
    tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    path = write_model(tmp_path / "model.onnx", **change)  # type: ignore[arg-type]
    with pytest.raises(RepositoryError, match=complaint):
        load(path)


def test_a_missing_output_is_named(model_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"output stage1 should be tensor\(float\), not absent"):
        load(model_path, output_names=("logits", "stage1"))


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(RepositoryError, match=r"model\.onnx cannot be loaded as a model"):
        load(path)
    with pytest.raises(RepositoryError, match=r"absent\.onnx cannot be loaded as a model"):
        load(tmp_path / "absent.onnx")


def test_a_device_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="no device 'tpu'; the devices are auto, cpu, cuda and tensorrt"):
        resolve_device("tpu")


def test_tensorrt_is_refused_in_this_build() -> None:
    with pytest.raises(DeviceUnavailable, match="tensorrt is not available in this build"):
        resolve_device("tensorrt")


def without_cuda() -> bool:
    return "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


@pytest.mark.skipif(not without_cuda(), reason="this build of ONNX Runtime has a CUDA provider")
def test_cuda_without_a_cuda_build_says_what_to_install(model_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="install onnxruntime-gpu in place of onnxruntime"):
        load(model_path, device="cuda")
    assert resolve_device("auto") == "cpu"


@pytest.mark.skipif(not without_cuda(), reason="this build of ONNX Runtime has a CUDA provider")
def test_a_cuda_provider_that_does_not_load_is_never_replaced_by_the_cpu(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # As with the GPU build on a machine without a GPU: the provider is listed, but no session gets it.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(module._PROVIDERS.values()))
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(DeviceUnavailable, match="NVIDIA GPU"):
        load(model_path, device="cuda")
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        assert resolve_device("auto") == "cpu"
    assert "Falling back" not in capfd.readouterr().out


@pytest.mark.skipif(not without_cuda(), reason="this build of ONNX Runtime has a CUDA provider")
def test_a_model_that_cuda_does_not_take_whole_is_not_run_in_part_on_the_cpu(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_require_cuda", lambda: None)
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(DeviceUnavailable, match="cannot run wholly on cuda"),
    ):
        load(model_path, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(without_cuda(), reason="this build of ONNX Runtime has no CUDA provider")
def test_a_model_runs_on_cuda(model_path: Path) -> None:
    session = load(model_path, device="cuda")
    assert session.device == "cuda"
    assert session.run(np.ones((2, *SHAPE), np.uint8), ("logits",))["logits"].tolist() == [[24.0]] * 2


def test_the_probe_is_the_model_it_is_said_to_be() -> None:
    probe = onnx.load_from_string(module._PROBE_MODEL)
    onnx.checker.check_model(probe)
    assert [node.op_type for node in probe.graph.node] == ["Relu"]
    assert probe.opset_import[0].version == 14


def test_telemetry_is_off_whatever_the_environment_says() -> None:
    script = "import os, service.engine.session as s; print(os.environ['ORT_DISABLE_TELEMETRY'], s.runtime_version())"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "0"},
        cwd=Path(module.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["1", runtime_version()]
