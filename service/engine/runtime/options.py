"""The options of a session on its device, and what each device is to the runtime: data, without the runtime.

A device is named `cpu`, `cuda` or `tensorrt`, the latter two with `:1` and so on for all but the first GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from service.errors import SettingsError

DeviceKind = Literal["cpu", "cuda", "tensorrt"]
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """How to run a model: which device, and with which options. Built from the settings, once."""

    device: str = "cpu"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `tensorrt` ..."""
    threads: int = 0
    """Threads that compute one run on the CPU; 0 for one a core. They spin only within a run: others want the cores."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    """Options of the device's execution provider, over the defaults in PROVIDERS."""
    cuda_graphs: bool = True
    """Record the kernels of each bucket once and launch them as one; device `cuda` alone."""
    cuda_graph_outputs: tuple[str, ...] = ()
    """Outputs that such a recording computes, always all of them: they should cost nearly nothing beside the rest of
    it. A run that asks for any other output goes without a recording."""
    strict_device: bool = False
    """Refuse a model of which the device leaves compute nodes to the CPU; otherwise they are named in a warning."""
    io_binding: bool | None = None
    """Run through buffers made once per bucket; None for every device but the CPU, which gains nothing by it."""
    shrink_arena_above: int | None = None
    """Hand memory back to the device after each run of more images than this; None for only after running out of it.
    Without effect once CUDA graphs are recorded, since these keep the addresses of what would be handed back."""
    self_check: bool = True
    """Compare every output with the CPU's on one seeded batch before serving; all devices but the CPU."""
    precision: Precision = "fp32"
    """The model's, as its manifest says: sets the self-check's tolerance, and what TensorRT may compute in."""
    buckets: tuple[int, ...] = (1,)
    """Batch sizes that will be run: the range that TensorRT builds its engine for."""
    operators: Path | None = None
    """The library of the operators that the graph holds beyond the runtime's own."""
    engine_cache: Path | None = None
    """Directory for TensorRT's engines, which take minutes to build; None builds anew at every start."""


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider of the runtime: what serves a kind of device."""

    name: str
    memory: Literal["cpu", "cuda"]
    """Where its tensors lie, in the runtime's words."""
    options: Mapping[str, str]
    helpers: tuple[DeviceKind, ...] = ()
    """Kinds that may take what it leaves, being on the same device."""


PROVIDERS: Mapping[DeviceKind, Provider] = {
    "cpu": Provider("CPUExecutionProvider", "cpu", {}),
    "cuda": Provider(
        "CUDAExecutionProvider",
        "cuda",
        {
            # The exhaustive search plans every convolution anew whenever the batch size changes.
            "cudnn_conv_algo_search": "HEURISTIC",
            # A float32 model was verified as float32; who wants the speed of fewer bits exports a float16 model.
            "use_tf32": "0",
            # The default rounds up to powers of two, and a rounded-up block is rarely free to be handed back.
            "arena_extend_strategy": "kSameAsRequested",
        },
    ),
    "tensorrt": Provider("TensorrtExecutionProvider", "cuda", {}, helpers=("cuda",)),
}


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its kind, and which of them."""

    kind: DeviceKind
    index: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.index else self.kind

    @property
    def provider(self) -> Provider:
        """What serves it."""
        return PROVIDERS[self.kind]

    @classmethod
    def parse(cls, name: str) -> Device:
        """Return the device of that name: `cpu`, `cuda`, `cuda:1` ...; raises ValueError where it names none."""
        if not re.fullmatch(r"cpu|(cuda|tensorrt)(:(0|[1-9][0-9]*))?", name):
            raise ValueError(f"{name!r} is not a device; devices are cpu, cuda, cuda:1, tensorrt, tensorrt:1 ...")
        kind, _, index = name.partition(":")
        return cls(cast(DeviceKind, kind), int(index or 0))


def provider_options(device: Device, asked: Mapping[str, str]) -> dict[str, str]:
    """Return the options of the device's provider: its defaults, and over them those asked for.

    Raises SettingsError for options of the CPU, which the runtime would ignore without a word.
    """
    if device.kind == "cpu":
        if asked:
            raise SettingsError(f"Device cpu takes no provider options, and was given: {', '.join(asked)}.")
        return {}
    return {**device.provider.options, "device_id": str(device.index), **asked}
