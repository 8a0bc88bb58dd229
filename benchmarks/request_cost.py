"""What a request costs, thread by thread, beside what it cannot do without: decoding, the session, a bare server.

The model computes next to nothing. In each round, in turn: the server and the bare one (`benchmarks.bare_app`) at each
concurrency, the decoder and the session alone. Processor times are the kernel's own accounts of the threads; they
depend on what else the machine does far less than rates do.
"""

from __future__ import annotations

import http.client
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import null_model
from benchmarks.limits import Limits, Measured
from benchmarks.processes import RunningServer, running
from benchmarks.scenarios import Bench, Result, median
from service.model.directory import select_model


def request_cost(bench: Bench) -> Result:
    """Return a row for each concurrency, and the floors."""
    with tempfile.TemporaryDirectory() as folder:
        null_model.write(Path(folder))
        bench = replace(bench, repository=Path(folder), model=null_model.NAME)
        photos = [path.read_bytes() for path in bench.files]
        limits = Limits(select_model(bench.repository, name=bench.model), photos, threads=1)
        with bench.serve("--workers", str(bench.workers), "--threads", "1", "--no-explain") as target:
            answer = Path(folder) / "answer.json"
            answer.write_bytes(_answer_of(target, photos[0]))
            command = [sys.executable, "-m", "benchmarks.bare_app", "--answer", str(answer)]
            with running(command, port=bench.port + 1) as bare:
                rounds = [_round(bench, limits, target, bare) for _ in range(bench.rounds + 1)][1:]  # one warms up
    floors: dict[str, Any] = {}
    for name in ("decoder", "session"):
        measured: list[Measured] = [one[name] for one in rounds]
        floors[name] = {
            "images_per_s": median([each.images_per_s for each in measured], 1),
            "cpu_ms": median([each.cpu_ms for each in measured]),
        }
    return {"limits": floors, "rows": [_row(count, rounds) for count in bench.concurrency]}


def _answer_of(target: RunningServer, photo: bytes) -> bytes:
    """Return what the server answers to a photo."""
    connection = http.client.HTTPConnection(target.host, target.port)
    connection.request("POST", "/v1/classify", photo, {"Content-Type": "image/jpeg"})
    with connection.getresponse() as response:
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"the server answered {response.status} to a photo: {response.read()!r}")
        return response.read()


def _round(bench: Bench, limits: Limits, target: RunningServer, bare: RunningServer) -> dict[str, Any]:
    return {
        "decoder": limits.decoder(bench.duration_s),
        "session": limits.session(bench.duration_s),
        "http": {count: bench.load(target, "--concurrency", count) for count in bench.concurrency},
        "bare": {count: bench.load(bare, "--concurrency", count) for count in bench.concurrency},
    }


def _row(count: int, rounds: Sequence[dict[str, Any]]) -> Result:
    """Return the medians of the rounds at one concurrency; ratios are within a round."""
    cpu = [one["http"][count]["cpu_ms_per_answer"]["server"] for one in rounds]
    bare = [one["bare"][count]["cpu_ms_per_answer"]["server"] for one in rounds]
    beyond = [all_ms - one["decoder"].cpu_ms - one["session"].cpu_ms for all_ms, one in zip(cpu, rounds, strict=True)]
    threads: defaultdict[str, list[float]] = defaultdict(list)
    for one in rounds:
        for name, used in one["http"][count]["server_threads"].items():
            threads[name].append(used["cpu_ms_per_answer"])
    return {
        "concurrency": count,
        "images_per_s": median([one["http"][count]["goodput_images_per_s"] for one in rounds], 1),
        "share_of_decoder": median(
            [one["http"][count]["goodput_images_per_s"] / one["decoder"].images_per_s for one in rounds]
        ),
        "share_of_decoder_left": median([_share_of_what_is_left(one["http"][count], one["decoder"]) for one in rounds]),
        "generator_ms": median([one["http"][count]["cpu_ms_per_answer"]["generator"] for one in rounds]),
        "cpu_ms": median(cpu),
        "beyond_ms": median(beyond),
        "bare_ms": median(bare),
        "beyond_over_bare": median([ours / its for ours, its in zip(beyond, bare, strict=True)]),
        "switches": median([_switches(one["http"][count]) for one in rounds], 1),
        "bare_switches": median([_switches(one["bare"][count]) for one in rounds], 1),
        "threads_ms": {name: median(figures) for name, figures in sorted(threads.items())},
    }


def _share_of_what_is_left(report: Result, decoder: Measured) -> float:
    """Return the rate over what the decoder alone would do on the processor time that the load generator leaves."""
    cores = len(os.sched_getaffinity(0))
    left = 1 - report["cpu_share"]["generator"] / cores
    return float(report["goodput_images_per_s"] / (decoder.images_per_s * left))


def _switches(report: Result) -> float:
    return float(sum(used["switches_per_answer"] for used in report["server_threads"].values()))
