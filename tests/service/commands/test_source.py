from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from service.commands import source
from service.errors import SettingsError
from service.settings import CLIENT_API_KEY, Settings, load_settings


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    source.add_arguments(made)
    return made


def parsed(*arguments: str) -> argparse.Namespace:
    return parser().parse_args(arguments)


def test_what_a_server_has_chosen_cannot_be_asked_of_it() -> None:
    with pytest.raises(SettingsError, match="--device, --threads: the server at --url"):
        source.prepare(parsed("--url", "http://service", "--threads", "2", "--device", "cpu", "--model", "demo"))


def test_every_setting_is_of_whoever_answers_or_of_serving_alone() -> None:
    serving_alone = {
        "version_policy", "model_control", "watch_repository", "watch_interval_ms", "instances", "devices",
        "host", "port", "root_path", "forwarded_allow_ips", "workers", "max_images", "max_queued_images",
        "max_input_pixels", "max_wait_ms", "timeout_ms", "receive_timeout_ms", "keep_alive_timeout_ms",
        "drain_timeout_ms", "heartbeat_timeout_ms", "max_restart_delay_ms", "explain", "v2_outputs", "tracing",
        "class_metrics", "sample_requests", "sample_rate", "sample_max_bytes", "sample_images", "sample_names",
        "api_keys", "cors_origins", "tls_certificate", "tls_key", "tls_key_password", "tls_ca_certificates",
        "cache_images", "cache_bytes", "cloud", "grpc_port",
    }  # fmt: skip
    of_some_commands = {"top_k"}
    offered = {action.dest for action in parser()._actions}
    assert Settings.model_fields.keys() - offered == serving_alone | of_some_commands


@pytest.mark.parametrize("models", ["a,b", "all", "a:1,a:2"])
@pytest.mark.parametrize("url", [(), ("--url", "http://service")])
def test_one_model_is_asked(models: str, url: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="--model: one model is asked here"):
        source.prepare(parsed(*url, "--model", models))


def test_a_key_without_a_server_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="give its --url"):
        source.prepare(parsed("--api-key-file", str(tmp_path / "key")))


@pytest.mark.parametrize(("content", "reason"), [("", "one line"), ("a\nb", "one line"), ("é", "cannot be read")])
async def test_a_file_that_holds_no_key_is_named(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "key"
    file.write_text(content, encoding="utf-8")
    options = parsed("--url", "http://service", "--api-key-file", str(file))
    with pytest.raises(SettingsError, match=f"{file}.*{reason}"):
        async with source.open_source(options, load_settings({}, environment={})):
            raise AssertionError("it was opened")


def test_the_clients_key_is_no_unknown_setting_of_the_service() -> None:
    load_settings({}, environment={CLIENT_API_KEY: "secret"})
