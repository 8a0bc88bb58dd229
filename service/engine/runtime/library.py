"""ONNX Runtime itself, with its telemetry off. The only module that imports onnxruntime; untyped, hence Any."""

from __future__ import annotations

import os
from typing import Any

# Read when the runtime's library is loaded; an environment that says otherwise is overruled.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as _onnxruntime

_onnxruntime.disable_telemetry_events()

ort: Any = _onnxruntime
"""The runtime's Python package."""


def runtime_version() -> str:
    """Return ONNX Runtime's version."""
    return str(ort.__version__)
