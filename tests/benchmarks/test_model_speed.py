"""The comparison of a model's speed, on the demo model with a layer a stage and without waiting for figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import rounds
from benchmarks.model_speed import agreement, chosen, main
from models.variants import VARIANTS


@pytest.mark.parametrize(
    ("name", "patterns", "takes_part"),
    [
        ("torch-plain", None, True),
        ("ort-other", None, True),
        ("openvino-f32-plain", None, True),
        ("openvino-bf16-other", None, False),
        ("openvino-bf16-other", ["openvino-*"], True),
        ("ort-ours", ["openvino-*", "limit"], False),
    ],
)
def test_contenders_are_chosen_by_pattern(name: str, patterns: list[str] | None, takes_part: bool) -> None:
    assert chosen(name, patterns) is takes_part


def test_logits_are_compared_with_those_of_the_same_images() -> None:
    expected = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert agreement([expected[:1], expected[:3]], expected, exact=True)["verdict"] == "exact"
    off = expected + np.float32(0.01)
    assert agreement([expected[:1], off[:2]], expected, exact=True)["verdict"] == "wrong"
    judged = agreement([off], expected, exact=False)
    assert judged["verdict"] == "approximate"
    assert judged["error_over_std"] == pytest.approx(0.01 / expected.std(), rel=1e-3)


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, dict[str, Any]]:
    config = VARIANTS["dat_demo"].config
    shallow = replace(config, stages=tuple(replace(stage, layers=stage.layers[-1:]) for stage in config.stages))
    monkeypatch.setitem(VARIANTS, "dat_demo", replace(VARIANTS["dat_demo"], config=shallow))
    monkeypatch.setattr(rounds, "MIN_TURN_S", 0.0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # so that main leaves the environment as it is
    status = main(["dat_demo", "--rounds", "2", "--batch", "1", "2", "--results", str(tmp_path), *arguments])
    return status, json.loads((tmp_path / "model-speed-dat_demo.json").read_text())


def test_contenders_are_checked_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, result = run(tmp_path, monkeypatch, "--contenders", "torch-*", "ort-plain", "limit")
    assert status == 0
    assert {row["contender"]: row["verdict"] for row in result["parity"]} == {
        "torch-plain": "exact",
        "torch-ours": "exact",
        "ort-plain": "exact",
    }
    measured = {(row["contender"], row["batch"]) for row in result["rows"]}
    assert measured == {
        (name, batch) for name in ("torch-plain", "torch-ours", "ort-plain", "limit") for batch in (1, 2)
    }
    assert all(row["time_over_limit"] > 0 and len(row["turns_ms"]) == 2 for row in result["rows"])


def test_graph_of_other_logits_is_measured_and_its_error_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = constant_graph(tmp_path / "constant.onnx")
    status, result = run(tmp_path, monkeypatch, "--contenders", "ort-constant", "--graph", f"constant={graph}")
    assert status == 0
    (row,) = result["parity"]
    assert row["verdict"] == "approximate"
    assert row["error_over_std"] > 1
    assert {row["contender"] for row in result["rows"]} == {"ort-constant"}


def test_contender_in_float32_with_other_logits_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.contenders.plain_graph", lambda model, variant, path: constant_graph(path))
    status, result = run(tmp_path, monkeypatch, "--contenders", "ort-plain")
    assert status == 1
    assert [row["verdict"] for row in result["parity"]] == ["wrong"]
    assert result["rows"] == []


def test_contender_without_its_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    status, result = run(tmp_path, monkeypatch, "--contenders", "compile-plain", "limit")
    assert status == 0
    (row,) = result["parity"]
    assert row["verdict"] == "unavailable"
    assert "no-such-compiler" in row["reason"]


def constant_graph(path: Path) -> Path:
    """Write a graph that takes the demo model's images and gives every image the logits 0 ... 9."""
    import onnx

    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (uint8[batch, 64, 64, 3] image) => (float[batch, 10] logits)
        <float[1, 10] row = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}>
        {
            shape = Shape <start = 0, end = 1> (image)
            ten = Constant <value = int64[1] {10}> ()
            wanted = Concat <axis = 0> (shape, ten)
            logits = Expand (row, wanted)
        }"""
    )
    onnx.save(model, path)
    return path
