"""What only a GPU can show: pinned memory, captured graphs, placement, and running out of the device's memory."""

from __future__ import annotations

import gc
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from service.engine.runtime.options import DeviceOptions
from service.engine.runtime.session import OnnxSession, resolve_device
from service.engine.slots import SlotPool
from service.engine.types import OutOfDeviceMemory
from service.errors import DeviceUnavailable, SettingsError
from tests.service.engine.onnx_models import (
    OUTPUTS,
    PIXELS,
    SHAPE,
    assert_right,
    core_of,
    images,
    write_model,
    write_model_through,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
        reason="this build of ONNX Runtime has no CUDA provider",
    ),
]


def load(path: Path, **settings: Any) -> OnnxSession:
    return OnnxSession.load(
        path,
        DeviceOptions(**{"device": "cuda", "cuda_graph_outputs": OUTPUTS, **settings}),
        input_shape=SHAPE,
        output_names=OUTPUTS,
    )


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


def graphs_of(session: OnnxSession) -> dict[int, int]:
    """The numbers of the graphs that were captured, by batch size."""
    return session._runner._graph_numbers  # type: ignore[attr-defined]


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_every_run_gives_its_own_images_outputs(model_path: Path, cuda_graphs: bool) -> None:
    session = load(model_path, cuda_graphs=cuda_graphs, strict_device=True)
    order = np.random.default_rng(0)
    for seed in range(200):
        batch = images(int(order.choice([1, 2, 8, 64])), seed)
        outputs = [("logits",), ("embedding",), OUTPUTS][order.integers(3)]
        assert_right(session.run(batch, outputs), batch)
    assert len(graphs_of(session)) == (4 if cuda_graphs else 0)


def test_gathering_memory_is_pinned_and_outlives_its_making(model_path: Path) -> None:
    session = load(model_path)
    staging = [session.staging(64 * math.prod(SHAPE)).reshape(64, *SHAPE) for _ in range(3)]
    gc.collect()
    for seed, memory in enumerate(staging):
        assert not memory.any()
        memory[...] = images(64, seed)
    for seed, memory in enumerate(staging):
        np.testing.assert_array_equal(memory, images(64, seed))
        assert_right(session.run(memory, OUTPUTS), images(64, seed))
        assert_right(session.run(memory[:8], OUTPUTS), images(64, seed)[:8])


def test_the_core_warms_up_and_captures_a_graph_for_every_bucket(model_path: Path) -> None:
    session = load(model_path)
    core_of(session, SlotPool(8, SHAPE), 1, 2, 8).warm_up()
    assert graphs_of(session).keys() == {1, 2, 8}


def test_operators_that_cuda_lacks_are_named_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_model_through(tmp_path / "model.onnx", "Sinh")
    with caplog.at_level(logging.WARNING):
        session = load(path)
    assert "compute nodes of" in caplog.text
    assert "Sinh (middle)" in caplog.text
    assert "runs without CUDA graphs" in caplog.text
    batch = images(2)
    wanted = np.sinh(batch.reshape(2, PIXELS) / np.float32(255))
    np.testing.assert_allclose(session.run(batch, ("embedding",))["embedding"], wanted, rtol=1e-5)
    with pytest.raises(DeviceUnavailable, match="Sinh"):
        load(path, strict_device=True)


def write_hungry_model(path: Path) -> Path:
    """Each image is copied 2^16 times over, 6 MiB."""
    return write_model(
        path,
        flat="flat",
        more=[
            helper.make_node("Unsqueeze", ["flat", "second"], ["row"]),
            helper.make_node("Expand", ["row", "copies"], ["copied"]),
            helper.make_node("Abs", ["copied"], ["positive"]),
            helper.make_node("ReduceMax", ["positive", "second"], ["embedding"], keepdims=0),
        ],
        constants=[
            helper.make_tensor("second", TensorProto.INT64, [1], [1]),
            helper.make_tensor("copies", TensorProto.INT64, [3], [1, 2**16, 1]),
        ],
    )


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_want_of_memory_is_told_and_smaller_batches_go_on(tmp_path: Path, cuda_graphs: bool) -> None:
    limit = {"gpu_mem_limit": str(128 * 2**20)}
    session = load(write_hungry_model(tmp_path / "model.onnx"), provider_options=limit, cuda_graphs=cuda_graphs)
    small = images(2)
    assert_right(session.run(small, ("embedding",)), small)
    for _ in range(3):
        with pytest.raises(OutOfDeviceMemory):
            session.run(images(64), ("embedding",))
        assert_right(session.run(small, ("embedding",)), small)


def test_an_unknown_option_is_the_settings_fault(model_path: Path) -> None:
    with pytest.raises(SettingsError, match=r'CUDAExecutionProvider does not take its options .*"nonsense"'):
        load(model_path, provider_options={"nonsense": "1"})


def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert resolve_device("cuda:0") == "cuda"
    with pytest.raises(DeviceUnavailable, match="Device cuda:99 cannot be used"):
        resolve_device("cuda:99")
