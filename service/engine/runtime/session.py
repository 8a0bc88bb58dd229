"""A model in ONNX Runtime on one device: chosen, loaded, checked, and run.

Invariants: a session runs on the device that was asked for, or does not exist; it has shown there that it computes
what the CPU computes; its graph takes and gives what the caller said that it expects.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.engine.runtime.binding import BoundRunner, PlainRunner, Runner
from service.engine.runtime.loading import INPUT, open_model, records_graphs, require_device
from service.engine.runtime.memory import Memory, is_out_of_memory
from service.engine.runtime.options import Device, DeviceOptions
from service.engine.runtime.placement import check_placement, placed_nodes
from service.engine.runtime.selfcheck import TOLERANCES, Parity, check_images, differences, tiled
from service.engine.types import OutOfDeviceMemory, Outputs, Pixels
from service.errors import DeviceUnavailable, RepositoryError

_log = logging.getLogger(__name__)


def resolve_device(device: str) -> str:
    """Return the device to run on: a named one is itself, `auto` is CUDA where it works and else the CPU.

    Raises DeviceUnavailable, saying what is missing, where the device asked for by name cannot be had.
    """
    if device == "auto":
        try:
            require_device(Device("cuda"))
        except DeviceUnavailable as error:
            _log.info("device auto is the CPU: %s", error)
            return "cpu"
        return "cuda"
    named = Device.parse(device)
    require_device(named)
    return str(named)


class OnnxSession:
    """A loaded model; made by `load`. Fulfils the engine's Session protocol.

    One thread runs it, the same from the first run to the last.
    """

    def __init__(
        self,
        runner: Runner,
        memory: Memory,
        *,
        device: Device,
        input_shape: tuple[int, int, int],
        output_names: Sequence[str],
        operators: Path | None = None,
        shrink_arena_above: int | None = None,
        largest_batch: int | None = None,
    ) -> None:
        self._runner = runner
        self._memory = memory
        self._device = device
        self._input_shape = input_shape
        self._output_names = tuple(output_names)
        self._shrink_arena_above = shrink_arena_above
        self._most_kept_bytes = None if largest_batch is None else largest_batch * math.prod(input_shape)
        """Of a batch, after which what its run took stays: that of the largest of the model's own images."""
        self._ran_out_of_memory = False
        self.operators = operators
        """The library of the operators that it runs beyond the runtime's own."""
        self.parity: Parity | None = None
        """How far it is from the CPU; None where it is the CPU, or was not compared."""

    @classmethod
    def load(
        cls,
        model_path: Path,
        options: DeviceOptions,
        *,
        input_shape: tuple[int, int, int],
        output_names: Sequence[str],
        free_size: bool = False,
        reference: Path | None = None,
    ) -> OnnxSession:
        """Load a model of (height, width, 3) images, and check on the device that it runs there, and runs right.

        With `free_size` it must take images of other heights and widths as well, for which nothing is kept ready. What
        it computes is compared with what the CPU does by `reference`, the same model in another form, or by itself.
        Raises DeviceUnavailable where the device, or a part of the model on it, cannot be had; RepositoryError where
        the file is not the model that is expected; SettingsError for provider options that are refused.
        """
        chosen = Device.parse(resolve_device(options.device))
        with _profile_folder(chosen) as folder:
            profile = Path(folder) / "run" if folder else None
            session = open_model(
                model_path, chosen, options, input_shape=input_shape, profile=profile, free_size=free_size
            )
            _check_graph(model_path, session, input_shape, output_names, free_size=free_size)
            memory = Memory(chosen.provider.memory, chosen.index)
            loaded = cls(
                _runner(session, memory, chosen, options, input_shape, free_size=free_size),
                memory,
                device=chosen,
                input_shape=input_shape,
                output_names=output_names,
                operators=options.operators,
                shrink_arena_above=options.shrink_arena_above,
                largest_batch=max(options.buckets) if free_size else None,
            )
            if profile:
                loaded._prove(model_path, session, options, reference)
        return loaded

    @property
    def device(self) -> str:
        """Its name, such as `cpu` or `cuda:1`."""
        return str(self._device)

    def staging(self, size_bytes: int) -> Pixels:
        """Return zeroed memory that the device reads fastest from: uint8 (size_bytes,)."""
        return self._memory.staging(size_bytes)

    def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
        """Run uint8 (batch, height, width, 3); computes little more than the named outputs need.

        The arrays may be overwritten by the next run: copy what you keep. Raises OutOfDeviceMemory where the batch is
        too large for what the device has left.
        """
        above, most_bytes = self._shrink_arena_above, self._most_kept_bytes
        shrink = self._ran_out_of_memory or (above is not None and len(images) > above)
        shrink = shrink or (most_bytes is not None and images.nbytes > most_bytes)
        self._ran_out_of_memory = False
        try:
            return self._runner.run(images, outputs, shrink_arena=shrink)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._ran_out_of_memory = True  # the next run hands back what is spare
            raise OutOfDeviceMemory(str(error)) from error

    def _prove(self, model_path: Path, session: Any, options: DeviceOptions, reference: Path | None) -> None:
        """Raise DeviceUnavailable unless the device computes the model, itself, as the CPU does by `reference`.

        TensorRT is tried at both ends of its engine's range; CUDA's kernels do not depend on it.
        """
        smallest, largest = min(options.buckets), max(options.buckets)
        sizes = {smallest, largest} if self._device.kind == "tensorrt" else {smallest}
        images = check_images(self._input_shape)
        try:
            given = {size: self._run_copied(images[np.arange(size) % len(images)]) for size in sorted(sizes)}
        except Exception as error:  # the runtime's errors have no base of their own
            raise DeviceUnavailable(f"{model_path} loads on {self.device}, but does not run there: {error}") from error
        profile = json.loads(Path(session.end_profiling()).read_text())
        check_placement(str(model_path), placed_nodes(profile), self._device, strict=options.strict_device)
        if not options.self_check:
            return
        cpu = OnnxSession.load(
            reference or model_path,
            DeviceOptions(threads=options.threads, operators=None if reference else options.operators),
            input_shape=self._input_shape,
            output_names=self._output_names,
        )
        expected, tolerance = cpu.run(images, self._output_names), TOLERANCES[options.precision]
        worst = 0.0
        for size, actual in given.items():
            wrong, relative = differences(tiled(expected, size), actual, tolerance)
            worst = max(worst, relative)
            self.parity = Parity(worst, tolerance)
            if wrong:
                raise DeviceUnavailable(
                    f"{model_path} does not compute on {self.device} what it computes on the CPU, in a batch of "
                    f"{size}: {'; '.join(wrong)}."
                )

    def _run_copied(self, images: Pixels) -> Outputs:
        """Run with every output, and let the arrays be the caller's."""
        return {name: values.copy() for name, values in self.run(images, self._output_names).items()}


def _profile_folder(device: Device) -> contextlib.AbstractContextManager[str | None]:
    """Return a folder for the profile that shows where a model's nodes run; the CPU needs none."""
    if device.kind == "cpu":
        return contextlib.nullcontext()
    try:
        return tempfile.TemporaryDirectory(prefix="placement-")
    except OSError as error:
        raise DeviceUnavailable(
            f"Whether a model runs on {device} cannot be checked without a temporary directory: {error}"
        ) from error


def _runner(
    session: Any,
    memory: Memory,
    device: Device,
    options: DeviceOptions,
    input_shape: tuple[int, int, int],
    *,
    free_size: bool,
) -> Runner:
    """Return what runs the session: with buffers that stay where that is asked for, or is a gain."""
    binds = device.kind != "cpu" if options.io_binding is None else options.io_binding
    if not binds:
        return PlainRunner(session, memory, input_name=INPUT)
    return BoundRunner(
        session,
        memory,
        input_name=INPUT,
        input_shape=input_shape,
        free_size=free_size,
        cuda_graph_outputs=options.cuda_graph_outputs if records_graphs(session, device) else (),
    )


def _check_graph(
    model_path: Path, session: Any, input_shape: tuple[int, int, int], outputs: Sequence[str], *, free_size: bool
) -> None:
    """Raise RepositoryError unless the graph takes `image` as uint8 (batch, height, width, 3) and gives float32.

    With `free_size`, height and width must be left open as the batch is.
    """
    inputs = {node.name: node for node in session.get_inputs()}
    if list(inputs) != [INPUT]:
        raise RepositoryError(f"{model_path} should have one input, {INPUT}; it has: {', '.join(inputs)}")
    image = inputs[INPUT]
    if image.type != "tensor(uint8)":
        raise RepositoryError(f"{model_path}: input {INPUT} should be tensor(uint8), not {image.type}")
    # A dimension that is left open has a name, or none, where a fixed one has a number.
    fits = len(image.shape) == 4 and all(
        not isinstance(has, int) or has == wanted for has, wanted in zip(image.shape[1:], input_shape, strict=True)
    )
    if not fits or isinstance(image.shape[0], int):
        raise RepositoryError(
            f"{model_path}: input {INPUT} should have the shape (batch, {', '.join(map(str, input_shape))}) with the "
            f"batch left open, not {tuple(image.shape)}"
        )
    if free_size and any(isinstance(side, int) for side in image.shape[1:3]):
        raise RepositoryError(
            f"{model_path}: input {INPUT} should have its height and width left open, and not {tuple(image.shape)}"
        )
    types = {node.name: node.type for node in session.get_outputs()}
    for name in outputs:
        if types.get(name) != "tensor(float)":
            raise RepositoryError(
                f"{model_path}: output {name} should be tensor(float), not {types.get(name, 'absent')}"
            )
