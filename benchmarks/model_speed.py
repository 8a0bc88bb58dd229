"""How fast a model is beside the ways to run it: `python -m benchmarks.model_speed VARIANT ... [options]`.

The same random weights run as plain torch, compiled, exported plainly, in OpenVINO, and as this project exports them,
in turn within each round, beside the time that the model's matrix products take alone. The logits of each are
compared with torch's before anything is timed; a contender in float32 that is not within the tolerance is not timed,
and the command fails. Prints a table for each variant, and writes `model-speed-<variant>.json` with every turn.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe
from benchmarks.processes import export_command
from benchmarks.rounds import play, summary
from benchmarks.tables import table
from models.variants import VARIANTS

if TYPE_CHECKING:
    from benchmarks.contenders import Contender, Graph, Subject
    from service.engine.types import Pixels

TOLERANCE = 1e-4
"""Largest difference of float32 logits from torch's, in units of their standard deviation where that is over 1."""
_BATCHES = {"cpu": (1, 8), "cuda": (1, 2, 4, 8, 16, 32, 64, 128)}
_PACKAGES = ("onnx", "onnxscript", "openvino", "torch")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 1 where a contender in float32 gives other logits than torch."""
    arguments = _parser().parse_args(argv)
    # Read when torch loads its OpenMP: without it torch's threads spin into the next contender's turn.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    wrong = []
    for name in arguments.variants:
        with tempfile.TemporaryDirectory() as folder:
            result = _compare(name, arguments, Path(folder))
        _show(name, result)
        wrong += [row for row in result["parity"] if row.get("verdict") == "wrong"]
        arguments.results.mkdir(parents=True, exist_ok=True)
        path = arguments.results / f"model-speed-{name}{arguments.suffix}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", metavar="VARIANT", choices=sorted(VARIANTS))
    parser.add_argument("--batch", type=int, nargs="+", help="default: 1 8 on the CPU, 1 to 128 on CUDA")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument(
        "--contenders", nargs="+", metavar="PATTERN", help="those whose names match, such as 'ort-*' or limit"
    )
    parser.add_argument(
        "--export-args",
        action="append",
        type=_named,
        default=[],
        metavar="NAME=ARGS",
        help="another export of ours: arguments of python -m export",
    )
    parser.add_argument(
        "--graph",
        action="append",
        type=_graph,
        default=[],
        metavar="NAME=PATH",
        help="a graph from elsewhere, of the same weights; its error is reported, whatever it is",
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--suffix", default="", help="of the result's file name")
    return parser


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or name in ("plain", "ours"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE with a name other than plain and ours")
    return name, value


def _graph(text: str) -> tuple[str, str]:
    name, path = _named(text)
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {path!r}")
    return name, path


def _compare(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what is measured of one variant."""
    from benchmarks.contenders import LIMIT, make_subject

    batches = tuple(arguments.batch or _BATCHES[arguments.device])
    subject = make_subject(name, seed=arguments.seed, device=arguments.device, batches=batches)
    _add_graphs(subject, arguments, folder)
    images = np.random.default_rng(1).integers(0, 256, (max(batches), *subject.image_size, 3), np.uint8)
    contenders, parity = _checked(subject, arguments.contenders, images)
    machine, rows = describe(*_PACKAGES), []
    for batch in batches:
        pixels = np.ascontiguousarray(images[:batch])
        turns = play(
            {each.name: lambda run=each.run, pixels=pixels: run(pixels) for each in contenders},  # type: ignore[misc]
            arguments.rounds,
        )
        rows += summary(turns, batch=batch, baseline="ort-plain", limit=LIMIT, device_time=arguments.device != "cpu")
    return {
        "machine": machine,
        "variant": name,
        "options": {
            "device": arguments.device,
            "rounds": arguments.rounds,
            "seed": arguments.seed,
            "exports": dict(arguments.export_args),
        },
        "gmac_per_image": _gmac(subject),
        "parity": parity,
        "rows": rows,
    }


def _gmac(subject: Subject) -> float:
    from benchmarks.products import matrix_products

    return round(sum(each.macs for each in matrix_products(subject.variant.config, subject.image_size, 1)) / 1e9, 3)


def _add_graphs(subject: Subject, arguments: argparse.Namespace, folder: Path) -> None:
    """Export the plain graph and ours where any chosen contender runs them, and take the others as they are."""
    from benchmarks.contenders import OURS, PLAIN, Graph, plain_graph

    exports: Mapping[str, str] = {OURS: "", **dict(arguments.export_args)}
    for name in (PLAIN, *exports):
        if not _wanted_graph(name, arguments.contenders):
            continue
        if name == PLAIN:
            _say("exporting the plain model")
            path = folder / "plain.onnx"
            plain_graph(subject.plain, subject.variant, path)
            subject.graphs[name] = Graph(path, exact=True)
        else:
            subject.graphs[name] = _our_graph(name, exports[name], subject, arguments.seed, folder)
    subject.graphs.update({name: Graph(Path(path), exact=False) for name, path in arguments.graph})


def _our_graph(name: str, export_args: str, subject: Subject, seed: int, folder: Path) -> Graph:
    from benchmarks.contenders import Graph
    from service.model.directory import open_model
    from service.model.manifest import MODEL_FILE

    variant = subject.variant.name
    command = export_command(variant, seed, folder, name, export_args)
    _say(f"exporting {name}: {' '.join(command[2:6])} {export_args}")
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if made.returncode:
        raise SystemExit(f"the export of {name} failed, as it says above")
    directory = Path(made.stdout.strip())
    return Graph(directory / MODEL_FILE, exact=open_model(directory).manifest.precision == "fp32")


def _wanted_graph(graph: str, patterns: Sequence[str] | None) -> bool:
    names = [f"{runtime}-{graph}" for runtime in ("ort", "openvino-f32", "openvino-bf16")]
    return patterns is None or any(chosen(name, patterns) for name in names)


def chosen(name: str, patterns: Sequence[str] | None) -> bool:
    """Tell whether a contender takes part; without patterns OpenVINO runs the plain graph and ours alone."""
    if patterns is None:
        return not name.startswith("openvino-") or name.endswith(("-plain", "-ours"))
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _checked(
    subject: Subject, patterns: Sequence[str] | None, images: Pixels
) -> tuple[list[Contender], list[dict[str, Any]]]:
    """Make the chosen contenders, compare each with torch at every batch size, and leave out those that are wrong."""
    from benchmarks.contenders import LIMIT, ContenderUnavailable, available

    makers = {name: maker for name, maker in available(subject).items() if chosen(name, patterns)}
    if not makers:
        raise SystemExit(f"no contender matches; there are: {', '.join(available(subject))}")
    expected = _expected(subject, images)
    contenders: list[Contender] = []
    rows: list[dict[str, Any]] = []
    for name, maker in makers.items():
        _say(f"checking {name}")
        began_s = time.perf_counter()
        try:
            contender = maker()
        except ContenderUnavailable as missing:
            rows.append({"contender": name, "verdict": "unavailable", "reason": str(missing)})
            continue
        given = [contender.run(images[:batch]) for batch in subject.batches]
        ready_s = round(time.perf_counter() - began_s, 1)
        logits = [each for each in given if each is not None]
        if name != LIMIT:
            rows.append({"contender": name, **agreement(logits, expected, exact=contender.exact), "ready_s": ready_s})
        if name == LIMIT or rows[-1]["verdict"] != "wrong":
            contenders.append(contender)
    return contenders, rows


def agreement(given: Sequence[NDArray[np.float32]], expected: NDArray[np.float32], *, exact: bool) -> dict[str, Any]:
    """Return how far logits of the first images, in batches of several sizes, are from those expected of all.

    They are `exact` within the tolerance; beyond it `wrong` where they should be, and otherwise `approximate`.
    """
    std = float(expected.std())
    error = max(float(abs(logits - expected[: len(logits)]).max()) for logits in given)
    within = error <= TOLERANCE * max(1.0, std)
    verdict = "exact" if within else "wrong" if exact else "approximate"
    return {"verdict": verdict, "error": error, "error_over_std": error / std}


def _expected(subject: Subject, images: Pixels) -> Any:
    """Return torch's float32 logits of our model on the CPU."""
    import torch

    from benchmarks.contenders import FromPixels

    with torch.no_grad():
        return FromPixels(subject.model, subject.variant)(torch.from_numpy(images)).numpy()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(name: str, result: Mapping[str, Any]) -> None:
    print(f"\n{name} on {result['options']['device']}, {result['gmac_per_image']} GMAC an image")
    print(table(result["parity"]))
    print()
    print(table([{key: value for key, value in row.items() if key != "turns_ms"} for row in result["rows"]]))


if __name__ == "__main__":
    sys.exit(main())
