"""Whether a model suits what it meets: the device, where it may be right but slower than need be, and the settings.

What a device cannot run at all, or computes wrongly, the session finds out when it loads the model.
"""

from __future__ import annotations

from service.engine.runtime.options import Device
from service.errors import SettingsError
from service.model.manifest import Manifest, unknown_outputs
from service.settings import Settings, option_of


def check_settings(manifest: Manifest, settings: Settings) -> None:
    """Raise SettingsError where a model has not what its settings name: to be asked before it is served."""
    if lacking := unknown_outputs(settings.v2_outputs, manifest.output_names):
        raise SettingsError(f"{option_of('v2_outputs')}: {manifest.name!r} version {manifest.version}: {lacking}")


def drawbacks(manifest: Manifest, device: str) -> list[str]:
    """Return a sentence for each way in which a model's form costs speed on a device such as `cpu` or `cuda:1`."""
    kind = Device.parse(device).kind
    model = f"{manifest.name} version {manifest.version}"
    found = []
    if kind == "cpu" and manifest.precision == "fp16":
        found.append(
            f"{model} is float16, which the CPU computes as float32: it is no faster here than float32, and less "
            "exact. Export it with --precision fp32 for the CPU."
        )
    if kind == "tensorrt" and manifest.contrib_operators:
        found.append(
            f"{model} holds operators that TensorRT does not have ({', '.join(manifest.contrib_operators)}): CUDA runs "
            "them, between engines for the parts in between. Export it with --target tensorrt for one engine."
        )
    return found
