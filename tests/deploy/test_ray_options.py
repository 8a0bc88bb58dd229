"""What the arguments and the settings make of Ray's options; needs no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.ray_options import OTHER_REQUESTS, deployment_options, read_arguments, within
from service.errors import SettingsError
from tests.docs.pages import ROOT, blocks_of


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAT_MAX_QUEUED_IMAGES", raising=False)


def options(**arguments: Any) -> dict[str, Any]:
    return deployment_options(*read_arguments(arguments))


def test_arguments_are_settings_and_placement_as_text_or_as_yaml_reads_them() -> None:
    placement, settings = read_arguments({"min_replicas": "2", "max_replicas": 4, "top_k": "3", "explain": False})
    assert (placement.min_replicas, placement.max_replicas) == (2, 4)
    assert (settings.top_k, settings.explain) == (3, False)


def test_a_variable_counts_where_no_argument_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAT_MAX_QUEUED_IMAGES", "128")
    assert read_arguments({})[1].max_queued_images == 128
    assert read_arguments({"max_queued_images": 256})[1].max_queued_images == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replicas": 2, "topk": 1}, "replicas, topk"),
        ({"top_k": 0}, "--top-k"),
        ({"min_replicas": 3, "max_replicas": 2}, r"^min_replicas \(3\) .*max_replicas \(2\)"),
        ({"num_cpus": 0}, "^num_cpus: "),
        ({"workers": 2}, "--workers "),
        ({"devices": "cuda:0,cuda:1"}, "--devices "),
        ({"tls_certificate": "a.pem"}, "--tls-certificate "),
        ({"device": "cuda:1"}, "--device: "),
        ({"instances": 2}, "--instances "),
        ({"model_control": True}, "--model-control .* deploy the change"),
        ({"model_control": True, "watch_repository": True}, "deploy the change"),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_arguments(arguments)


def settings_file(tmp_path: Path, table: str) -> dict[str, Any]:
    """Return arguments with a settings file that has this table for the model `other`."""
    file = tmp_path / "settings.toml"
    file.write_text(f"[models.other]\n{table}\n")
    return {"settings": str(file), "repository": str(tmp_path), "model": ["dat_demo", "other"]}


def test_the_applications_of_several_models_can_be_told_apart_and_take_their_arguments() -> None:
    (block,) = [block for block in blocks_of(ROOT / "docs/deploy/ray.md") if block.language == "yaml"]
    applications = yaml.safe_load(block.text)["applications"]
    models = [read_arguments(each["args"])[1].model for each in applications]
    for values in (models, *([each[key] for each in applications] for key in ("name", "route_prefix"))):
        assert len(set(values)) == len(applications) > 1
    alone = yaml.safe_load((ROOT / "deploy/ray_serve.yaml").read_text())
    assert {each["import_path"] for each in [*applications, *alone["applications"]]} == {"deploy.ray_serve:build"}


@pytest.mark.parametrize(
    ("table", "message"),
    [('device = "cuda:1"', "--device: "), ("instances = 2", "--instances "), ('devices = "cpu"', "--devices ")],
)
def test_what_cannot_be_for_one_model_is_refused_too(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_arguments(settings_file(tmp_path, table))


def test_a_replica_has_what_the_most_demanding_of_its_models_needs(tmp_path: Path) -> None:
    arguments = settings_file(tmp_path, 'device = "cuda"\nbatch_buckets = "1,32"')
    assert read_arguments(arguments)[1].model == ("dat_demo", "other")
    chosen = options(**arguments)
    assert chosen["ray_actor_options"]["num_gpus"] == 1
    assert chosen["autoscaling_config"]["target_ongoing_requests"] == 64


def test_rays_limits_lie_above_the_services_own() -> None:
    chosen = options(max_queued_images=100)
    assert chosen["max_ongoing_requests"] == 100 + OTHER_REQUESTS
    assert chosen["max_queued_requests"] == 100
    assert chosen["backpressure_config"]["status_code"] == 429


def test_a_replica_has_the_drain_time_and_a_little_for_its_end() -> None:
    assert options(drain_timeout_ms=20_000)["graceful_shutdown_timeout_s"] == 25


@pytest.mark.parametrize(
    ("arguments", "actor", "target"),
    [
        ({}, {"num_cpus": 1, "num_gpus": 0}, 16),
        ({"threads": 4}, {"num_cpus": 4, "num_gpus": 0}, 16),
        ({"num_cpus": 2, "batch_buckets": "1,4"}, {"num_cpus": 2, "num_gpus": 0}, 8),
        ({"device": "cuda"}, {"num_cpus": 1, "num_gpus": 1}, 128),
        ({"device": "cuda", "num_gpus": 0.5, "decode_threads": 3}, {"num_cpus": 3, "num_gpus": 0.5}, 128),
        ({"num_gpus": 1}, {"num_cpus": 1, "num_gpus": 1}, 128),
        ({"target_ongoing_requests": 5}, {"num_cpus": 1, "num_gpus": 0}, 5),
    ],
)
def test_a_replica_takes_of_a_node_what_its_device_needs(
    arguments: dict[str, Any], actor: dict[str, float], target: float
) -> None:
    chosen = options(**arguments)
    assert chosen["ray_actor_options"] == actor
    assert chosen["autoscaling_config"]["target_ongoing_requests"] == target


def test_threads_that_the_settings_leave_open_are_the_replicas_cores() -> None:
    settings = within(read_arguments({})[1], cores=3)
    assert (settings.threads, settings.decode_threads) == (3, 3)
    settings = within(read_arguments({"threads": 2, "decode_threads": 1})[1], cores=3)
    assert (settings.threads, settings.decode_threads) == (2, 1)


@pytest.mark.parametrize(("arguments", "device"), [({}, "cpu"), ({"num_gpus": 0.5}, "cuda"), ({"num_gpus": 0}, "cpu")])
def test_auto_is_the_gpu_that_ray_gives_and_never_another(arguments: dict[str, Any], device: str) -> None:
    assert read_arguments(arguments)[1].device == device
