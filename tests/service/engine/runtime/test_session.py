from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from service.engine.runtime import loading, options
from service.engine.runtime import session as module
from service.engine.runtime.binding import BoundRunner
from service.engine.runtime.library import runtime_version
from service.engine.runtime.options import DeviceOptions
from service.engine.runtime.session import OnnxSession, resolve_device
from service.engine.slots import SlotPool
from service.engine.types import OutOfDeviceMemory, Outputs, Pixels
from service.errors import DeviceUnavailable, RepositoryError, SettingsError
from tests.service.engine.fakes import item
from tests.service.engine.onnx_models import (
    OUTPUTS,
    SHAPE,
    assert_right,
    core_of,
    images,
    write_insatiable_model,
    write_model,
)


def load(path: Path, *, output_names: tuple[str, ...] = OUTPUTS, **settings: Any) -> OnnxSession:
    return OnnxSession.load(path, DeviceOptions(**settings), input_shape=SHAPE, output_names=output_names)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


def test_a_model_runs_on_the_cpu(model_path: Path) -> None:
    session = load(model_path, threads=1)
    images = np.arange(2 * 24, dtype=np.uint8).reshape(2, *SHAPE)
    results = session.run(images, OUTPUTS)
    assert session.device == "cpu"
    assert results["embedding"].dtype == np.float32
    np.testing.assert_array_equal(results["embedding"], images.reshape(2, -1))
    np.testing.assert_array_equal(results["logits"], images.reshape(2, -1).sum(1, keepdims=True))


def test_only_the_outputs_asked_for_are_returned_in_their_order(model_path: Path) -> None:
    session = load(model_path)
    images = np.zeros((1, *SHAPE), np.uint8)
    assert list(session.run(images, ("embedding",))) == ["embedding"]
    assert list(session.run(images, ("embedding", "logits"))) == ["embedding", "logits"]


@pytest.mark.parametrize("io_binding", [False, True])
def test_the_core_warms_up_on_a_real_session(model_path: Path, io_binding: bool) -> None:
    session = load(model_path, io_binding=io_binding)
    core = core_of(session, SlotPool(4, SHAPE), 1, 2, 4)
    core.warm_up()
    assert core.batcher.images_per_s == pytest.approx(4.0)


def test_open_height_and_width_take_the_size_that_is_served(tmp_path: Path) -> None:
    session = load(write_model(tmp_path / "model.onnx", dims=("batch", "height", "width", 3)))
    assert session.run(np.ones((3, *SHAPE), np.uint8), ("logits",))["logits"].tolist() == [[24.0]] * 3


def test_a_free_size_is_run_at_every_size(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", dims=("batch", "height", "width", 3))
    session = OnnxSession.load(path, DeviceOptions(), input_shape=SHAPE, output_names=OUTPUTS, free_size=True)
    for height, width in ((2, 4), (5, 3), (1, 9)):
        (total,) = session.run(np.ones((1, height, width, 3), np.uint8), ("logits",))["logits"].tolist()
        assert total == [height * width * 3.0]


def test_a_graph_of_one_size_is_refused_where_it_should_take_any(model_path: Path) -> None:
    with pytest.raises(RepositoryError, match="height and width left open"):
        OnnxSession.load(model_path, DeviceOptions(), input_shape=SHAPE, output_names=OUTPUTS, free_size=True)


def test_answers_outlive_the_buffers_that_they_were_read_from(model_path: Path) -> None:
    pool = SlotPool(4, SHAPE)
    core = core_of(load(model_path, io_binding=True), pool, 1, 2)
    answers, batches = [], [images(1, 1), images(2, 2), images(1, 3), images(2, 4)]
    for batch in batches:
        slots = pool.acquire(len(batch))
        for slot, pixels in zip(slots, batch, strict=True):
            pool.pixels(slot, SHAPE[:2])[...] = pixels
        pool.submit(slots)
        core.submit([item(slot=slot, outputs=frozenset(OUTPUTS)) for slot in slots])
        answers.append([pool.collect(each.slot) for each in core.step()])
        pool.release(slots)
    for batch, ended in zip(batches, answers, strict=True):
        for pixels, outputs in zip(batch, ended, strict=True):
            assert_right({name: values[None] for name, values in outputs.items()}, pixels[None])


def test_a_session_offers_memory_to_gather_batches_in(model_path: Path) -> None:
    session = load(model_path)
    staging = session.staging(4 * 24)
    assert (staging.shape, staging.dtype, staging.any()) == ((4 * 24,), np.uint8, np.False_)


def test_want_of_memory_is_told_apart_and_the_session_lives_on(tmp_path: Path) -> None:
    session = load(write_insatiable_model(tmp_path / "model.onnx"))
    for _ in range(2):
        with pytest.raises(OutOfDeviceMemory, match="allocate memory"):
            session.run(images(1), ("embedding",))


class RecordingRunner:
    """A runner that does nothing but tell what it was asked for."""

    def __init__(self) -> None:
        self.shrunk: list[bool] = []
        self.fault: Exception | None = None

    def run(self, images: Pixels, outputs: Sequence[str], *, shrink_arena: bool) -> Outputs:
        self.shrunk.append(shrink_arena)
        if self.fault is not None:
            raise self.fault
        return {}


def recorded(runner: RecordingRunner, **settings: Any) -> OnnxSession:
    device = options.Device("cpu")
    memory = module.Memory("cpu", 0)
    return OnnxSession(runner, memory, device=device, input_shape=SHAPE, output_names=OUTPUTS, **settings)


def test_memory_is_handed_back_once_it_has_run_out() -> None:
    runner = RecordingRunner()
    session = recorded(runner)
    session.run(images(8), OUTPUTS)
    runner.fault = RuntimeError("Failed to allocate memory for requested buffer of size 1")
    with pytest.raises(OutOfDeviceMemory):
        session.run(images(8), OUTPUTS)
    runner.fault = None
    session.run(images(4), OUTPUTS)
    session.run(images(4), OUTPUTS)
    assert runner.shrunk == [False, False, True, False]


def test_memory_is_handed_back_after_large_batches_if_asked() -> None:
    runner = RecordingRunner()
    session = recorded(runner, shrink_arena_above=4)
    for size in (4, 5, 8, 1):
        session.run(images(size), OUTPUTS)
    assert runner.shrunk == [False, True, True, False]


def test_memory_is_handed_back_after_an_image_larger_than_the_largest_batch() -> None:
    runner = RecordingRunner()
    session = recorded(runner, largest_batch=4)
    for batch, shape in ((4, (2, 4)), (1, (4, 8)), (2, (4, 4)), (1, (4, 9)), (1, (2, 4))):
        session.run(np.zeros((batch, *shape, 3), np.uint8), OUTPUTS)
    assert runner.shrunk == [False, False, False, True, False]


def test_other_failures_pass_unchanged() -> None:
    runner = RecordingRunner()
    runner.fault = RuntimeError("an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        recorded(runner).run(images(1), OUTPUTS)


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
    with pytest.raises(ValueError, match="'tpu' is not a device"):
        resolve_device("tpu")


def test_the_cpu_takes_no_provider_options(model_path: Path) -> None:
    with pytest.raises(SettingsError, match="cpu takes no provider options, and was given: use_tf32"):
        load(model_path, provider_options={"use_tf32": "1"})


def without_cuda() -> bool:
    return "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


needs_the_cpu_build = pytest.mark.skipif(not without_cuda(), reason="this build of ONNX Runtime has a CUDA provider")


@needs_the_cpu_build
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_a_gpu_without_the_gpu_build_says_what_to_install(model_path: Path, device: str) -> None:
    with pytest.raises(DeviceUnavailable, match=f"Device {device} needs .*install onnxruntime-gpu in place of"):
        load(model_path, device=device)
    assert resolve_device("auto") == "cpu"


@needs_the_cpu_build
def test_a_cuda_provider_that_does_not_load_is_never_replaced_by_the_cpu(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # As with the GPU build on a machine without a GPU: the provider is listed, but no session gets it.
    providers = [provider.name for provider in options.PROVIDERS.values()]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(DeviceUnavailable, match="NVIDIA GPU"):
        load(model_path, device="cuda")
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        assert resolve_device("auto") == "cpu"
    assert "Falling back" not in capfd.readouterr().out


@needs_the_cpu_build
def test_a_session_that_the_runtime_gives_to_the_cpu_is_refused(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "require_device", lambda device: None)
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(DeviceUnavailable, match="was not given to cuda but to CPUExecutionProvider"),
    ):
        load(model_path, device="cuda")


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_a_model_that_passes_the_checks_of_a_device_runs_there(model_path: Path) -> None:
    session = load(model_path, device="cuda:1", strict_device=True, buckets=(2, 4))
    assert session.device == "cuda:1"
    for seed in range(4):
        batch = images(2 + 2 * (seed % 2), seed)
        assert_right(session.run(batch, OUTPUTS), batch)


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_a_device_that_computes_something_else_is_refused(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = BoundRunner.run

    def wrong(self: BoundRunner, *arguments: Any, **more: Any) -> Outputs:
        results = right(self, *arguments, **more)
        return {**results, "embedding": results["embedding"] * np.float32(1.01)}

    monkeypatch.setattr(BoundRunner, "run", wrong)
    with pytest.raises(DeviceUnavailable, match="on cuda what it computes on the CPU, in a batch of 2: embedding diff"):
        load(model_path, device="cuda", buckets=(2, 4))
    load(model_path, device="cuda", buckets=(2, 4), self_check=False)


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_a_model_that_loads_but_does_not_run_is_refused(tmp_path: Path) -> None:
    path = write_insatiable_model(tmp_path / "model.onnx")
    with pytest.raises(DeviceUnavailable, match=r"loads on cuda, but does not run there: .*allocate memory"):
        load(path, device="cuda")


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_a_broken_file_is_not_blamed_on_the_device(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(RepositoryError, match="cannot be loaded as a model"):
        load(path, device="cuda")


class Refusing:
    """Stands before `open_session`: refuses the sessions that have an option, in the runtime's words."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, option: str, words: str) -> None:
        self._open, self._option, self._words = loading.open_session, option, words
        self.asked: list[dict[str, str]] = []
        monkeypatch.setattr(loading, "open_session", self)

    def __call__(self, model: str | bytes, providers: loading.Providers, **more: Any) -> Any:
        self.asked.append(dict(providers[0][1]))
        if self._option in providers[0][1]:
            raise RuntimeError(self._words)
        return self._open(model, providers, **more)


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_a_model_that_cannot_be_captured_runs_without_graphs(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = "This session cannot use the graph capture feature as requested by the user as all compute graph nodes ..."
    refusing = Refusing(monkeypatch, option="enable_cuda_graph", words=words)
    session = load(model_path, device="cuda")
    assert_right(session.run(images(2), OUTPUTS), images(2))
    assert [asked.get("enable_cuda_graph") for asked in refusing.asked[:2]] == ["1", None]
    assert "runs without CUDA graphs: This session cannot" in caplog.text


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_graphs_are_not_asked_for_when_they_are_off(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = Refusing(monkeypatch, option="enable_cuda_graph", words="no")
    load(model_path, device="cuda", cuda_graphs=False)
    assert "enable_cuda_graph" not in refusing.asked[0]


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_an_option_that_the_runtime_refuses_is_named(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Refusing(monkeypatch, option="nonsense", words='Parse Unknown provider option: "nonsense".')
    with pytest.raises(SettingsError, match=r"does not take its options \(nonsense=1\): Parse Unknown provider option"):
        load(model_path, device="cuda", provider_options={"nonsense": "1"})


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_any_other_refusal_is_the_devices(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Refusing(monkeypatch, option="device_id", words="CUDA failure 2")
    with pytest.raises(DeviceUnavailable, match=r"model\.onnx cannot be loaded on cuda: CUDA failure 2"):
        load(model_path, device="cuda")


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_without_a_temporary_directory_the_device_is_not_trusted(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(prefix: str) -> Any:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", none)
    with pytest.raises(DeviceUnavailable, match="runs on cuda cannot be checked without a temporary directory"):
        load(model_path, device="cuda")


def test_tensorrt_is_tried_at_both_ends_of_its_range_with_engines_kept_apart(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "require_device", lambda device: None)
    monkeypatch.setattr(loading, "load_tensorrt", lambda: "10.16.1")
    monkeypatch.setattr(loading, "gpu_identity", lambda index: f"GPU {index}")
    cpu = options.Provider("CPUExecutionProvider", "cpu", {})
    monkeypatch.setitem(options.PROVIDERS, "tensorrt", cpu)
    opened = Refusing(monkeypatch, option="nothing", words="")
    sizes: list[int] = []
    right = BoundRunner.run

    def counted(self: BoundRunner, batch: Pixels, *arguments: Any, **more: Any) -> Outputs:
        sizes.append(len(batch))
        return right(self, batch, *arguments, **more)

    monkeypatch.setattr(BoundRunner, "run", counted)
    load(model_path, device="tensorrt", buckets=(1, 2, 8), engine_cache=tmp_path / "engines", precision="fp16")
    assert sizes == [1, 8]
    (key,) = (tmp_path / "engines").iterdir()
    assert opened.asked[0]["trt_engine_cache_path"] == str(key)
    assert opened.asked[0]["trt_profile_max_shapes"] == "image:8x2x4x3"
    assert opened.asked[0]["trt_fp16_enable"] == "1"
    assert "GPU 0" in (key / "key.json").read_text()


def test_the_probe_is_the_model_it_is_said_to_be() -> None:
    probe = onnx.load_from_string(loading._PROBE_MODEL)
    onnx.checker.check_model(probe)
    assert [node.op_type for node in probe.graph.node] == ["Relu"]
    assert probe.opset_import[0].version == 14


def test_telemetry_is_off_whatever_the_environment_says() -> None:
    script = (
        "import os, service.engine.runtime.session, service.engine.runtime.library as library;"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], library.runtime_version())"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "0"},
        cwd=Path(module.__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["1", runtime_version()]
