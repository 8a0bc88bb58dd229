"""The command on the tiny model, which it loads in this process or asks over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.__main__ import main
from service.bulk.journal import open_journal
from service.bulk.writing import shapes_of
from service.model.directory import ModelDirectory
from tests.integration.conftest import PATIENCE_S, ROOT, service_thread
from tests.service import tiny_model
from tests.service.bulk.sets import BAD, rows_of, vector, write_files, write_shard
from tests.service.pictures import expected, photo

BAD_NUMBERS = (2, 9)
COUNT = 12


@pytest.fixture
def options(repository: Path) -> list[str]:
    return ["--repository", str(repository), "--device", "cpu", "--threads", "1", "--part-images", "5"]


def images() -> dict[str, bytes]:
    return {f"{number:03}.png": BAD if number in BAD_NUMBERS else photo(seed=number) for number in range(COUNT)}


def bulk(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    """Run the command, and return its exit status, its summary, and what it said besides."""
    status = main(["bulk", *map(str, arguments)])
    out, errors = capfd.readouterr()
    return status, json.loads(out) if out else {}, errors


def check_rows(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == COUNT
    for number, row in enumerate(rows):
        if number in BAD_NUMBERS:
            assert row["error"]["code"] == "unsupported_format"
            assert (row["predictions"], row["embedding"], row["stage4"]) == (None, None, None)
            continue
        assert row["error"] is None
        for output in ("embedding", "stage4"):
            wanted = expected(photo(seed=number), output)
            np.testing.assert_allclose(vector(row, output).reshape(wanted.shape), wanted, atol=1e-4)
        logits = expected(photo(seed=number), "logits").astype(np.float64)
        scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = np.argsort(-scores)[:3]
        assert [each["class_id"] for each in row["predictions"]] == best.tolist()
        assert [each["label"] for each in row["predictions"]] == [tiny_model.LABELS[each] for each in best]
        np.testing.assert_allclose([each["score"] for each in row["predictions"]], scores[best], atol=1e-4)


def write_input(kind: str, tmp_path: Path) -> Path:
    if kind == "folder":
        write_files(tmp_path / "in", COUNT, bad=BAD_NUMBERS)
        return tmp_path / "in"
    if kind == "parquet":
        cells = [{"bytes": data, "path": name} for name, data in images().items()]
        pq.write_table(pa.table({"image": cells}), tmp_path / "in.parquet", row_group_size=2)
        return tmp_path / "in.parquet"
    return write_shard(tmp_path / f"in{kind}", images())


@pytest.mark.parametrize("kind", ["folder", ".tar", ".tar.gz", "parquet"])
def test_every_image_has_its_row_in_order_and_bad_ones_say_why(
    kind: str, options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given, out = write_input(kind, tmp_path), tmp_path / "out"
    arguments = [given, "--out", out, *options, "--outputs", "embedding,stage4", "--top-k", 3]
    status, summary, errors = bulk(capfd, *arguments)
    parts = 1 if kind.startswith(".tar") else 2 if kind == "parquet" else 3
    assert status == 1
    assert (
        summary.items() >= {"complete": True, "images": 12, "bad_images": 2, "parts": parts, "parts_resumed": 0}.items()
    )
    assert len([line for line in errors.splitlines() if "images/s" in line]) == parts
    rows = rows_of(out)
    check_rows(rows)
    names = list(images())
    if kind == "folder":
        assert [(row["source"], row["row"]) for row in rows] == [(str(given / name), 0) for name in names]
    else:
        assert [(row["source"], row["row"], row["name"]) for row in rows] == [
            (str(given), number, name) for number, name in enumerate(names)
        ]
    keys = [name.removesuffix(".png") if kind.startswith(".tar") else None for name in names]
    assert [row["key"] for row in rows] == keys
    shapes = shapes_of(pq.read_schema(out / "part-000000.parquet"))
    assert shapes == {name: tiny_model.shapes()[name] for name in ("embedding", "stage4")}

    status, summary, errors = bulk(capfd, *arguments)
    assert (status, summary["parts_resumed"], summary["images"], summary["bad_images"]) == (1, parts, 12, 2)
    assert rows_of(out) == rows


def test_a_server_gives_the_same_rows(model: ModelDirectory, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = write_input("folder", tmp_path)
    with service_thread(model) as threaded:
        status, summary, _ = bulk(
            capfd, given, "--out", tmp_path / "out", "--url", f"http://127.0.0.1:{threaded.port}",
            "--outputs", "embedding,stage4", "--top-k", 3, "--part-images", 5,
        )  # fmt: skip
    assert (status, summary["images"], summary["bad_images"]) == (1, 12, 2)
    check_rows(rows_of(tmp_path / "out"))


def test_inputs_of_all_kinds_go_together_and_what_lies_in_the_results_is_none(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path / "in" / "deep", 3)
    write_shard(tmp_path / "in" / "a.tar", {"x.png": photo()})
    pq.write_table(pa.table({"jpg": [photo()], "other": ["-"]}), tmp_path / "in" / "b.parquet")
    arguments = [tmp_path / "in", tmp_path / "in" / "deep" / "0*.png", "--out", tmp_path / "in" / "out", *options]
    for _ in range(2):
        status, summary, _ = bulk(capfd, *arguments, "--outputs", "none")
        assert (status, summary["images"], summary["bad_images"]) == (0, 5, 0)
    rows = rows_of(tmp_path / "in" / "out")
    assert [Path(row["source"]).name for row in rows] == ["a.tar", "b.parquet", "000.png", "001.png", "002.png"]
    assert "embedding" not in rows[0]


def test_what_is_left_out_is_said_counted_and_in_the_exit_status(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path / "in", 2)
    (tmp_path / "in" / "000.json").write_bytes(b"{}")
    write_shard(tmp_path / "in" / "a.tar", {"x.png": photo(), "x.cls": b"1"})
    arguments = [tmp_path / "in", "--out", tmp_path / "out", *options]
    status, summary, errors = bulk(capfd, *arguments)
    assert (status, summary["left_out"]) == (0, {"others": {}, "companions": {".json": 1, ".cls": 1}, "hidden": 0})
    assert "left out of the files in folders: 1 that belong to images (.json 1)" in errors
    assert "1 images, left out 1 that belong to images (.cls 1)" in errors

    write_shard(tmp_path / "b.tar", {"x.png": photo(), "y.jxl": b""})
    arguments = [tmp_path / "b.tar", "--out", tmp_path / "more", *options]
    for _ in range(2):  # the second finds the part there
        status, summary, _ = bulk(capfd, *arguments)
        assert (status, summary["images"], summary["bad_images"]) == (1, 1, 0)
        assert summary["left_out"]["others"] == {".jxl": 1}


def test_another_run_is_refused_with_what_is_different(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given, out = write_input("folder", tmp_path), tmp_path / "out"
    arguments = [given, "--out", out, *options]
    bulk(capfd, *arguments)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    status, summary, errors = bulk(capfd, *arguments, "--top-k", 2)
    assert (status, summary) == (1, {})
    assert "top_k was 5 and is 2" in errors
    _, _, errors = bulk(capfd, *arguments, "--max-image-segments", 9)
    assert "max_image_segments was null and is 9" in errors
    (given / "012.png").write_bytes(photo())
    status, summary, errors = bulk(capfd, *arguments)
    assert (status, summary) == (1, {})
    assert f"{given / '012.png'} was not among its inputs" in errors
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_two_runs_in_one_folder_are_refused(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = write_input("folder", tmp_path)
    with open_journal(tmp_path / "out"):
        status, _, errors = bulk(capfd, given, "--out", tmp_path / "out", *options)
    assert (status, "another run is at work" in errors) == (1, True)


def test_what_is_not_there_is_named_before_anything_is_written(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path / "in", 1)
    status, _, errors = bulk(capfd, tmp_path / "in", tmp_path / "gone*.tar", "--out", tmp_path / "out", *options)
    assert (status, "No file matches" in errors) == (1, True)
    assert not (tmp_path / "out").exists()
    status, _, errors = bulk(capfd, tmp_path / "in", "--out", tmp_path / "out", *options, "--outputs", "stage9")
    assert (status, "'stage9'" in errors) == (2, True)


def test_without_pyarrow_the_command_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    status, _, errors = bulk(capfd, tmp_path, "--out", tmp_path / "out")
    assert status == 2
    assert "requirements/bulk.txt" in errors


def test_an_interrupted_run_says_what_is_done_and_is_continued(options: list[str], tmp_path: Path) -> None:
    write_files(tmp_path / "in", 60)
    last = tmp_path / "in" / "last.png"
    os.mkfifo(last)  # a run does not end before this has been written, or closed
    writer = os.open(last, os.O_RDWR)
    command = [sys.executable, "-m", "service", "bulk", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("dat-serve: part 0: 5 images; 1 of 13 parts")
        process.send_signal(signal.SIGINT)
        os.close(writer)
        out, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    summary = json.loads(out)
    assert not summary["complete"]
    assert 0 < summary["parts_done"] < 13
    assert len(rows_of(tmp_path / "out")) == summary["images"]
    writing = threading.Thread(target=lambda: last.open("wb").close())
    writing.start()
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    writing.join(PATIENCE_S)
    continued = json.loads(ended.stdout)
    assert (ended.returncode, continued["complete"]) == (1, True)
    assert (continued["parts_resumed"], continued["images"]) == (summary["parts_done"], 61)
    rows = rows_of(tmp_path / "out")
    assert [Path(row["source"]).name for row in rows] == [*(f"{number:03}.png" for number in range(60)), "last.png"]
    assert [row["error"]["code"] for row in rows if row["error"]] == ["empty_image"]
