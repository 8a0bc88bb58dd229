"""The commands and programs of docs/clients.md do what it says: they make clients, which talk to a live server."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from models.demo.digits import training_and_held_out
from tests.conftest import ExportOnce
from tests.docs.pages import blocks_run_by
from tests.generated import EXAMPLE, checkout, run
from tests.integration.conftest import service_process

GENERATE, PROGRAM, GENERATE_TS, PROGRAM_TS = (block.text for block in blocks_run_by(__file__))
DIGIT = 8
ANSWERS = [["8"], ["8", "other.png unsupported_format"], ["8"], ["404 unknown_model"]]
"""What both programs print of a raw body, a form, a batch, and an error."""


@pytest.fixture(scope="module")
def server(exported: ExportOnce) -> Iterator[str]:
    with service_process(exported("dat_demo"), "--threads", "1") as process:
        yield f"http://127.0.0.1:{process.port}"


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    held_out = training_and_held_out()[1]
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    Image.fromarray(held_out.images[held_out.classes == DIGIT][11]).save(path)
    return path


def test_the_python_client_is_generated_without_a_warning_and_does_all_that_is_shown(
    server: str, digit: Path, tmp_path: Path
) -> None:
    generated = run("sh", "-ec", GENERATE, directory=checkout(tmp_path))
    assert generated.returncode == 0, generated.stderr
    assert re.fullmatch(r"Generating \w+\n", generated.stdout)
    (tmp_path / "program.py").write_text(PROGRAM)
    typed = run(sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "program.py", directory=tmp_path)
    assert typed.returncode == 0, typed.stdout
    ended = run(sys.executable, "program.py", server, digit, directory=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [*map(str, ANSWERS), "(128,) True True"]


def test_the_typescript_client_is_generated_type_checks_and_does_all_that_is_shown(
    server: str, digit: Path, tmp_path: Path
) -> None:
    checkout(tmp_path)
    (tmp_path / EXAMPLE / "src" / "program.ts").write_text(PROGRAM_TS)
    assert "npm ci\n" in GENERATE_TS
    built = run("sh", "-ec", GENERATE_TS.replace("npm ci\n", ""), directory=tmp_path)  # make has done that
    assert built.returncode == 0, built.stdout + built.stderr
    assert "warn" not in built.stdout.lower()
    ended = run("node", EXAMPLE / "dist" / "program.js", server, digit, directory=tmp_path)
    assert ended.returncode == 0, ended.stderr
    shown = [re.findall(r"'([^']*)'", line) for line in ended.stdout.splitlines()]
    assert shown == [*ANSWERS, []]
    assert ended.stdout.splitlines()[-1] == "128 true 1,128"
