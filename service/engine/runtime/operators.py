"""The library of GPU kernels for fused graphs, where it is installed: the package `dat_operators`, from its own wheel.

It belongs to the server's environment: nothing compiled is taken from a model's directory. A machine without a GPU has
no use for it, and need not have it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from service.engine.runtime.options import Device
from service.errors import DeviceUnavailable

PACKAGE = "dat_operators"


def kernel_library(device: Device, *, version: int) -> Path:
    """Return the library that a session registers, for a graph of operators of `version`.

    Raises DeviceUnavailable, saying what is missing, where it is not installed, has not that version, or cannot run its
    kernels on the device.
    """
    try:
        package: Any = importlib.import_module(PACKAGE)
    except ImportError as error:
        raise DeviceUnavailable(f"The package {PACKAGE} with its kernels cannot be loaded: {error}.") from error
    if version != package.VERSION:
        raise DeviceUnavailable(
            f"The graph is of version {version} of the operators, and the installed {PACKAGE} has {package.VERSION}."
        )
    try:
        lack: str | None = package.missing(device.index)
    except OSError as error:
        raise DeviceUnavailable(f"The library of {PACKAGE} cannot be loaded: {error}.") from error
    if lack is not None:
        raise DeviceUnavailable(f"{lack}.")
    path: Path = package.library()
    return path
