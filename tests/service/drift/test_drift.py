"""The command, on answers that changed in known ways, and on files of all kinds."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from service.__main__ import main
from service.drift import reading
from service.drift.reading import MOST_VECTORS, read_answers
from service.model.directory import ModelDirectory
from service.samples.folder import LOCK_FILE
from tests.service.conftest import serving
from tests.service.drift.answers import CHANNELS, drawn, write
from tests.service.pictures import photo

ROOT = Path(__file__).parents[3]


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference"
    drawn(path / "part-000000.parquet", seed=1)
    (path / "_run.json").write_text("{}")
    return path


def report(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> dict[str, Any]:
    assert main(["drift", "--json", *map(str, arguments)]) == status
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def drifted(told: dict[str, Any]) -> dict[str, bool]:
    return {each["name"]: each["drift"] for each in told["findings"]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"labels": False, "scores": False, "embeddings": False}),
        ({"shares": (0.1, 0.2, 0.3, 0.4)}, {"labels": True, "scores": False, "embeddings": True}),
        ({"sureness": 2.0}, {"labels": False, "scores": True, "embeddings": False}),
        ({"shift": 1.0}, {"labels": False, "scores": False, "embeddings": True}),
    ],
    ids=["none", "labels", "scores", "embeddings"],
)
def test_what_has_changed_is_found_and_nothing_else(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, expected: dict[str, bool]
) -> None:
    drawn(tmp_path / "current.parquet", seed=2, **change)
    given = (reference, tmp_path / "current.parquet")
    told = report(capsys, *given, "--fail-on-drift", status=3 if any(expected.values()) else 0)
    assert drifted(told) == expected
    assert told["drift"] == any(expected.values())
    assert report(capsys, *given) == told  # the same numbers again, and no failure that nobody asked for


def test_few_images_are_no_evidence(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "current.parquet", [3, 3], [0.1, 0.2])
    assert not report(capsys, reference, tmp_path / "current.parquet")["drift"]


def test_limits_are_the_callers(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn(tmp_path / "current.parquet", seed=2, shares=(0.1, 0.2, 0.3, 0.4))
    given = (reference, tmp_path / "current.parquet")
    assert not report(capsys, *given, "--max-psi", 5, "--max-mmd", 1)["drift"]
    assert not report(capsys, *given, "--significance", 0)["drift"]
    with pytest.raises(SystemExit):
        main(["drift", *map(str, given), "--max-psi", "nan"])


def test_the_table_and_the_picture_show_the_same(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(tmp_path / "current.parquet", seed=2, shares=(0.1, 0.2, 0.3, 0.4))
    picture = tmp_path / "drift.svg"
    assert main(["drift", str(reference), str(tmp_path / "current.parquet"), "--plot", str(picture)]) == 0
    table = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line}
    assert rows["model"][1:] == ["tiny:3", "tiny:3"]
    assert rows["images"][1:] == ["400", "400"]
    assert [rows[name][4] for name in ("labels", "scores", "embeddings")] == ["yes", "no", "yes"]
    drawing = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    texts = [element.text or "" for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert sum("<class>" in text for text in texts) == 4
    assert main(["drift", str(reference), str(reference), "--plot", "drift.png"]) == 2


async def test_a_sample_is_compared_with_a_bulk_run(
    model: ModelDirectory, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for seed in range(4):
        (tmp_path / "photos" / f"{seed}.png").write_bytes(photo(seed=seed))
    async with serving(model, sample_requests=tmp_path / "sample", sample_rate=1) as served:
        for seed in range(4):
            asked = "/v1/features?outputs=logits&outputs=embedding"
            headers = {"Content-Type": "image/png"}
            assert (await served.http.post(asked, content=photo(seed=seed), headers=headers)).status_code == 200
    command = [sys.executable, "-m", "service", "bulk", str(tmp_path / "photos"), "--out", str(tmp_path / "bulk")]
    command += ["--repository", str(repository)]
    ran = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "sample" / LOCK_FILE).exists()
    told = report(capsys, tmp_path / "bulk", tmp_path / "sample")
    assert drifted(told) == {"labels": False, "scores": False, "embeddings": False}
    assert told["reference"] == told["current"]
    assert told["current"]["vectors"] == 4
    assert told["current"]["model"]["name"] == "tiny"


def test_rows_without_classes_or_vectors_are_counted_and_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [np.zeros(CHANNELS, np.float32), None, np.full(CHANNELS, np.nan, np.float32), np.ones(CHANNELS, np.float32)]
    write(tmp_path / "a.parquet", [None, 1, 2, 2], embeddings=rows)
    told = report(capsys, tmp_path / "a.parquet", tmp_path / "a.parquet")
    assert (told["current"]["images"], told["current"]["classified"], told["current"]["vectors"]) == (4, 3, 2)
    assert [(each["class_id"], each["current"]) for each in told["classes"]] == [(1, 1 / 3), (2, 2 / 3)]


def test_vectors_of_many_rows_are_drawn_from_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BATCH_ROWS", 512)
    rows = np.repeat(np.arange(5000, dtype=np.float32)[:, None], CHANNELS, axis=1)
    write(tmp_path / "a.parquet", [0] * 5000, embeddings=list(rows))
    path = str(tmp_path / "a.parquet")
    answers = read_answers([path], model=None, output="embedding", rng=np.random.default_rng(0))
    assert answers.vectors is not None
    drawn_rows = answers.vectors[:, 0]
    assert len(np.unique(drawn_rows)) == len(drawn_rows) == MOST_VECTORS
    assert drawn_rows.mean() == pytest.approx(2500, abs=200)  # more than four standard deviations
    assert (answers.images, answers.classes[0]) == (5000, 5000)


def test_of_several_models_one_is_chosen(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn(tmp_path / "mixed" / "a.parquet", seed=2)
    write(tmp_path / "mixed" / "b.parquet", [7] * 9, version=4)
    write(tmp_path / "mixed" / "c.parquet", [7] * 9, name="other")
    given = (str(reference), str(tmp_path / "mixed"))
    assert main(["drift", *given]) == 1
    assert "other:3 (weights abababab), tiny:3 (weights abababab), tiny:4" in capsys.readouterr().err
    assert report(capsys, *given, "--model", "tiny:3")["current"]["images"] == 400
    assert main(["drift", *given, "--model", "none"]) == 1
    assert "no answers of that model are there; those that are: tiny:3" in capsys.readouterr().err
    pattern = str(tmp_path / "mixed" / "b*.parquet")
    assert main(["drift", given[0], pattern]) == 0
    assert "of two models" in capsys.readouterr().err


def test_files_that_go_meanwhile_are_passed_over(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(reference / "part-000001.parquet", seed=3)
    found = reading.pq.ParquetFile

    def gone(path: str) -> Any:
        if path.endswith("1.parquet"):
            Path(path).unlink(missing_ok=True)
        return found(path)

    monkeypatch.setattr(reading.pq, "ParquetFile", gone)
    assert main(["drift", str(reference), str(reference)]) == 0
    assert "1 files were removed while others were read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "cannot be read"), (b"PAR1 no Parquet PAR1", "cannot be read"), (None, "neither of a bulk run nor")],
)
def test_files_that_hold_no_answers_are_named(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, complaint: str
) -> None:
    bad = tmp_path / "bad.parquet"
    if content is None:
        reading.pq.write_table(reading.pa.table({"predictions": [1]}), bad)
    else:
        bad.write_bytes(content)
    assert main(["drift", str(reference), str(bad)]) == 1
    error = capsys.readouterr().err
    assert complaint in error
    assert "bad.parquet" in error


@pytest.mark.parametrize("output", ["predictions", "time"])
def test_columns_that_are_no_vectors_are_refused(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    path = tmp_path / "sample.parquet"
    drawn(path, seed=2)
    table = reading.pq.read_table(path)
    reading.pq.write_table(table.append_column("time", reading.pa.array([0] * len(table))), path)
    assert main(["drift", str(reference), str(path), "--output", output]) == 1
    assert f"the column {output} does not hold vectors" in capsys.readouterr().err
    assert main(["drift", str(reference), str(path), "--output", "stage4"]) == 0
    assert "there is no stage4 in reference and current" in capsys.readouterr().err


def test_what_cannot_be_compared_is_said(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "one.parquet", [None, None])
    assert main(["drift", str(reference), str(tmp_path / "one.parquet")]) == 1
    assert "nothing to compare" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["drift", str(reference), str(tmp_path / "empty")]) == 1
    assert "holds no Parquet files" in capsys.readouterr().err
    assert main(["drift", str(reference), str(tmp_path / "absent")]) == 1
    assert "There is no such file or folder" in capsys.readouterr().err
