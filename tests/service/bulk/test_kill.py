"""SIGKILL at any step of a run, and what the run that continues it makes of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from service.bulk.journal import INPUTS_FILE, LOCK_FILE, RUN_FILE
from tests.service.bulk.sets import rows_of, write_files, write_shard
from tests.service.pictures import photo

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60
KILLS = 10
NEVER = 1_000_000


def command(step: int, kind: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAT_")}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.service.bulk.stopping", str(step), kind, "bulk", *map(str, arguments)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def killed_at(step: int, arguments: Sequence[object], *, kind: str = "any") -> str | None:
    """Kill a run at a step of a kind, and return the step's kind; None where the run ended before it."""
    with command(step, kind, *arguments) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if line.startswith("{"):
            assert process.wait(PATIENCE_S) == 1, line
            return None
        assert line, process.communicate()[1]
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    return line.strip()


def run_to_the_end(arguments: Sequence[object]) -> dict[str, Any]:
    with command(NEVER, "any", *arguments) as process:
        out, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, errors  # there are bad images
    summary: dict[str, Any] = json.loads(out)
    assert summary["complete"]
    return summary


def parts_in(out: Path) -> dict[str, tuple[int, int]]:
    """Return the finished parts, each of which must be whole, with what shows whether they are written anew."""
    found = {}
    for path in sorted(out.glob("part-*.parquet")) if out.exists() else []:
        pq.read_table(path)
        found[path.name] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


@pytest.fixture
def arguments(repository: Path, tmp_path: Path) -> list[object]:
    """The command's, on 62 images in 6 parts, some of them bad, without the folder to write to."""
    write_files(tmp_path / "in", 40, bad=(3, 17, 18))
    write_shard(tmp_path / "in" / "x.tar", {f"{number}.png": photo(seed=number) for number in range(22)})
    return [tmp_path / "in", "--part-images", 8, "--repository", repository, "--threads", 1, "--device", "cpu"]


def test_killed_ten_times_anywhere_a_run_ends_with_every_row_once(arguments: list[object], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert run_to_the_end([*arguments, "--out", whole])["images"] == 62
    expected = rows_of(whole)

    chosen = random.Random(6)
    out, kinds, folders = tmp_path / "out0", [], 1
    while len(kinds) < KILLS:
        before = parts_in(out)
        kind = killed_at(chosen.randint(1, 120), [*arguments, "--out", out])
        after = parts_in(out)
        assert {name: after.get(name) for name in before} == before  # nothing is done twice, nothing is lost
        if kind is None:
            assert rows_of(out) == expected
            out, folders = tmp_path / f"out{folders}", folders + 1
        else:
            kinds.append(kind)
    before = parts_in(out)
    summary = run_to_the_end([*arguments, "--out", out])
    assert rows_of(out) == expected
    assert (summary["images"], summary["bad_images"], summary["parts_done"]) == (62, 3, 6)
    assert summary["parts_resumed"] == len(before)
    assert {name: parts_in(out)[name] for name in before} == before
    assert len(set(kinds)) > 3, kinds
    left = {path.name for path in out.iterdir()} - parts_in(out).keys()
    assert left == {LOCK_FILE, INPUTS_FILE, RUN_FILE}


def test_a_kill_before_a_renaming_costs_what_was_not_renamed(arguments: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [*arguments, "--out", out]
    assert killed_at(2, arguments, kind="before replace") == "before replace"
    assert {path.name for path in out.iterdir()} == {LOCK_FILE, INPUTS_FILE, f".{RUN_FILE}.unfinished"}
    assert killed_at(4, arguments, kind="before replace") == "before replace"
    done = parts_in(out)
    assert list(done) == ["part-000000.parquet"]
    assert [path.name for path in out.glob(".*")] == [".part-000001.parquet.unfinished"]
    assert run_to_the_end(arguments)["parts_resumed"] == 1
    assert parts_in(out).items() >= done.items()
    assert not list(out.glob(".*"))
