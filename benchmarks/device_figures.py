"""Figures of a device and of what runs on it: its ceilings, agreement, speed, memory, nodes, and the server over it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contender_process import ContenderLost
from benchmarks.forms import Form
from benchmarks.journal import Journal
from benchmarks.processes import resident_bytes
from benchmarks.rounds import Turn
from models.variants import VARIANTS

Row = dict[str, Any]
_COPIED_BYTES = {"cpu": 1 << 25, "cuda": 1 << 30}
_PROFILED_RUNS = 5
_TOP_NODES = 25


def ceilings(device: str, variant: str, batch: int, journal: Journal) -> None:
    """Write what the device reaches at copying, and at the variant's matrix products in the precision of its tests."""
    import torch

    from benchmarks.products import matrix_products

    kind = torch.float16 if device == "cuda" else torch.float32
    source = torch.empty(_COPIED_BYTES[device], dtype=torch.uint8, device=device)
    copied_s = _seconds(source.clone, device)
    del source
    journal.write("ceiling", of="copy", gb_per_s=round(2 * _COPIED_BYTES[device] / copied_s / 1e9, 1))
    side = VARIANTS[variant].input_size
    products_s, operations = 0.0, 0
    for each in matrix_products(VARIANTS[variant].config, (side, side), batch):
        left = torch.empty(each.matrices, each.rows, each.inner, dtype=kind, device=device).normal_()
        right = torch.empty(each.matrices, each.inner, each.columns, dtype=kind, device=device).normal_()
        products_s += _seconds(partial(torch.matmul, left, right), device)
        operations += 2 * each.macs
        del left, right
    if device == "cuda":
        torch.cuda.empty_cache()  # this process holds the GPU no longer than it measures
    journal.write(
        "ceiling",
        of=f"matrix products of {variant}",
        batch=batch,
        ms=round(products_s * 1000, 3),
        images_per_s=round(batch / products_s, 1),
        tflops=round(operations / products_s / 1e12, 1),
    )


def _seconds(run: Callable[[], object], device: str, runs: int = 5) -> float:
    """Return the median time of a run; on a GPU until its kernels have ended."""
    import torch

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    taken_s = []
    for number in range(runs + 1):
        finish()
        began_s = time.perf_counter()
        run()
        finish()
        if number:  # the first one loads kernels
            taken_s.append(time.perf_counter() - began_s)
    return median(taken_s)


def distance(given: Sequence[NDArray[np.float32]], expected: NDArray[np.float32]) -> tuple[float, float]:
    """Return how far logits are from those expected of the first images: root mean square and largest, the worst batch.

    Both over the standard deviation of what is expected; NaN where anything given is.
    """
    rms, largest = [], []
    for logits in given:
        count = min(len(logits), len(expected))
        off = (logits[:count].astype(np.float64) - expected[:count]) / expected.std()
        rms.append(float(np.sqrt(np.mean(off**2))))
        largest.append(float(abs(off).max()))
    return float(np.max(rms)), float(np.max(largest))


def speeds(turns: Mapping[str, Sequence[Turn]], *, batch: int, baseline: str) -> Iterator[Row]:
    """Yield a row for each contender that had a turn: medians, and the median ratio to the baseline within a round."""
    for name, own in turns.items():
        pairs = list(zip(own, turns.get(baseline, ()), strict=False))  # a contender that was lost had fewer turns
        ratio = round(median(other.run_ms / one.run_ms for one, other in pairs), 3) if pairs else None
        batch_ms = median(turn.run_ms for turn in own)
        yield {
            "contender": name,
            "batch": batch,
            "batch_ms": round(batch_ms, 3),
            "images_per_s": round(1000 * batch / batch_ms, 1),
            f"over_{baseline}": ratio,
            "turns_ms": [round(turn.run_ms, 3) for turn in own],
        }


def memory_mib(pid: int, device: str) -> Row:
    """Return what a process holds of the host's memory, and on `cuda` of the GPU's; None where the driver tells not."""
    row: Row = {"host_mib": round(resident_bytes(pid) / (1 << 20), 1)}
    if device == "cuda":
        row["gpu_mib"] = _gpu_memory_mib(pid)
    return row


def _gpu_memory_mib(pid: int) -> int | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    asked = subprocess.run(query, capture_output=True, text=True, check=False)
    used = dict(line.split(", ") for line in asked.stdout.splitlines() if ", " in line)
    figure = used.get(str(pid), "")
    return int(figure) if figure.isdigit() else None


def node_rows(form: Form, device: str, batch: int) -> list[Row]:
    """Return the time of an image by operator and shapes, the most expensive first; raises ContenderLost."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_launch_blocking) as apart:
        try:
            return apart.submit(_node_rows, form, device, batch).result()
        except Exception as error:  # the runtime's errors have no base of their own
            raise ContenderLost(f"{form.path} could not be profiled: {error}") from error


def _launch_blocking() -> None:
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"


def _node_rows(form: Form, device: str, batch: int) -> list[Row]:
    from benchmarks.profile_nodes import profile, shares

    path, operators, _ = form
    times = profile(path, batch=batch, runs=_PROFILED_RUNS, outputs=("logits",), device=device, operators=operators)
    rows = shares(
        times, lambda each: {"operator": each.operator, "shapes": each.shapes}, runs=_PROFILED_RUNS, batch=batch
    )
    return rows[:_TOP_NODES]


def served(
    directory: Path, photos: Sequence[Path], *, device: str, workers: int, in_flight: Sequence[int], duration_s: float
) -> Iterator[Row]:
    """Yield what a server of a model directory answers to photos, for each number of requests in flight.

    Raises ContenderLost. Where there are four cores or more, a quarter of them is the load generator's alone.
    """
    from benchmarks import scenarios

    name = directory.parent.name
    bench = scenarios.Bench(
        repository=directory.parent.parent,
        model=name,
        device=device,
        port=_free_port(),
        duration_s=duration_s,
        rounds=1,
        concurrency=tuple(in_flight),
        workers=workers,
        seed=0,
        options=(),
        files=tuple(photos),
    )
    cores = sorted(os.sched_getaffinity(0))
    apart = len(cores) // 4
    with ExitStack() as running:
        try:
            with _on_cores(cores[apart:]):
                target = running.enter_context(bench.serve("--workers", str(workers)))
            with _on_cores(cores[:apart] or cores):
                for count in in_flight:
                    yield scenarios.closed_loop_row(count, [bench.load(target, "--concurrency", count)])
        except (RuntimeError, subprocess.CalledProcessError) as error:
            raise ContenderLost(f"{name} could not be served, or asked: {error}") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Have what this thread starts within the block run on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
