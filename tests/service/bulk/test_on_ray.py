"""The Ray command of docs/bulk.md, on a cluster of several nodes, in the environment that has Ray."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.__main__ import main
from tests.docs.pages import blocks_run_by, commands_of
from tests.service.bulk.sets import rows_of, vector, write_files, write_shard
from tests.service.pictures import photo

ROOT = Path(__file__).parents[3]
RAY_PYTHON = ROOT / ".venv" / "ray" / "bin" / "python"
PATIENCE_S = 180


def without_outputs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows without what floats differ in, and errors without the forms that each environment can read."""
    named = ("source", "row", "key", "name")
    classes = [row["predictions"] and [each["class_id"] for each in row["predictions"]] for row in rows]
    errors = [row["error"] and {**row["error"], "detail": row["error"]["detail"].partition(":")[0]} for row in rows]
    return [
        {**{name: row[name] for name in named}, "error": error, "classes": ids}
        for row, error, ids in zip(rows, errors, classes, strict=True)
    ]


@pytest.mark.skipif(
    not RAY_PYTHON.exists(), reason="there is no environment with Ray in .venv/ray; `make test` makes it"
)
def test_the_rows_are_those_of_one_process_though_a_node_is_killed(
    repository: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path / "photos", 40, bad=(3, 17))
    write_shard(tmp_path / "photos" / "s.tar", {f"{number}.png": photo(seed=number) for number in range(10)})
    pq.write_table(pa.table({"image": [photo(), None, photo(seed=1)]}), tmp_path / "photos" / "t.parquet")
    ((*command, option, _),) = (words for block in blocks_run_by(__file__) for words in commands_of(block))
    assert (command[:4], option) == (["python", "-m", "service", "bulk"], "--ray")
    asked = command[4:]
    options = ["--part-images", "4", "--repository", str(repository), "--device", "cpu", "--threads", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAT_")}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_REPORT_URL": ""}
    ended = subprocess.run(
        [RAY_PYTHON, "-m", "tests.service.bulk.ray_cluster", *asked, *options],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    summary = json.loads(next(line for line in ended.stdout.splitlines() if line.startswith("{")))
    assert (summary["complete"], summary["images"], summary["bad_images"]) == (True, 53, 3)
    assert not list((tmp_path / "results").glob(".*"))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(["bulk", *asked, *options]) == 1
        assert json.loads(capfd.readouterr().out)["parts_resumed"] == summary["parts"]
        main(["bulk", "photos/", "--out", "alone", *options])
    rows, alone = rows_of(tmp_path / "results"), rows_of(tmp_path / "alone")
    assert without_outputs(rows) == without_outputs(alone)
    for row, other in zip(rows, alone, strict=True):
        if row["error"] is None:
            np.testing.assert_allclose(vector(row, "embedding"), vector(other, "embedding"), atol=1e-5)
