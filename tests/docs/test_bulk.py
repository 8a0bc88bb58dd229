"""The commands and the program of docs/bulk.md, on small inputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.docs.pages import blocks_run_by
from tests.generated import run
from tests.integration.conftest import ROOT
from tests.service.bulk.sets import rows_of, write_files, write_shard
from tests.service.conftest import repository as repository
from tests.service.pictures import photo


def test_the_page_runs_as_it_stands(repository: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "photos", 3)
    (tmp_path / "shards").mkdir()
    for name in ("a", "b"):
        write_shard(tmp_path / "shards" / f"{name}.tar", {f"{name}.png": photo(), "bad.png": b"bad"})
    pq.write_table(pa.table({"image": [photo()]}), tmp_path / "rows.parquet")
    settings = {"PYTHONPATH": str(ROOT), "DAT_REPOSITORY": str(repository), "DAT_DEVICE": "cpu", "DAT_THREADS": "1"}
    commands, program = (block.text for block in blocks_run_by(__file__))
    ended = run("sh", "-c", commands, directory=tmp_path, environment=settings)
    assert ended.returncode == 1, ended.stderr  # of the last command, whose shards have bad images
    summaries = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [(each["complete"], each["images"], each["bad_images"]) for each in summaries] == [
        (True, 3, 0),
        (True, 5, 2),
    ]
    assert len(rows_of(tmp_path / "results")) == 3
    shown = run(sys.executable, "-c", program, directory=tmp_path)
    assert shown.stdout == "5 (3, 3, 2, 2)\n", shown.stderr
