"""TensorRT: its libraries, and the cache of the engines that it builds.

An engine is good for one model, GPU, TensorRT, runtime, precision, range of shapes and set of options, and the
provider checks few of these before it reuses a file. So each combination has a directory of its own, named by their
digest, and a file name prefix besides, since engines of one graph name with other shapes have been mistaken for each
other.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from service.engine.runtime.options import Precision
from service.errors import DeviceUnavailable

_log = logging.getLogger(__name__)

_LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")
"""What the runtime's provider is linked against, in the order in which they load."""
_PRECISION_OPTIONS: Mapping[Precision, Mapping[str, str]] = {
    "fp32": {},
    "fp16": {"trt_fp16_enable": "1"},
    "int8": {"trt_int8_enable": "1"},
}
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
"""Numbers of the CUDA driver's device attributes."""


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that an engine depends on."""

    model_sha256: str
    runtime: str
    tensorrt: str
    gpu: str
    precision: Precision
    input_shape: tuple[int, int, int]
    buckets: tuple[int, ...]
    options: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with any part."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def prefix(self) -> str:
        """Prefix of the engines' file names, with the shapes in it."""
        size = "x".join(map(str, self.input_shape))
        return f"{self.digest}_{min(self.buckets)}-{max(self.buckets)}x{size}"


def tensorrt_options(key: EngineKey, *, input_name: str, cache: Path | None) -> dict[str, str]:
    """Return the provider's options: one engine for all buckets, kept in `cache`; the key's own options win.

    Makes the key's directory, with the key in it for whoever wonders what it belongs to. Where that fails, as in a
    read-only model directory, the engine is built at every start, and a warning says so.
    """
    size = "x".join(map(str, key.input_shape))
    options = {
        **_PRECISION_OPTIONS[key.precision],
        "trt_profile_min_shapes": f"{input_name}:{min(key.buckets)}x{size}",
        "trt_profile_opt_shapes": f"{input_name}:{max(key.buckets)}x{size}",
        "trt_profile_max_shapes": f"{input_name}:{max(key.buckets)}x{size}",
    }
    if cache is not None:
        directory = cache / key.digest
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "key.json").write_text(json.dumps(asdict(key), indent=2, sort_keys=True) + "\n")
        except OSError as error:
            _log.warning("TensorRT's engine cannot be kept and will be built at every start: %s", error)
        else:
            options |= {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(directory),
                "trt_engine_cache_prefix": key.prefix,
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": str(directory),
            }
    return {**options, **dict(key.options)}


def load_tensorrt() -> str:
    """Load TensorRT's libraries and return their version, such as `10.16.1`; raises DeviceUnavailable without them.

    Those of the `tensorrt` wheels lie where the dynamic linker does not look, but what is loaded it finds.
    """
    spec = importlib.util.find_spec("tensorrt_libs")
    places = ["", *(f"{place}/" for place in (spec.submodule_search_locations or ()))] if spec else [""]
    try:
        inference, _ = (_load_first([f"{place}{library}" for place in places]) for library in _LIBRARIES)
    except OSError as error:
        raise DeviceUnavailable(
            f"Device tensorrt needs the libraries of TensorRT 10 ({', '.join(_LIBRARIES)}), and they cannot be loaded: "
            f"{error}. Install a tensorrt 10 package for this CUDA, or use device cuda."
        ) from error
    number = int(inference.getInferLibVersion())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _load_first(paths: list[str]) -> ctypes.CDLL:
    """Load the first library that can be, for all to see; raises the last one's OSError."""
    for path in paths[:-1]:
        try:
            return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            _log.debug("%s: %s", path, error)
    return ctypes.CDLL(paths[-1], mode=ctypes.RTLD_GLOBAL)


def gpu_identity(index: int) -> str:
    """Return a GPU's name, compute capability and driver, such as `NVIDIA H200, 9.0, driver 13000`.

    `unknown` where there is no CUDA driver.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "unknown"
    name = ctypes.create_string_buffer(256)
    device, version, major, minor = (ctypes.c_int() for _ in range(4))
    driver.cuInit(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    return f"{name.value.decode()}, {major.value}.{minor.value}, driver {version.value}"
