"""What is measured: each scenario runs servers and loads, and returns a result that JSON can hold.

Figures that are compared are taken in turn, round after round, so that a machine that others use disturbs them alike;
what is reported is the median of the rounds, and ratios are medians of each round's ratio.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import null_model
from benchmarks.limits import Limits, photos
from benchmarks.processes import RunningServer, server
from service.model.directory import select_model

LOADS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
"""Offered load as a share of the capacity."""
OVERLOADS = (0.5, 0.9, 1.0, 3.0)
SATURATING_CONCURRENCY = 32
OVERLOAD_MAX_WAIT_MS = 500

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bench:
    """What all scenarios share."""

    repository: Path
    model: str
    device: str
    port: int
    duration_s: float
    rounds: int
    concurrency: Sequence[int]
    workers: int
    seed: int
    options: Sequence[str]
    """Further options of the server."""
    files: Sequence[Path]

    def serve(self, *options: str, port: int | None = None) -> Any:
        """Return a context of a server with these options."""
        return server(
            self.repository,
            self.model,
            port=port or self.port,
            options=("--device", self.device, *self.options, *options),
        )

    def load(self, target: RunningServer, *options: str | float, duration_s: float | None = None) -> Result:
        """Run the load generator in its own process, and return its report."""
        command = [sys.executable, "-m", "benchmarks.load", "--host", target.host, "--port", str(target.port)]
        command += ["--server-pid", str(target.pid), "--seed", str(self.seed)]
        command += ["--duration-s", str(duration_s or self.duration_s), *map(str, options)]
        ran = subprocess.run([*command, "--file", *map(str, self.files)], stdout=subprocess.PIPE, check=True)
        report: Result = json.loads(ran.stdout)
        return report

    def capacity(self, target: RunningServer) -> float:
        """Return the images per second of a closed loop that keeps the server busy: the median of the rounds."""
        return median(
            [
                self.load(target, "--concurrency", SATURATING_CONCURRENCY)["goodput_images_per_s"]
                for _ in range(self.rounds)
            ]
        )


def median(values: Sequence[float], digits: int = 3) -> float:
    """Return the median, rounded."""
    return round(float(statistics.median(values)), digits)


def closed_loop_row(concurrency: int, reports: Sequence[Result]) -> Result:
    """Return the medians of several closed-loop reports."""
    interactive = [report["accepted_ms"]["interactive"] for report in reports]
    return {
        "concurrency": concurrency,
        "images_per_s": median([report["goodput_images_per_s"] for report in reports], 1),
        "p50_ms": median([figures["p50"] for figures in interactive]),
        "p99_ms": median([figures["p99"] for figures in interactive]),
        "server_cpu_ms": median([report["cpu_ms_per_answer"]["server"] for report in reports]),
        "generator_cpu_ms": median([report["cpu_ms_per_answer"]["generator"] for report in reports]),
        "refused": sum(sum(kind["count"] for kind in report["refused_ms"].values()) for report in reports),
    }


def throughput(bench: Bench) -> Result:
    """Closed loops beside the bare decoder, the bare session, and both in a row."""
    model = select_model(bench.repository, name=bench.model)
    limits = Limits(model, [path.read_bytes() for path in bench.files], device=bench.device)
    rounds: list[dict[str, Any]] = []
    with bench.serve("--workers", str(bench.workers)) as target:
        for number in range(bench.rounds + 1):
            measured = {
                "decoder": limits.decoder(bench.duration_s),
                "pillow": limits.pillow(bench.duration_s),
                "session": limits.session(bench.duration_s),
                "pipeline": {count: limits.pipeline(bench.duration_s, in_flight=count) for count in bench.concurrency},
                "http": {count: bench.load(target, "--concurrency", count) for count in bench.concurrency},
            }
            if number > 0:  # the first round warms up
                rounds.append(measured)
    rows = []
    for count in bench.concurrency:
        row = closed_loop_row(count, [one["http"][count] for one in rounds])

        def ratio(of: Callable[[dict[str, Any]], float], count: int = count) -> float:
            return median([one["http"][count]["goodput_images_per_s"] / of(one) for one in rounds])

        row["share_of_decoder"] = ratio(lambda one: one["decoder"].images_per_s)
        row["share_of_pillow"] = ratio(lambda one: one["pillow"].images_per_s)
        row["share_of_pipeline"] = ratio(lambda one, count=count: one["pipeline"][count].images_per_s)  # type: ignore[misc]
        # Pillow's decoding is what other servers are measured with, and ours is the harder mark.
        for name in ("decoder", "pillow"):
            row[f"cpu_over_{name}_and_session"] = median(
                [
                    one["http"][count]["cpu_ms_per_answer"]["server"] / (one[name].cpu_ms + one["session"].cpu_ms)
                    for one in rounds
                ]
            )
        rows.append(row)
    names = ("decoder", "pillow", "session")
    return {
        "limits": {
            name: {
                "images_per_s": median([one[name].images_per_s for one in rounds], 1),
                "cpu_ms": median([one[name].cpu_ms for one in rounds]),
            }
            for name in names
        },
        "rows": rows,
    }


def null(bench: Bench) -> Result:
    """Throughput with a model that computes nothing: what everything else costs."""
    with tempfile.TemporaryDirectory() as folder:
        null_model.write(Path(folder))
        return throughput(replace(bench, repository=Path(folder), model=null_model.NAME))


def latency(bench: Bench) -> Result:
    """Latency by offered load: open loops with Poisson arrivals, from the time at which each request was due."""
    with bench.serve("--workers", str(bench.workers)) as target:
        capacity = bench.capacity(target)
        reports = {load: bench.load(target, "--rate", load * capacity) for load in LOADS}
    rows = [{"load": load, **report} for load, report in reports.items()]
    return {"capacity_images_per_s": round(capacity, 2), "rows": rows}


def overload(bench: Bench) -> Result:
    """Goodput, refusals and the latency of what is taken, below and far above the capacity.

    The capacity is another server's, which refuses nothing: clients of a closed loop come back at once when refused.
    It is measured anew before each load, and the load is a multiple of it.
    """
    options = ("--workers", str(bench.workers))
    rows: list[Result] = []
    with (
        bench.serve(*options, port=bench.port + 1) as unbounded,
        bench.serve(*options, "--max-wait-ms", str(OVERLOAD_MAX_WAIT_MS)) as target,
    ):
        for number in range(bench.rounds):
            for load in OVERLOADS:
                capacity = bench.load(unbounded, "--concurrency", SATURATING_CONCURRENCY)["goodput_images_per_s"]
                report = bench.load(target, "--rate", load * capacity, "--bulk-share", 0.3)
                share = round(report["goodput_images_per_s"] / capacity, 3)
                rows.append(
                    {"round": number, "load": load, "capacity": capacity, "goodput_share_of_capacity": share, **report}
                )
    normal = [row["accepted_ms"]["interactive"]["p99"] for row in rows if row["load"] == 0.9]
    worst = [row for row in rows if row["load"] == OVERLOADS[-1]]
    refused = [row["refused_ms"] for row in worst]
    verdict = {
        "goodput_share_of_capacity": median([row["goodput_share_of_capacity"] for row in worst]),
        "only_429_with_retry_after": all(
            set(kinds) == {"429"} and kinds["429"]["without_retry_after"] == 0 for kinds in refused
        ),
        "refusal_p50_ms": median([kinds["429"]["p50"] for kinds in refused if "429" in kinds]),
        "interactive_p99_over_p99_at_90_percent": median(
            [row["accepted_ms"]["interactive"]["p99"] / before for row, before in zip(worst, normal, strict=True)]
        ),
    }
    return {"max_wait_ms": OVERLOAD_MAX_WAIT_MS, "rows": rows, "verdict": verdict}


def workers(bench: Bench) -> Result:
    """One process beside several workers, at the same loads, in turn."""
    several = max(bench.workers, 2)
    shapes = {1: bench.port, several: bench.port + 1}
    with ExitStack() as running:
        targets = {
            count: running.enter_context(bench.serve("--workers", str(count), port=port))
            for count, port in shapes.items()
        }
        rounds: dict[tuple[int, int], list[Result]] = {
            (count, concurrency): [] for concurrency in bench.concurrency for count in shapes
        }
        for number in range(bench.rounds + 1):
            for (count, concurrency), reports in rounds.items():
                report = bench.load(targets[count], "--concurrency", concurrency)
                if number > 0:
                    reports.append(report)
    rows = []
    for (count, concurrency), reports in rounds.items():
        alone = rounds[1, concurrency]
        shares = [
            one["goodput_images_per_s"] / other["goodput_images_per_s"]
            for one, other in zip(reports, alone, strict=True)
        ]
        rows.append({"workers": count, **closed_loop_row(concurrency, reports), "share_of_one_process": median(shares)})
    return {"rows": rows}


def null_workers(bench: Bench) -> Result:
    """The same with a model that computes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        null_model.write(Path(folder))
        return workers(replace(bench, repository=Path(folder), model=null_model.NAME))


def write_photos(folder: Path) -> list[Path]:
    """Write the photos that every load sends, and return their paths."""
    paths = []
    for number, data in enumerate(photos()):
        path = folder / f"photo{number}.jpg"
        path.write_bytes(data)
        paths.append(path)
    return paths


SCENARIOS: dict[str, Callable[[Bench], Result]] = {
    "throughput": throughput,
    "null": null,
    "latency": latency,
    "overload": overload,
    "workers": workers,
    "null-workers": null_workers,
}
