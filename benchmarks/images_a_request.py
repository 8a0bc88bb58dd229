"""What an image costs by how many of them share a request, in each form that carries several.

The model computes next to nothing, so that it is receiving, decoding, the engine's passes and answering that are seen.
All rows have as many images in flight: many small requests at a time, or few large ones. In each round, in turn: the
decoder and the session alone, and every row; one image as a raw body is the first, which the others are held against.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import null_model
from benchmarks.limits import Limits
from benchmarks.processes import RunningServer
from benchmarks.rounds import rotated
from benchmarks.scenarios import Bench, Result, median
from benchmarks.shapes import FORM, JSON, RAW
from service.model.directory import select_model

IMAGES = (1, 8, 64)
IN_FLIGHT = 128
"""Images; two requests of the largest, so that one is received while the other is computed."""
ALONE = (RAW, 1)
ROWS = {f"{form} {images}": (form, images) for form, images in (ALONE, *((f, n) for f in (FORM, JSON) for n in IMAGES))}


def images_a_request(bench: Bench) -> Result:
    """Return a row for each form and number of images a request, and the floors."""
    with tempfile.TemporaryDirectory() as folder:
        null_model.write(Path(folder))
        bench = replace(bench, repository=Path(folder), model=null_model.NAME)
        photos = [path.read_bytes() for path in bench.files]
        limits = Limits(select_model(bench.repository, name=bench.model), photos, threads=1)
        with bench.serve("--workers", str(bench.workers), "--threads", "1", "--no-explain") as target:
            rounds = [_round(bench, limits, target, number) for number in range(bench.rounds)]
    floors = {name: {"cpu_ms": median([one[name] for one in rounds])} for name in ("decoder", "session")}
    return {"limits": floors, "images_in_flight": IN_FLIGHT, "rows": [_row(name, rounds) for name in ROWS]}


def _round(bench: Bench, limits: Limits, target: RunningServer, number: int) -> dict[str, Any]:
    """Return the floors and every row's figures; each round begins with another row, and each load warms up."""
    measured: dict[str, Any] = {
        "decoder": limits.decoder(bench.duration_s).cpu_ms,
        "session": limits.session(bench.duration_s).cpu_ms,
    }
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
    return {
        "images_per_s": report["images_worked_on_per_s"],
        "cpu_ms": cpu_s["server"] * 1000 / worked_on,
        "client_cpu_ms": cpu_s["generator"] * 1000 / worked_on,
        "switches": sum(used["switches"] for used in threads.values()) / worked_on,
        "threads_ms": {name: used["cpu_s"] * 1000 / worked_on for name, used in threads.items()},
    }


def _row(name: str, rounds: Sequence[dict[str, Any]]) -> Result:
    """Return the medians of the rounds; ratios are within a round."""
    form, images = ROWS[name]
    own = [one[name] for one in rounds]
    alone = [one[" ".join(map(str, ALONE))] for one in rounds]
    floor_ms = [one["decoder"] + one["session"] for one in rounds]
    beyond_ms = [each["cpu_ms"] - floor for each, floor in zip(own, floor_ms, strict=True)]
    beyond_alone_ms = [each["cpu_ms"] - floor for each, floor in zip(alone, floor_ms, strict=True)]
    threads: defaultdict[str, list[float]] = defaultdict(list)
    for each in own:
        for thread, used_ms in each["threads_ms"].items():
            threads[thread].append(used_ms)
    return {
        "form": form,
        "images": images,
        "requests_in_flight": IN_FLIGHT // images,
        "images_per_s": median([each["images_per_s"] for each in own], 1),
        "rate_over_alone": _ratio([each["images_per_s"] for each in own], [each["images_per_s"] for each in alone]),
        "cpu_ms": median([each["cpu_ms"] for each in own]),
        "beyond_ms": median(beyond_ms),
        "beyond_over_alone": _ratio(beyond_ms, beyond_alone_ms),
        "client_cpu_ms": median([each["client_cpu_ms"] for each in own]),
        "switches": median([each["switches"] for each in own], 1),
        "threads_ms": {thread: median(figures) for thread, figures in sorted(threads.items())},
    }


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return median([our / their for our, their in zip(ours, theirs, strict=True)])
