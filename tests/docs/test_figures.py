"""Figures in the pages are those of the recorded benchmarks, in the files that are named beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.docs.pages import ROOT, sections_of

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
    return f"{interval([each['accepted_ms']['interactive'][percentile] for each in rows(recorded, load)])} ms"


def refused(recorded: Result, load: float) -> str:
    return f"{interval([each['refused_ms']['429']['p50'] for each in rows(recorded, load)], '.1f')} ms"


def rates_of(recorded: Result, workers: int) -> str:
    return interval([each["images_per_s"] for each in recorded["rows"] if each["workers"] == workers])


def one_image(recorded: Result, contender: str, batch: int) -> float:
    return float(row(recorded, contender=contender, batch=batch)["ms_per_image"])


FIGURES: dict[tuple[str, str], Callable[[Result], list[str]]] = {
    ("operations", "latency-dat_demo"): lambda it: [
        f"{it['capacity_images_per_s']:.0f} images/s",
        *(
            " | ".join(f"{each['accepted_ms']['interactive'][percentile]:.0f}" for each in it["rows"])
            for percentile in ("p50", "p99")
        ),
    ],
    ("tuning", "model-speed-dat_tiny"): lambda it: [
        f"{one_image(it, 'ort-ours', 1):.1f} ms",
        f"{one_image(it, 'ort-ours', 8):.1f} ms",
        f"{one_image(it, 'ort-int8', 1):.1f}",
        f"{one_image(it, 'ort-int8', 8):.1f}",
    ],
    ("tuning", "model-speed-dat_tiny-cuda"): lambda it: [
        f"{one_image(it, 'ort-fp16', batch) * batch:.1f} ms" for batch in (1, 8, 64)
    ],
    ("tuning", "overload-dat_tiny"): lambda it: [interactive(it, 3.0, "p50")],
    ("tuning", "throughput-dat_tiny"): lambda it: [f"{it['limits']['session']['cpu_ms']:.0f} ms"],
    ("tuning", "decoding"): lambda it: [
        f"{row(it, contender='decode, resize by the library')['cpu_ms']:.1f} ms",
        f"{row(it, contender='decode, resize by Pillow')['cpu_ms']:.1f}",
    ],
    ("tuning", "null-workers-dat_null"): lambda it: [rates_of(it, workers) for workers in (1, 2)],
    ("tuning", "workers-dat_tiny"): lambda it: [
        f"{row(it, workers=2, concurrency=count)['share_of_one_process']}" for count in (8, 32)
    ],
    ("tuning", "explain-dat_demo"): lambda it: [
        f"{row(it, server='with explain.onnx')['rate_over_without']:.2f}",
        f"{it['beside_explanations']['classify_p50_ms_beside']:.1f}",
    ],
    ("tuning", "images-a-request-dat_null"): lambda it: [
        *(f"{row(it, form='form', images=count)['cpu_over_alone']:.2f}" for count in (8, 64)),
        *(f"{row(it, form='json', images=count)['cpu_over_alone']:.2f}" for count in (8, 64)),
        f"{row(it, form='raw', images=1)['beside_decoding_ms']:.2f}",
        *(f"{row(it, form='form', images=count)['beside_decoding_ms']:.2f}" for count in (8, 64)),
    ],
    ("operations", "throughput-dat_tiny"): lambda it: [f"{row(it, concurrency=32)['images_per_s']} images/s"],
    ("operations", "model-speed-dat_tiny"): lambda it: [
        f"{row(it, contender='ort-ours', batch=8)['images_per_s']:.1f} images/s"
    ],
    ("operations", "throughput-cuda-dat_tiny"): lambda it: [
        f"{row(it, concurrency=256)['images_per_s']:.0f} images/s",
        f"{row(it, concurrency=256)['server_cpu_ms']:.1f} ms",
        f"{it['limits']['pillow']['images_per_s']:.0f}",
    ],
    ("operations", "overload-dat_tiny"): lambda it: [
        *(interactive(it, load, percentile) for load in (0.5, 0.9) for percentile in ("p50", "p99")),
        interactive(it, 3.0, "p99"),
        refused(it, 3.0),
    ],
}
"""By page and recorded file: the figures, as they stand in the sections that name the file."""


@pytest.mark.parametrize(("page", "name"), FIGURES)
def test_figures_are_the_recorded_ones(page: str, name: str) -> None:
    naming = [text for text in sections_of(ROOT / "docs" / f"{page}.md") if f"`{name}.json`" in text]
    assert naming
    text = " ".join(" ".join(naming).split())
    figures = FIGURES[page, name](result(name))
    assert [each for each in figures if not re.search(rf"(?<![\w.]){re.escape(each)}(?!\w|\.\d)", text)] == []
