from __future__ import annotations

import ctypes.util
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from service.engine.runtime.tensorrt import EngineKey, gpu_identity, load_tensorrt, tensorrt_options
from service.errors import DeviceUnavailable

KEY = EngineKey(
    model_sha256="a" * 64,
    runtime="1.31.1",
    tensorrt="10.16.1",
    gpu="NVIDIA H200, 9.0, driver 13000",
    precision="fp16",
    input_shape=(224, 224, 3),
    buckets=(1, 8, 64),
    options=(("device_id", "0"),),
)
CHANGES: dict[str, Any] = {
    "model_sha256": "b" * 64,
    "runtime": "1.32.0",
    "tensorrt": "10.16.2",
    "gpu": "NVIDIA H100, 9.0, driver 13000",
    "precision": "fp32",
    "input_shape": (384, 384, 3),
    "buckets": (1, 8, 32),
    "options": (("device_id", "0"), ("trt_builder_optimization_level", "5")),
}


@pytest.mark.parametrize("field", [field.name for field in fields(EngineKey)])
def test_whatever_an_engine_depends_on_gives_it_another_place(field: str) -> None:
    assert replace(KEY, **{field: CHANGES[field]}).digest != KEY.digest
    assert replace(KEY).digest == KEY.digest


def test_the_engine_covers_all_buckets_and_is_kept_under_its_key(tmp_path: Path) -> None:
    options = tensorrt_options(KEY, input_name="image", cache=tmp_path / "engines")
    directory = tmp_path / "engines" / KEY.digest
    assert options == {
        "trt_fp16_enable": "1",
        "trt_profile_min_shapes": "image:1x224x224x3",
        "trt_profile_opt_shapes": "image:64x224x224x3",
        "trt_profile_max_shapes": "image:64x224x224x3",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(directory),
        "trt_engine_cache_prefix": f"{KEY.digest}_1-64x224x224x3",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(directory),
        "device_id": "0",
    }
    assert json.loads((directory / "key.json").read_text())["gpu"] == KEY.gpu
    assert tensorrt_options(KEY, input_name="image", cache=tmp_path / "engines") == options


def test_the_options_asked_for_win() -> None:
    key = replace(KEY, options=(("trt_fp16_enable", "0"),))
    assert tensorrt_options(key, input_name="image", cache=None)["trt_fp16_enable"] == "0"


def test_without_a_place_to_keep_it_the_engine_is_built_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    options = tensorrt_options(KEY, input_name="image", cache=tmp_path / "file")
    assert not any("cache" in name for name in options)
    assert "will be built at every start" in caplog.text


@pytest.mark.skipif(ctypes.util.find_library("nvinfer") is not None, reason="TensorRT is installed here")
def test_missing_libraries_are_named() -> None:
    with pytest.raises(DeviceUnavailable, match=r"libnvinfer\.so\.10.*Install a tensorrt 10 package"):
        load_tensorrt()


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="a CUDA driver is installed here")
def no_library(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


def test_without_a_driver_the_gpu_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    # Other tests of the process may have loaded a driver that is none, which is found by its name then.
    monkeypatch.setattr("service.engine.runtime.tensorrt.ctypes.CDLL", no_library)
    assert gpu_identity(0) == "unknown"
