"""Figures in the pages are those of the recorded benchmarks, in the files that stand beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.docs.pages import ROOT

Result = dict[str, Any]


def result(name: str) -> Result:
    recorded: Result = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return recorded


def row(recorded: Result, **facts: object) -> Result:
    (found,) = (each for each in recorded["rows"] if all(each[name] == value for name, value in facts.items()))
    return found


def rows(recorded: Result, load: float) -> list[Result]:
    return [each for each in recorded["rows"] if each["load"] == load]


def interval(values: list[float], form: str = ".0f") -> str:
    return f"{min(values):{form}} to {max(values):{form}}"


def interactive(recorded: Result, load: float, percentile: str) -> str:
    return interval([each["accepted_ms"]["interactive"][percentile] for each in rows(recorded, load)])


def one_image(recorded: Result, contender: str, batch: int) -> float:
    return float(row(recorded, contender=contender, batch=batch)["ms_per_image"])


FIGURES: list[tuple[str, str, Callable[[Result], str]]] = [
    ("tuning", "model-speed-dat_tiny", lambda it: f"image takes {one_image(it, 'ort-ours', 1):.1f} ms"),
    ("tuning", "model-speed-dat_tiny", lambda it: f"8 in one run {one_image(it, 'ort-ours', 8):.1f} ms each"),
    (
        "tuning", "model-speed-dat_tiny",
        lambda it: f"{one_image(it, 'ort-int8', 1):.1f} instead of {one_image(it, 'ort-ours', 1):.1f} ms for one image",
    ),
    (
        "tuning", "model-speed-dat_tiny",
        lambda it: f"{one_image(it, 'ort-int8', 8):.1f} instead of {one_image(it, 'ort-ours', 8):.1f} ms each",
    ),
    ("tuning", "overload-dat_tiny", lambda it: f"a p50 of {interactive(it, 3.0, 'p50')} ms"),
    ("tuning", "throughput-dat_tiny", lambda it: f"takes {it['limits']['decoder']['cpu_ms']:.1f} ms of processor time"),
    ("tuning", "throughput-dat_tiny", lambda it: f"dat_tiny takes {it['limits']['session']['cpu_ms']:.0f} ms"),
    *(
        (
            "tuning", "null-workers-dat_null",
            lambda it, workers=workers: interval(
                [each["images_per_s"] for each in it["rows"] if each["workers"] == workers]
            ),
        )
        for workers in (1, 2)
    ),
    *(
        (
            "tuning", "workers-dat_tiny",
            lambda it, count=count: f"{row(it, workers=2, concurrency=count)['share_of_one_process']}",
        )
        for count in (8, 32)
    ),
    ("tuning", "explain-dat_demo", lambda it: f"{row(it, server='with explain.onnx')['rate_over_without']:.2f} of the"),
    ("tuning", "explain-dat_demo", lambda it: f"{it['beside_explanations']['classify_p50_ms_beside']:.1f} instead of"),
    ("operations", "throughput-dat_tiny", lambda it: f"| {row(it, concurrency=32)['images_per_s']} images/s |"),
    (
        "operations", "model-speed-dat_tiny",
        lambda it: f"{row(it, contender='ort-ours', batch=8)['images_per_s']:.1f} images/s at batch 8",
    ),
    (
        "operations", "throughput-cuda-dat_tiny",
        lambda it: f"{row(it, concurrency=256)['images_per_s']:.0f} images/s of 640x427 pixels at "
        f"{row(it, concurrency=256)['server_cpu_ms']:.1f} ms",
    ),
    (
        "operations", "throughput-cuda-dat_tiny",
        lambda it: f"for Pillow alone came to {it['limits']['pillow']['images_per_s']:.0f} there",
    ),
    *(
        (
            "tuning", "model-speed-dat_tiny-cuda",
            lambda it, batch=batch: f"of {batch} {one_image(it, 'ort-fp16', batch) * batch:.1f} ms",
        )
        for batch in (1, 8, 64)
    ),
    (
        "operations", "overload-dat_tiny",
        lambda it: f"{interactive(it, 0.5, 'p50')} ms, {interactive(it, 0.5, 'p99')} ms",
    ),
    (
        "operations", "overload-dat_tiny",
        lambda it: f"{interactive(it, 0.9, 'p50')} ms, {interactive(it, 0.9, 'p99')} ms",
    ),
    ("operations", "overload-dat_tiny", lambda it: f"p99 {interactive(it, 3.0, 'p99')} ms"),
    (
        "operations", "overload-dat_tiny",
        lambda it: interval([each["refused_ms"]["429"]["p50"] for each in rows(it, 3.0)], ".1f"),
    ),
]  # fmt: skip
"""The page, the file that it names, and how the figure stands there."""


@pytest.mark.parametrize(("page", "name", "shown"), FIGURES)
def test_figure_is_the_recorded_one(page: str, name: str, shown: Callable[[Result], str]) -> None:
    text = " ".join((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").split())
    assert f"{name}.json" in text
    assert shown(result(name)) in text
