from __future__ import annotations

import pytest

from service.engine.runtime.options import Device, provider_options
from service.errors import SettingsError


@pytest.mark.parametrize(
    ("name", "device"), [("cpu", Device("cpu")), ("cuda:0", Device("cuda")), ("tensorrt:3", Device("tensorrt", 3))]
)
def test_devices_have_names(name: str, device: Device) -> None:
    assert Device.parse(name) == device
    assert str(device) == name.removesuffix(":0")


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "", "cpu:0", "cuda:00", "cuda:٣", "auto"])
def test_names_of_no_device_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not a device; devices are cpu, cuda, cuda:1, tensorrt"):
        Device.parse(name)


def test_options_asked_for_win_over_the_defaults() -> None:
    options = provider_options(Device("cuda", 1), {"use_tf32": "1", "gpu_mem_limit": "1000"})
    assert options == {
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "device_id": "1",
        "gpu_mem_limit": "1000",
    }


def test_options_for_the_cpu_are_refused_rather_than_ignored() -> None:
    assert provider_options(Device("cpu"), {}) == {}
    with pytest.raises(SettingsError, match="cpu takes no provider options, and was given: use_tf32"):
        provider_options(Device("cpu"), {"use_tf32": "1"})
