"""A model in ONNX Runtime on one device. The only module that imports onnxruntime.

Invariants: the runtime's telemetry is off before the runtime is loaded; a session runs on the device that was asked
for, whole, or does not exist; its graph takes and gives what the caller said that it expects.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from service.engine.types import Outputs, Pixels
from service.errors import DeviceUnavailable, RepositoryError

# Read when the runtime's library is loaded; an environment that says otherwise is overruled.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

onnxruntime.disable_telemetry_events()

_log = logging.getLogger(__name__)

Device = Literal["cpu", "cuda"]

_INPUT = "image"
_PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_PROVIDER_OPTIONS: dict[Device, dict[str, str]] = {
    "cpu": {},
    "cuda": {
        # The exhaustive search plans every convolution anew whenever the batch size changes.
        "cudnn_conv_algo_search": "HEURISTIC",
        # A float32 model was verified as float32; who wants the speed of fewer bits exports a float16 model.
        "use_tf32": "0",
    },
}
_PROBE_MODEL = bytes.fromhex(
    "08083a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a0808011204"
    "0a02080142040a00100e"
)
"""The least model there is, y = Relu(x) of one float32 at opset 14: whether it opens tells whether a device does."""


def runtime_version() -> str:
    """Return ONNX Runtime's version."""
    return str(onnxruntime.__version__)


def resolve_device(device: str) -> Device:
    """Return the device to run on: `cpu` and `cuda` are themselves, `auto` is CUDA where it works and else the CPU.

    Raises DeviceUnavailable, saying what is missing, where the device asked for by name cannot be had.
    """
    if device == "cpu":
        return "cpu"
    if device == "cuda":
        _require_cuda()
        return "cuda"
    if device == "auto":
        try:
            _require_cuda()
        except DeviceUnavailable as error:
            _log.info("device auto is the CPU: %s", error)
            return "cpu"
        return "cuda"
    if device == "tensorrt":
        raise DeviceUnavailable("Device tensorrt is not available in this build; use cuda or cpu.")
    raise DeviceUnavailable(f"There is no device {device!r}; the devices are auto, cpu, cuda and tensorrt.")


class OnnxSession:
    """A loaded model; made by `load`. Fulfils the engine's Session protocol, for one thread at a time."""

    def __init__(
        self, session: Any, *, device: Device, input_shape: tuple[int, int, int], output_names: Sequence[str]
    ) -> None:
        self._session = session
        self._input_shape = input_shape
        self._output_names = tuple(output_names)
        self._run_options = onnxruntime.RunOptions()
        self._run_options.only_execute_path_to_fetches = True
        self.device: Device = device

    @classmethod
    def load(
        cls,
        model_path: Path,
        *,
        device: str,
        input_shape: tuple[int, int, int],
        output_names: Sequence[str],
        threads: int = 0,
    ) -> OnnxSession:
        """Load a model of (height, width, 3) images on a device, as `resolve_device` takes it.

        `threads` compute one run on the CPU, 0 for one a core. Raises DeviceUnavailable where the device, or a part of
        the model on it, cannot be had, and RepositoryError where the file is not the model that is expected.
        """
        chosen = resolve_device(device)
        try:
            session = _open(str(model_path), chosen, threads)
        except Exception as error:  # the runtime's errors have no base of their own
            if chosen != "cpu" and _loads_on_the_cpu(model_path):
                raise DeviceUnavailable(
                    f"{model_path} cannot run wholly on {chosen}; running parts of it on the CPU would be silent and "
                    f"slow, and is refused. The runtime says: {error}"
                ) from error
            raise RepositoryError(f"{model_path} cannot be loaded as a model: {error}") from error
        if _PROVIDERS[chosen] not in session.get_providers():
            raise DeviceUnavailable(f"{model_path} was not given to {chosen} but to {session.get_providers()}.")
        _check_graph(model_path, session, input_shape, output_names)
        return cls(session, device=chosen, input_shape=input_shape, output_names=output_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and 3."""
        return self._input_shape

    @property
    def output_names(self) -> tuple[str, ...]:
        """Every output that can be asked for."""
        return self._output_names

    def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
        """Run uint8 (batch, height, width, 3); computes no more than the named outputs need."""
        results = self._session.run(list(outputs), {_INPUT: images}, self._run_options)
        return dict(zip(outputs, results, strict=True))


def _open(model: str | bytes, device: Device, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin after a run would take the cores from decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if device != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [(_PROVIDERS[device], _PROVIDER_OPTIONS[device])]
    # Without this argument the constructor itself falls back to the CPU, before disable_fallback could be called.
    session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    session.disable_fallback()
    return session


def _require_cuda() -> None:
    if _PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise DeviceUnavailable(
            "Device cuda needs the GPU build of ONNX Runtime, and the one installed has no CUDA provider; "
            "install onnxruntime-gpu in place of onnxruntime."
        )
    onnxruntime.preload_dlls()
    try:
        _open(_PROBE_MODEL, "cuda", 1)
    except Exception as error:  # the runtime's errors have no base of their own
        raise DeviceUnavailable(
            "Device cuda cannot be used: it needs an NVIDIA GPU with its driver, and the CUDA and cuDNN libraries "
            f"that this ONNX Runtime was built for. The runtime says: {error}"
        ) from error


def _loads_on_the_cpu(model_path: Path) -> bool:
    """Tell a device's refusal from a broken file."""
    try:
        _open(str(model_path), "cpu", 1)
    except Exception:
        _log.debug("%s does not load on the CPU either", model_path, exc_info=True)
        return False
    return True


def _check_graph(model_path: Path, session: Any, input_shape: tuple[int, int, int], outputs: Sequence[str]) -> None:
    """Raise RepositoryError unless the graph takes `image` as uint8 (batch, height, width, 3) and gives float32."""
    inputs = {node.name: node for node in session.get_inputs()}
    if list(inputs) != [_INPUT]:
        raise RepositoryError(f"{model_path} should have one input, {_INPUT}; it has: {', '.join(inputs)}")
    image = inputs[_INPUT]
    if image.type != "tensor(uint8)":
        raise RepositoryError(f"{model_path}: input {_INPUT} should be tensor(uint8), not {image.type}")
    # A dimension that is left open has a name, or none, where a fixed one has a number.
    fits = len(image.shape) == 4 and all(
        not isinstance(has, int) or has == wanted for has, wanted in zip(image.shape[1:], input_shape, strict=True)
    )
    if not fits or isinstance(image.shape[0], int):
        raise RepositoryError(
            f"{model_path}: input {_INPUT} should have the shape (batch, {', '.join(map(str, input_shape))}) with the "
            f"batch left open, not {tuple(image.shape)}"
        )
    types = {node.name: node.type for node in session.get_outputs()}
    for name in outputs:
        if types.get(name) != "tensor(float)":
            raise RepositoryError(
                f"{model_path}: output {name} should be tensor(float), not {types.get(name, 'absent')}"
            )
