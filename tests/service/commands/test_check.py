"""`check` refuses what `serve` would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.__main__ import main
from tests.service import tiny_model


def test_outputs_of_other_shapes_than_promised_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tiny_model.write(tmp_path) / "manifest.json"
    document = json.loads(manifest.read_text())
    (embedding,) = (output for output in document["outputs"] if output["name"] == "embedding")
    embedding["shape"] = [embedding["shape"][0] + 1]
    manifest.write_text(json.dumps(document))
    assert main(["check", "--repository", str(tmp_path), "--device", "cpu", "--batch-buckets", "1"]) == 1
    assert "output embedding" in capsys.readouterr().err


def test_every_bucket_is_run_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model.write(tmp_path)
    assert main(["check", "--repository", str(tmp_path), "--device", "cpu", "--batch-buckets", "1,3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("bucket")] == ["1", "3"]


def test_the_same_is_said_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model.write(tmp_path)
    arguments = ["check", "--repository", str(tmp_path), "--device", "cpu", "--batch-buckets", "1,3"]
    assert main([*arguments, "--format", "json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert (model["name"], model["version"]) == (tiny_model.NAME, tiny_model.VERSION)
    (device,) = model["devices"]
    assert (device["device"], device["input"]) == ("cpu", [tiny_model.SIZE, tiny_model.SIZE])
    assert [each["images"] for each in device["buckets"]] == [1, 3]
    assert all(each["run_ms"] > 0 for each in device["buckets"])
