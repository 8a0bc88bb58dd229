"""What it costs that a model can say where it looked: to those who never ask, and to those who ask beside others.

Two servers of one model: from its repository, and from a copy of it as `python -m export --no-explain` leaves it. Both
run side by side and are measured in turn.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import RunningServer, resident_bytes
from benchmarks.scenarios import Bench, Result, closed_loop_row, median
from service.model.directory import ModelDirectory, select_model
from service.model.manifest import EXPLAIN_FILE, MANIFEST_FILE, MODEL_FILE

WITH: Final = "with explain.onnx"
WITHOUT: Final = "without"
EXPLAIN: Final = "/v1/explain"
_MARGIN_S = 3.0
"""By which the explanations in the background outlast the classifications that are measured."""


def explaining(bench: Bench) -> Result:
    """Classification with and without explain.onnx loaded, memory, and classification while explanations run."""
    model = select_model(bench.repository, name=bench.model)
    if model.manifest.explain is None:
        raise SystemExit(
            f"{bench.model} in {bench.repository} was exported with --no-explain; there is nothing to measure"
        )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        plain = replace(bench, repository=Path(folder), port=bench.port + 1)
        copy = _without_explain(model, plain.repository)
        benches = {WITHOUT: plain, WITH: bench}
        targets = {
            name: running.enter_context(each.serve("--workers", str(bench.workers))) for name, each in benches.items()
        }
        resident = {"started": _resident(targets)}
        rounds = _rounds(bench, targets)
        resident["after classifying"] = _resident(targets)
        beside = _beside_explanations(bench, targets[WITH])
        resident["after explaining"] = _resident(targets)
        same_bytes = (copy / MODEL_FILE).read_bytes() == model.model_path.read_bytes()
    return {
        "model_file_bytes": model.manifest.files[MODEL_FILE].size_bytes,
        "explain_file_bytes": model.manifest.files[EXPLAIN_FILE].size_bytes,
        "model_files_are_equal": same_bytes,
        "resident_mib": resident,
        "beside_explanations": beside,
        "rows": _rows(rounds),
    }


def _without_explain(model: ModelDirectory, repository: Path) -> Path:
    """Copy a model directory as an export without explain.onnx would have left it."""
    directory = repository / model.path.parent.name / model.path.name
    shutil.copytree(model.path, directory, ignore=shutil.ignore_patterns(EXPLAIN_FILE, "tensorrt"))
    manifest: dict[str, Any] = json.loads((directory / MANIFEST_FILE).read_text())
    manifest["explain"] = None
    del manifest["files"][EXPLAIN_FILE]
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest))
    return directory


def _resident(targets: dict[str, RunningServer]) -> dict[str, float]:
    return {name: round(resident_bytes(target.pid) / 2**20, 1) for name, target in targets.items()}


def _rounds(bench: Bench, targets: dict[str, RunningServer]) -> dict[tuple[str, int], list[Result]]:
    """Return the reports of each server and concurrency; the first round warms up, and the servers take turns first."""
    rounds: dict[tuple[str, int], list[Result]] = {
        (name, concurrency): [] for concurrency in bench.concurrency for name in targets
    }
    for number in range(bench.rounds + 1):
        order = list(rounds.items())
        for (name, concurrency), reports in order if number % 2 else reversed(order):
            report = bench.load(targets[name], "--concurrency", concurrency)
            if number > 0:
                reports.append(report)
    return rounds


def _rows(rounds: dict[tuple[str, int], list[Result]]) -> list[Result]:
    rows = []
    for (name, concurrency), reports in rounds.items():
        pairs = list(zip(reports, rounds[WITHOUT, concurrency], strict=True))
        rows.append(
            {
                "server": name,
                **closed_loop_row(concurrency, reports),
                "rate_over_without": median(
                    [one["goodput_images_per_s"] / other["goodput_images_per_s"] for one, other in pairs]
                ),
                "p50_over_without": median([_p50(one) / _p50(other) for one, other in pairs]),
                "cpu_over_without": median([_server_cpu_ms(one) / _server_cpu_ms(other) for one, other in pairs]),
            }
        )
    return rows


def _beside_explanations(bench: Bench, target: RunningServer) -> Result:
    """Return the latency of one client's classifications: alone, and while another asks for explanations on end."""
    alone, beside, explanations = [], [], []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(bench.rounds):
            alone.append(bench.load(target, "--concurrency", 1))
            in_background = pool.submit(
                bench.load, target, "--concurrency", 1, "--target", EXPLAIN, duration_s=bench.duration_s + _MARGIN_S
            )
            beside.append(bench.load(target, "--concurrency", 1))
            explanations.append(in_background.result())
    return {
        "classify_p50_ms_alone": median([_p50(report) for report in alone]),
        "classify_p50_ms_beside": median([_p50(report) for report in beside]),
        "explain_p50_ms": median([_p50(report) for report in explanations]),
        "classify_p50_over_alone": round(
            statistics.median(_p50(one) / _p50(other) for one, other in zip(beside, alone, strict=True)), 3
        ),
        "classify_p99_ms_beside": median([report["accepted_ms"]["interactive"]["p99"] for report in beside]),
        "refused": _refused([*alone, *beside, *explanations]),
    }


def _p50(report: Result) -> float:
    return float(report["accepted_ms"]["interactive"]["p50"])


def _server_cpu_ms(report: Result) -> float:
    return float(report["cpu_ms_per_answer"]["server"])


def _refused(reports: Sequence[Result]) -> int:
    return sum(kind["count"] for report in reports for kind in report["refused_ms"].values())
