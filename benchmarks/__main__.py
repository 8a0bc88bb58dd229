"""The benchmarks: `python -m benchmarks throughput|latency|overload [--model NAME] ...`.

    throughput  closed loops of clients, beside the decoder's and the session's limits of the same run
    latency     an open loop at shares of the capacity that was measured just before
    overload    an open loop at three times the capacity: goodput, refusals, and the latency of what is accepted

Without `--model` a model that computes next to nothing is served, which shows what all the rest costs. Whatever is
compared is measured in turn, round after round, and medians are given; the load generator is a process of its own on
the same cores, and its share of the CPU is reported.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import null_model
from benchmarks.limits import Limits, write_photos
from benchmarks.processes import RunningServer, server
from service.engine.session import runtime_version
from service.repository import ModelDirectory, select_model

LATENCY_SHARES = (0.3, 0.5, 0.7, 0.9)
OVERLOAD = 3.0


@dataclass(frozen=True, slots=True)
class Bench:
    """A server that runs, what it serves, and how long to ask."""

    running: RunningServer
    model: ModelDirectory
    photos: list[Path]
    arguments: argparse.Namespace

    def load(self, *loop: str) -> dict[str, Any]:
        """Run the load generator and return its report."""
        command = [sys.executable, "-m", "benchmarks.load", "--port", str(self.running.port)]
        command += ["--file", *map(str, self.photos), "--duration-s", str(self.arguments.duration_s)]
        command += ["--target", self.arguments.target, "--server-pid", str(self.running.pid), *loop]
        report: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return report

    def capacity(self) -> float:
        """Return the images per second of a closed loop that keeps the server busy."""
        return float(self.load("--concurrency", "32")["goodput_images_per_s"])


def throughput(bench: Bench) -> list[dict[str, Any]]:
    """Return a row for each concurrency."""
    limits = Limits(bench.model, [path.read_bytes() for path in bench.photos])
    taken: dict[int, list[dict[str, float]]] = {concurrency: [] for concurrency in bench.arguments.concurrency}
    for _ in range(bench.arguments.rounds):
        for concurrency, rounds in taken.items():
            limit_s = bench.arguments.duration_s / 2
            decoder, pillow, session = limits.decoder(limit_s), limits.pillow(limit_s), limits.session(limit_s)
            report = bench.load("--concurrency", str(concurrency))
            rate, server_cpu_ms = report["goodput_images_per_s"], report["cpu_ms_per_answer"]["server"]
            rounds.append(
                {
                    "images_per_s": rate,
                    "p50_ms": report["accepted_ms"]["interactive"]["p50"],
                    "decoder_images_per_s": decoder.images_per_s,
                    "pillow_images_per_s": pillow.images_per_s,
                    "session_images_per_s": session.images_per_s,
                    "of_decoder": rate / decoder.images_per_s,
                    "of_pillow": rate / pillow.images_per_s,
                    "of_session": rate / session.images_per_s,
                    "cpu_of_decode_and_session": server_cpu_ms / (decoder.cpu_ms + session.cpu_ms),
                    "cpu_of_pillow_and_session": server_cpu_ms / (pillow.cpu_ms + session.cpu_ms),
                    "generator_cpu_share": report["cpu_share"]["generator"],
                }
            )
    return [
        {
            "concurrency": concurrency,
            **{name: round(statistics.median(one[name] for one in rounds), 3) for name in rounds[0]},
        }
        for concurrency, rounds in taken.items()
    ]


def latency(bench: Bench) -> list[dict[str, Any]]:
    """Return a row for each offered load."""
    capacity = bench.capacity()
    rows = []
    for share in LATENCY_SHARES:
        report = bench.load("--rate", str(capacity * share), "--bulk-share", str(bench.arguments.bulk_share))
        rows.append({"offered_share": share, "capacity_images_per_s": capacity, **report})
    return rows


def overload(bench: Bench) -> list[dict[str, Any]]:
    """Return a row at nine tenths of the capacity and one at three times it."""
    capacity = bench.capacity()
    rows = []
    for share in (0.9, OVERLOAD):
        report = bench.load("--rate", str(capacity * share), "--bulk-share", str(bench.arguments.bulk_share))
        rows.append({"offered_share": share, "capacity_images_per_s": capacity, **report})
    return rows


SCENARIOS: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "throughput": throughput,
    "latency": latency,
    "overload": overload,
}


def machine() -> dict[str, Any]:
    """Say where the figures were taken."""
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line
    ]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "onnxruntime": runtime_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def main() -> None:
    """Run one scenario and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--model", help="a model of --repository; the null model where left out")
    parser.add_argument("--repository", type=Path, default=Path("model-repository"))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--duration-s", type=float, default=4.0, help="of each figure")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bulk-share", type=float, default=0.0)
    parser.add_argument("--target", default="/v1/classify")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="options for the server; must come last")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = arguments.repository
        if arguments.model is None:
            repository = Path(folder) / "repository"
            null_model.write(repository)
        model = select_model(repository, name=arguments.model)
        options = ["--device", "cpu", *arguments.serve]
        with server(repository, model.manifest.name, port=arguments.port, options=options) as running:
            rows = SCENARIOS[arguments.scenario](Bench(running, model, write_photos(Path(folder)), arguments))
    facts = {"scenario": arguments.scenario, "model": model.manifest.name, "served_with": options, "machine": machine()}
    print(json.dumps({**facts, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
