"""What is prepared for a GPU, run to its end on a CPU with small shapes; and what becomes of contenders that fail."""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import contenders, gpu
from benchmarks.contender_process import ContenderLost, ContenderProcess, Spec
from benchmarks.device_figures import distance, speeds
from benchmarks.forms import FormUnavailable, form_of
from benchmarks.gpu import GRAPHS, main
from benchmarks.journal import Journal
from benchmarks.rounds import Turn
from export import __main__ as exporter
from export.job import check_job
from export.progress import Progress
from export.source import from_file
from models.variants import VARIANTS

SMALL = ["--device", "cpu", "--variants", "dat_demo", "--batch", "1", "2", "--rounds", "1"]
SMALL += ["--torch", "torch-plain", "--workers", "1"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_phases_run_to_their_end(tmp_path: Path) -> None:
    results = tmp_path / "gpu.jsonl"
    status = main([*SMALL, "--load-s", "0.3", "--in-flight", "2", "--results", str(results)])
    rows = rows_of(results)
    assert status == 0, rows
    kinds = Counter(row["kind"] for row in rows)
    assert set(kinds) == {"machine", "ceiling", "ready", "agreement", "speed", "memory", "node", "http", "end"}
    assert kinds["speed"] == 4
    assert all(row["largest_over_std"] < 1e-4 for row in rows if row["kind"] == "agreement")
    assert all(row["images_per_s"] > 0 for row in rows if row["kind"] in ("speed", "http"))


@pytest.mark.parametrize("variant", ["dat_tiny", "dat_pp_tiny", "dat_base"])
@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_that_is_wanted_is_one_that_the_exporter_makes(name: str, variant: str) -> None:
    arguments = exporter._parser().parse_args([variant, "--random-weights", "0", *shlex.split(GRAPHS[name])])
    check_job(exporter._job(arguments, Progress(io.StringIO())))


def test_a_fused_graph_runs_by_the_reference_on_a_cpu(
    fused_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = VARIANTS["dat_demo"]
    size = (variant.input_size, variant.input_size)
    trained = from_file(Path("models/demo/dat_demo.safetensors"), variant.config, image_size=size)
    monkeypatch.setattr(contenders, "from_seed", lambda *_, **__: trained)
    already = [sys.executable, "-c", f"print({str(fused_demo)!r})"]
    monkeypatch.setattr(gpu, "export_command", lambda *_: already)
    results = tmp_path / "gpu.jsonl"
    arguments = ["--device", "cpu", "--variants", "dat_demo", "--batch", "1", "2", "--rounds", "1", "--torch"]
    status = main([*arguments, "--graph", "fused=", "--no-http", "--results", str(results)])
    rows = rows_of(results)
    assert status == 0, rows
    (agreement,) = [row for row in rows if row["kind"] == "agreement"]
    assert agreement["contender"] == "ort-fused"
    assert 0 < agreement["rms_over_std"] < 1e-2
    assert {row["operator"] for row in rows if row["kind"] == "node"} >= {"DeformableAttention", "PatchEmbedding"}


def test_a_fused_graph_without_its_kernels_is_lost_with_what_is_missing(
    fused_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dat_operators", None)
    with pytest.raises(FormUnavailable, match=r"fused\.onnx cannot run on cuda: .*dat_operators"):
        form_of(fused_demo, "cuda", tmp_path)


def test_an_export_that_fails_is_lost_with_its_reason_and_the_others_go_on(tmp_path: Path) -> None:
    results = tmp_path / "gpu.jsonl"
    status = main([*SMALL, "--graph", "odd=--target cpu --opset 3", "--no-http", "--results", str(results)])
    rows = rows_of(results)
    assert status == 1
    (lost,) = [row for row in rows if row["kind"] == "lost"]
    assert lost["contender"] == "ort-odd"
    assert "opset" in lost["why"]
    assert {row["contender"] for row in rows if row["kind"] == "speed"} == {"torch-plain"}


def test_a_contender_that_breaks_says_why_and_ends(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    contender = ContenderProcess(Spec("ort-broken", "dat_demo", 0, "cpu", (1,), broken))
    with pytest.raises(ContenderLost, match=r"(?s)ort-broken: .*broken\.onnx cannot be loaded as a model"):
        contender.wait_ready(120)
    with pytest.raises(ContenderLost, match="its process has ended"):
        contender.turn(1, 0.0, 1.0)
    contender.close()


def test_a_contender_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    contender = ContenderProcess(Spec("torch-plain", "dat_demo", 0, "cpu", (1,)))
    with pytest.raises(ContenderLost, match=r"torch-plain: no answer in 0 s \(exit status -9\)"):
        contender.wait_ready(0.0)
    contender.close()


def test_distance_is_of_the_worst_batch_over_what_is_expected() -> None:
    expected = np.array([[0.0, 2.0], [4.0, 6.0]], np.float32)
    rms, largest = distance([expected[:1], expected + np.float32([[0, 0], [0, 1]])], expected)
    assert largest == pytest.approx(1 / expected.std())
    assert rms == pytest.approx(0.5 / expected.std())
    assert np.isnan(distance([np.full((1, 2), np.nan, np.float32), expected], expected)[0])


def test_speeds_are_compared_within_rounds() -> None:
    turns = {"base": [Turn(10, 0), Turn(30, 0), Turn(20, 0)], "other": [Turn(5, 0), Turn(10, 0)]}
    rows = {row["contender"]: row for row in speeds(turns, batch=4, baseline="base")}
    assert rows["base"]["images_per_s"] == 200
    assert rows["other"]["over_base"] == 2.5
    assert [row["over_none"] for row in speeds(turns, batch=4, baseline="none")] == [None, None]


def test_rows_are_there_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "below" / "rows.jsonl"
    journal = Journal(path, budget_s=0.0)
    journal.write("speed", images_per_s=1)
    assert rows_of(path)[0]["images_per_s"] == 1
    assert journal.left_s <= 0
    journal.close()
