"""One number says which release this is, wherever it is asked."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from service import VERSION
from service.__main__ import main
from tests.service.conftest import Served

ROOT = Path(__file__).parents[2]


def test_the_release_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == VERSION


async def test_the_server_says_its_release(served: Served) -> None:
    assert (await served.http.get("/v2")).json()["version"] == VERSION


def test_the_command_line_prints_the_release(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"dat-serve {VERSION}\n"
