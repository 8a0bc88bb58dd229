"""What a result was measured on, for those who compare it with another."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "fastapi",
    "httptools",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "pillow",
    "simplejpeg",
    "uvicorn",
    "uvloop",
)


def describe(*packages: str) -> dict[str, Any]:
    """Return the processor, its cores and their load, the memory, the GPUs, the versions, the commit and the time.

    `packages` are those whose versions matter beside the server's own; of one that is not installed it is None.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "gpus": _gpus(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in sorted({*_PACKAGES, *packages})},
    }


def _gpus() -> list[str]:
    """Return name, memory and driver of each NVIDIA GPU; none where the driver's tool is not there or finds none."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True, check=False)
    return asked.stdout.strip().splitlines() if asked.returncode == 0 else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _field(path: str, name: str) -> str | None:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _commit() -> str:
    asked = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"
