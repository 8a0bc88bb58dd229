"""The commands of docs/quality.md, on a bulk run's answers and those of a sample."""

from __future__ import annotations

import json
from pathlib import Path

from tests.docs.pages import blocks_run_by
from tests.generated import run
from tests.integration.conftest import ROOT
from tests.service.drift.answers import drawn


def test_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    drawn(tmp_path / "results" / "part-000000.parquet", seed=1)
    drawn(tmp_path / "sample" / "20261128T102233Z-tiny-3-3fa2c19b.parquet", seed=2, shares=(0.1, 0.2, 0.3, 0.4))
    (commands,) = (block.text for block in blocks_run_by(__file__))
    ended = run("sh", "-c", commands, directory=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 3, ended.stderr
    table, _, report = ended.stdout.partition("{")
    assert "population stability index" in table
    assert json.loads("{" + report)["drift"]
    assert (tmp_path / "drift.svg").exists()
