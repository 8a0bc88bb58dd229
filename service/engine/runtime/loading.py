"""Opening models in the runtime: whether a device can be had, and a model on it. Never a silent fall-back."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from service.engine.runtime.library import ort, runtime_version
from service.engine.runtime.options import PROVIDERS, Device, DeviceOptions, provider_options
from service.engine.runtime.tensorrt import EngineKey, gpu_identity, load_tensorrt, tensorrt_options
from service.errors import DeviceUnavailable, RepositoryError, SettingsError

_log = logging.getLogger(__name__)

INPUT = "image"
"""The name of the models' one input."""

_GRAPHS = "enable_cuda_graph"
_NO_CAPTURE = "cannot use the graph capture feature"
"""What the runtime says of a model whose kernels it cannot record, instead of loading it."""
_BAD_OPTION = "provider option"
"""What it says of an option that it does not know, or a value that it does not take."""
_PROBE_MODEL = bytes.fromhex(
    "08083a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a0808011204"
    "0a02080142040a00100e"
)
"""The least model there is, y = Relu(x) of one float32 at opset 14: whether it opens tells whether a device does."""

Providers = Sequence[tuple[str, dict[str, str]]]


def require_device(device: Device) -> None:
    """Raise DeviceUnavailable, saying what is missing, unless the device can be had."""
    if device.kind == "cpu":
        return
    if device.provider.name not in ort.get_available_providers():
        raise DeviceUnavailable(
            f"Device {device} needs the GPU build of ONNX Runtime, and the one installed has no "
            f"{device.provider.name}; install onnxruntime-gpu in place of onnxruntime."
        )
    ort.preload_dlls()
    cuda = Device("cuda", device.index)
    try:
        # The runtime adds the CPU to every session; a probe that it may not run there shows that the GPU works.
        open_session(
            _PROBE_MODEL,
            [(cuda.provider.name, provider_options(cuda, {}))],
            threads=1,
            entries={"session.disable_cpu_ep_fallback": "1"},
        )
    except Exception as error:  # the runtime's errors have no base of their own
        raise DeviceUnavailable(
            f"Device {device} cannot be used: it needs an NVIDIA GPU with its driver, and the CUDA and cuDNN libraries "
            f"that this ONNX Runtime was built for. The runtime says: {error}"
        ) from error
    if device.kind == "tensorrt":
        load_tensorrt()


def open_model(
    path: Path,
    device: Device,
    options: DeviceOptions,
    *,
    input_shape: tuple[int, int, int],
    profile: Path | None,
    free_size: bool = False,
) -> Any:
    """Return the runtime's session of a model on a device that can be had.

    Its next run is profiled into a file that begins with `profile`, where one is given. With `free_size` nothing is
    kept of a run's shapes, of which there may be any number. Raises SettingsError for provider options that are
    refused, RepositoryError where the file is no model, and DeviceUnavailable where it is one that the device does not
    take.
    """
    providers = _providers(path, device, options, input_shape)
    open_graph = partial(
        open_session,
        str(path),
        threads=options.threads,
        operators=options.operators,
        profile=profile,
        free_size=free_size,
    )
    try:
        try:
            session = open_graph(providers)
        except Exception as error:
            if _NO_CAPTURE not in str(error) or _GRAPHS in options.provider_options:
                raise
            _log.warning("%s runs without CUDA graphs: %s", path, error)
            providers[0][1].pop(_GRAPHS)
            session = open_graph(providers)
    except Exception as error:  # the runtime's errors have no base of their own
        if options.provider_options and _BAD_OPTION in str(error):
            given = ", ".join(f"{key}={value}" for key, value in options.provider_options.items())
            raise SettingsError(f"{device.provider.name} does not take its options ({given}): {error}") from error
        if device.kind != "cpu" and _loads_on_the_cpu(path, options.operators):
            raise DeviceUnavailable(f"{path} cannot be loaded on {device}: {error}") from error
        raise RepositoryError(f"{path} cannot be loaded as a model: {error}") from error
    if device.provider.name not in session.get_providers():
        raise DeviceUnavailable(f"{path} was not given to {device} but to {', '.join(session.get_providers())}.")
    return session


def records_graphs(session: Any, device: Device) -> bool:
    """Tell whether a session was opened to record CUDA graphs."""
    return device.kind == "cuda" and session.get_provider_options()[device.provider.name].get(_GRAPHS) == "1"


def open_session(
    model: str | bytes,
    providers: Providers,
    *,
    threads: int,
    operators: Path | None = None,
    profile: Path | None = None,
    entries: dict[str, str] | None = None,
    free_size: bool = False,
) -> Any:
    """Return a session on exactly these providers, and the CPU, which the runtime always adds.

    `operators` is the library of those that the model holds beyond the runtime's own.
    """
    options = ort.SessionOptions()
    if operators is not None:
        options.register_custom_ops_library(str(operators))
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The runtime keeps the layout of a run's memory for each shape that it meets, and never lets go of one.
    options.enable_mem_pattern = not free_size
    # Within a run threads spin from one operator to the next, since waking them takes a sixth of a small run's time.
    # Threads that spin after a run would take the cores from decoding.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    # Without this argument the constructor itself falls back to the CPU, before disable_fallback could be called.
    session = ort.InferenceSession(model, options, providers=list(providers), enable_fallback=0)
    session.disable_fallback()
    return session


def _providers(
    path: Path, device: Device, options: DeviceOptions, input_shape: tuple[int, int, int]
) -> list[tuple[str, dict[str, str]]]:
    """Return the providers of a device in the order in which they may choose nodes, each with its options."""
    own = provider_options(device, options.provider_options)
    if device.kind == "cuda" and options.cuda_graphs:
        own.setdefault(_GRAPHS, "1")
    if device.kind == "tensorrt":
        key = EngineKey(
            model_sha256=_sha256(path),
            runtime=runtime_version(),
            tensorrt=load_tensorrt(),
            gpu=gpu_identity(device.index),
            precision=options.precision,
            input_shape=input_shape,
            buckets=options.buckets,
            options=tuple(sorted(own.items())),
        )
        own = tensorrt_options(key, input_name=INPUT, cache=options.engine_cache)
    helpers = (Device(kind, device.index) for kind in device.provider.helpers)
    return [(device.provider.name, own), *((each.provider.name, provider_options(each, {})) for each in helpers)]


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RepositoryError(f"{path} cannot be read: {error}") from error


def _loads_on_the_cpu(path: Path, operators: Path | None) -> bool:
    """Tell a device's refusal from a broken file."""
    try:
        open_session(str(path), [(PROVIDERS["cpu"].name, {})], threads=1, operators=operators)
    except Exception:
        _log.debug("%s does not load on the CPU either", path, exc_info=True)
        return False
    return True
