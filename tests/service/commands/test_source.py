from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from service.commands import source
from service.errors import SettingsError
from service.settings import CLIENT_API_KEY, load_settings


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    source.add_arguments(parser)
    return parser.parse_args(arguments)


def test_what_a_server_has_chosen_cannot_be_asked_of_it() -> None:
    with pytest.raises(SettingsError, match="--device, --threads: the server at --url"):
        source.prepare(parsed("--url", "http://service", "--threads", "2", "--device", "cpu", "--model", "demo"))


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
