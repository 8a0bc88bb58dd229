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

    Raises DeviceUnavailable, saying what is missing, where it is not installed, has not that version, cannot run its
    kernels on the device, or is broken in whatever way.
    """
    try:
        package: Any = importlib.import_module(PACKAGE)
    except Exception as error:  # a package runs code of its own, which may raise anything
        raise DeviceUnavailable(f"The package {PACKAGE} with its kernels cannot be loaded: {error!r}.") from error
    try:
        has: object = package.VERSION
        lack: object = package.missing(device.index) if has == version else None
        path = Path(package.library())
    except OSError as error:
        raise DeviceUnavailable(f"The library of {PACKAGE} cannot be loaded: {error}.") from error
    except Exception as error:  # another package of that name, or a broken one
        raise DeviceUnavailable(f"The package {PACKAGE} does not say what it has: {error!r}.") from error
    if has != version:
        raise DeviceUnavailable(
            f"The graph is of version {version} of the operators, and the installed {PACKAGE} has {has}."
        )
    if lack is not None:
        raise DeviceUnavailable(f"{lack}.")
    return path
