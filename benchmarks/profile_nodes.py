"""Where a graph's time goes: `python -m benchmarks.profile_nodes MODEL.onnx [--batch N]`.

The graph runs in ONNX Runtime with the service's session options and the runtime's own profiler, which times every
node. Prints the time of an image by operator, and by operator and shapes of its inputs. Fused nodes appear under the
names that the runtime gives them. The profiler itself costs time: compare the shares, and take speeds from elsewhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import table
from service.engine.runtime.binding import run_options
from service.engine.runtime.loading import open_session, require_device
from service.engine.runtime.options import Device, provider_options

_KERNEL = "_kernel_time"


@dataclass(frozen=True, slots=True)
class NodeTime:
    """One node in one run."""

    operator: str
    shapes: str
    """Of its inputs, constants among them."""
    duration_us: int


def node_times(events: Iterable[Mapping[str, Any]]) -> list[NodeTime]:
    """Return the nodes' times out of a profile as ONNX Runtime writes it."""
    return [
        NodeTime(event["args"]["op_name"], _shapes(event["args"].get("input_type_shape", ())), event["dur"])
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)
    ]


def _shapes(inputs: Sequence[Mapping[str, Sequence[int]]]) -> str:
    """Return shapes such as `8x49x96 96x288`; a scalar is `()`."""
    return " ".join("x".join(map(str, shape)) or "()" for each in inputs for shape in each.values())


def shares(
    times: Sequence[NodeTime], key: Callable[[NodeTime], Mapping[str, str]], *, runs: int, batch: int
) -> list[dict[str, Any]]:
    """Return a row for each `key`, the most expensive first: time an image, share of all, nodes a run."""
    grouped: dict[tuple[tuple[str, str], ...], list[int]] = defaultdict(list)
    for each in times:
        grouped[tuple(key(each).items())].append(each.duration_us)
    total_us = sum(each.duration_us for each in times)
    rows = [
        {
            "ms_per_image": round(sum(durations_us) / 1000 / runs / batch, 3),
            "percent": round(100 * sum(durations_us) / total_us, 1),
            "nodes": len(durations_us) // runs,
            **dict(group),
        }
        for group, durations_us in grouped.items()
    ]
    return sorted(rows, key=lambda row: -row["ms_per_image"])


def profile(
    path: Path, *, batch: int, runs: int, outputs: Sequence[str], device: str = "cpu", operators: Path | None = None
) -> list[NodeTime]:
    """Run a graph of uint8 images `runs` times after a first run that is not counted, and return its nodes' times.

    `operators` is the library of those that the graph holds beyond the runtime's own.
    On `cuda` a node's time is that of launching it alone, unless CUDA_LAUNCH_BLOCKING=1 has each wait for its kernels.
    """
    chosen = Device.parse(device)
    require_device(chosen)
    providers = [(chosen.provider.name, provider_options(chosen, {}))]
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(str(path), providers, threads=0, operators=operators, profile=Path(folder) / "profile")
        given = session.get_inputs()[0]
        height, width = (side if isinstance(side, int) else 224 for side in given.shape[1:3])
        images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
        for _ in range(runs + 1):
            session.run(list(outputs), {given.name: images}, run_options({}))
        times = node_times(json.loads(Path(session.end_profiling()).read_text()))
    return times[len(times) // (runs + 1) :]


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables."""
    arguments = _parser().parse_args(argv)
    batch, runs = arguments.batch, arguments.runs
    times = profile(arguments.model, batch=batch, runs=runs, outputs=arguments.outputs, device=arguments.device)
    total_ms = sum(each.duration_us for each in times) / 1000 / runs / batch
    print(f"{arguments.model}, batch {batch}: {total_ms:.2f} ms an image in {len(times) // runs} nodes\n")
    print(table(shares(times, lambda each: {"operator": each.operator}, runs=runs, batch=batch)))
    by_shapes = shares(times, lambda each: {"operator": each.operator, "shapes": each.shapes}, runs=runs, batch=batch)
    print(f"\nby shapes, the first {arguments.top}")
    print(table(by_shapes[: arguments.top]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--top", type=int, default=30, help="rows of the table by shapes")
    parser.add_argument("--outputs", nargs="+", default=["logits"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
