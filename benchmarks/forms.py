"""The form of an exported model that a contender runs: its fused graph where it has one, with the library of that."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from operators.build import BuildError, build
from service.engine.runtime.operators import kernel_library
from service.engine.runtime.options import Device
from service.errors import DeviceUnavailable
from service.model.directory import open_model


class FormUnavailable(Exception):
    """A fused graph that cannot run here; the message says what is missing."""


class Form(NamedTuple):
    """A graph's file, the library of its own operators, and the standard graph of the same model; None for none."""

    path: Path
    operators: Path | None = None
    standard: Path | None = None


def form_of(directory: Path, device: str, folder: Path) -> Form:
    """Return what to run of a model directory on `cpu` or `cuda`.

    On the CPU a fused graph runs by the operators' reference, which is compiled into `folder`. Raises FormUnavailable.
    """
    model = open_model(directory)
    record = model.manifest.fused
    if record is None:
        return Form(model.model_path)
    try:
        if device == "cpu":
            library = build(folder / "libdat_operators.so")
        else:
            library = kernel_library(Device.parse(device), version=record.operators_version)
    except (BuildError, DeviceUnavailable) as error:
        raise FormUnavailable(f"{model.fused_path} cannot run on {device}: {error}") from error
    return Form(model.fused_path, library, model.model_path)
