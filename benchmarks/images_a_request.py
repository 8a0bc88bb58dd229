"""What an image costs by how many of them share a request, in each form that carries several.

The model computes next to nothing, so that it is receiving, decoding, the engine's passes and answering that are seen.
All rows have as many images in flight: many small requests at a time, or few large ones. Each round begins with another
row, and each load warms up. Decoding is the same whoever asks: what a request costs is in the other threads.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import null_model
from benchmarks.processes import RunningServer
from benchmarks.rounds import rotated
from benchmarks.scenarios import Bench, Result, median
from benchmarks.shapes import FORM, JSON, RAW

IMAGES = (1, 8, 64)
IN_FLIGHT = 128
"""Images; two requests of the largest, so that one is received while the other is computed."""
ALONE = "raw 1"
"""What the others are held against: one image as a raw body."""
ROWS = {
    f"{form} {images}": (form, images) for form, images in ((RAW, 1), *((f, n) for f in (FORM, JSON) for n in IMAGES))
}
_DECODING = "decode"
"""The threads that decode."""


def images_a_request(bench: Bench) -> Result:
    """Return a row for each form and number of images a request."""
    with tempfile.TemporaryDirectory() as folder:
        null_model.write(Path(folder))
        bench = replace(bench, repository=Path(folder), model=null_model.NAME)
        with bench.serve("--workers", str(bench.workers), "--threads", "1", "--no-explain") as target:
            rounds = [_round(bench, target, number) for number in range(bench.rounds)]
    return {"images_in_flight": IN_FLIGHT, "rows": [_row(name, rounds) for name in ROWS]}


def _round(bench: Bench, target: RunningServer, number: int) -> dict[str, Result]:
    measured = {}
    for name in rotated(list(ROWS), number):
        form, images = ROWS[name]
        options = ("--form", form, "--images", images, "--concurrency", IN_FLIGHT // images)
        measured[name] = _of_an_image(bench.load(target, *options), images)
    return measured


def _of_an_image(report: Result, images: int) -> Result:
    """Return a load's figures, by the images that were worked on; refusals would make them of something else."""
    if report["refused_ms"]:
        raise RuntimeError(f"requests of {images} images were refused: {report['refused_ms']}")
    worked_on = report["images_worked_on_per_s"] * report["duration_s"]
    cpu_s = {name: share * report["duration_s"] for name, share in report["cpu_share"].items()}
    threads = report["server_threads"]
    threads_ms = {name: used["cpu_s"] * 1000 / worked_on for name, used in threads.items()}
    return {
        "images_per_s": report["images_worked_on_per_s"],
        "cpu_ms": cpu_s["server"] * 1000 / worked_on,
        "client_cpu_ms": cpu_s["generator"] * 1000 / worked_on,
        "switches": sum(used["switches"] for used in threads.values()) / worked_on,
        "threads_ms": threads_ms,
        "beside_decoding_ms": sum(used_ms for name, used_ms in threads_ms.items() if name != _DECODING),
    }


def _row(name: str, rounds: Sequence[dict[str, Result]]) -> Result:
    """Return the medians of the rounds; ratios are within a round."""
    form, images = ROWS[name]
    own, alone = [one[name] for one in rounds], [one[ALONE] for one in rounds]

    def of(figure: str, digits: int = 3) -> float:
        return median([each[figure] for each in own], digits)

    def over_alone(figure: str) -> float:
        return median([each[figure] / other[figure] for each, other in zip(own, alone, strict=True)])

    threads: defaultdict[str, list[float]] = defaultdict(list)
    for each in own:
        for thread, used_ms in each["threads_ms"].items():
            threads[thread].append(used_ms)
    return {
        "form": form,
        "images": images,
        "requests_in_flight": IN_FLIGHT // images,
        "images_per_s": of("images_per_s", 1),
        "rate_over_alone": over_alone("images_per_s"),
        "cpu_ms": of("cpu_ms"),
        "cpu_over_alone": over_alone("cpu_ms"),
        "beside_decoding_ms": of("beside_decoding_ms"),
        "beside_decoding_over_alone": over_alone("beside_decoding_ms"),
        "client_cpu_ms": of("client_cpu_ms"),
        "switches": of("switches", 1),
        "threads_ms": {thread: median(figures) for thread, figures in sorted(threads.items())},
    }
