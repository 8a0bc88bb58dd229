"""What it costs that models come and go, and that they share a device.

`replacing`: versions of a model replace each other under full load, with one process, one worker and two; beside it the
same load while nothing is replaced. `sharing`: a fast model alone, and beside one that is fifty times slower and as
busy as it can be.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from benchmarks import null_model
from benchmarks.processes import RunningServer, resident_bytes
from benchmarks.scenarios import Bench, Result, median

REPLACEMENTS = 20
FAST, SLOW = 20, 1000
"""Products that the fast and the slow model compute for each image."""
_CONCURRENCY = 32
_BESIDE = (1, 8)
"""Requests in flight to the fast model."""
_MARGIN_S = 4.0
"""By which the load on the slow model outlasts what is measured beside it."""
_MIB = 1 << 20


_SHAPES = {
    "one process": (),
    "1 worker": ("--workers", "1", "--devices", "cpu"),
    "2 workers": ("--workers", "2"),
}


def replacing(bench: Bench) -> Result:
    """Replace versions under a closed loop that keeps the server busy; no request may fail."""
    rows = [{"shape": shape, **_replacing(bench, options)} for shape, options in _SHAPES.items()]
    return {"concurrency": _CONCURRENCY, "replacements": REPLACEMENTS, "rows": rows}


def _replacing(bench: Bench, options: tuple[str, ...]) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        null_model.write(root)
        own = replace(bench, repository=root, model=null_model.NAME)
        with own.serve("--model-control", *options) as target:
            quiet = own.load(target, "--concurrency", _CONCURRENCY)
            began = resident_bytes(target.pid)
            with _loading(own, target, _CONCURRENCY) as finished:
                took_s = [_replace(root, target, version) for version in range(2, 2 + REPLACEMENTS)]
            busy = finished()
            return {
                "replacement_s": median(took_s),
                "slowest_replacement_s": round(max(took_s), 3),
                "answers": busy["accepted_ms"]["interactive"]["count"],
                "failures": sum(kind["count"] for kind in busy["refused_ms"].values()),
                **_compared(quiet, busy),
                "resident_mib_before": round(began / _MIB, 1),
                "resident_mib_after": round(resident_bytes(target.pid) / _MIB, 1),
            }


def _compared(quiet: Result, busy: Result) -> Result:
    figures = {"quiet": quiet["accepted_ms"]["interactive"], "replacing": busy["accepted_ms"]["interactive"]}
    return {
        f"{name}_{figure}_ms": round(latencies[figure], 1)
        for figure in ("p50", "p99", "max")
        for name, latencies in figures.items()
    }


def _replace(root: Path, target: RunningServer, version: int) -> float:
    """Put a version in place and have it served; return the seconds until the one before is gone."""
    null_model.write(root, version=version)
    began_s = time.monotonic()
    connection = HTTPConnection(target.host, target.port, timeout=120)
    with contextlib.closing(connection):
        connection.request("POST", f"/v2/repository/models/{null_model.NAME}/load")
        answer = connection.getresponse()
        said = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"version {version} was not loaded: {said.decode()}")
    took_s = time.monotonic() - began_s
    shutil.rmtree(root / null_model.NAME / str(version - 1))
    return took_s


@contextlib.contextmanager
def _loading(bench: Bench, target: RunningServer, concurrency: int) -> Iterator[Any]:
    """Keep a server busy within the block, and for at most two minutes; gives what returns the report afterwards."""
    reports: list[Result] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            reports.append(bench.load(target, "--concurrency", concurrency, "--warm-up-s", 0.0, duration_s=2.0))

    thread = threading.Thread(target=load)
    thread.start()
    try:
        yield lambda: _joined(reports)
    finally:
        stop.set()
        thread.join()


def _joined(reports: list[Result]) -> Result:
    """Return several reports as one: counts added up, of latencies the median of medians and the worst of the rest."""
    accepted = [report["accepted_ms"]["interactive"] for report in reports]
    refused = [kind for report in reports for kind in report["refused_ms"].values()]
    return {
        "accepted_ms": {
            "interactive": {
                "count": sum(each["count"] for each in accepted),
                "p50": median([each["p50"] for each in accepted]),
                "p99": max(each["p99"] for each in accepted),
                "max": max(each["max"] for each in accepted),
            }
        },
        "refused_ms": {str(number): kind for number, kind in enumerate(refused)},
    }


def sharing(bench: Bench) -> Result:
    """Ask a fast model alone, and beside a slow one that is kept busy, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        null_model.write(root, name="fast", products=FAST)
        null_model.write(root, name="slow", products=SLOW)
        own = replace(bench, repository=root, model="all")
        rows: list[Result] = []
        with own.serve("--workers", str(bench.workers)) as target:
            for concurrency in _BESIDE:
                rounds = [_shared(own, target, concurrency) for _ in range(bench.rounds)]
                rows.append(
                    {"fast_in_flight": concurrency}
                    | {name: median([each[name] for each in rounds]) for name in rounds[0]}
                )
    return {"slow_in_flight": _CONCURRENCY, "rows": rows}


def _shared(bench: Bench, target: RunningServer, concurrency: int) -> dict[str, float]:
    def ask(model: str, in_flight: int, **more: float) -> Result:
        return bench.load(target, "--target", f"/v1/classify?model={model}", "--concurrency", in_flight, **more)

    fast, slow = ask("fast", concurrency), ask("slow", _CONCURRENCY)
    beside: list[Result] = []
    kept_busy = threading.Thread(
        target=lambda: beside.append(ask("slow", _CONCURRENCY, duration_s=bench.duration_s + _MARGIN_S))
    )
    kept_busy.start()
    time.sleep(_MARGIN_S / 2)
    shared = ask("fast", concurrency)
    kept_busy.join()
    alone, together = fast["accepted_ms"]["interactive"], shared["accepted_ms"]["interactive"]
    return {
        "fast_alone_per_s": fast["goodput_images_per_s"],
        "fast_beside_per_s": shared["goodput_images_per_s"],
        "slow_alone_per_s": slow["goodput_images_per_s"],
        "slow_beside_per_s": beside[0]["goodput_images_per_s"],
        "fast_alone_p50_ms": alone["p50"],
        "fast_beside_p50_ms": together["p50"],
        "fast_alone_p99_ms": alone["p99"],
        "fast_beside_p99_ms": together["p99"],
    }
