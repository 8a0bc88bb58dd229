"""The benchmarks: `python -m benchmarks [SCENARIO ...] [options]`; all of them where none is named.

Each prints a table and writes `<scenario>-<model>.json` with the machine, the options and every figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import null_model, scenarios
from benchmarks.bulk import bulk
from benchmarks.explaining import explaining
from benchmarks.images_a_request import images_a_request
from benchmarks.machine import describe
from benchmarks.request_cost import request_cost
from benchmarks.scenarios import Bench, Result, write_photos
from benchmarks.several_models import replacing, sharing
from benchmarks.tables import table

SCENARIOS = (
    scenarios.SCENARIOS
    | {"explain": explaining, "bulk": bulk, "replacing": replacing, "sharing": sharing}
    | {"request-cost": request_cost, "images-a-request": images_a_request}
)
_OF_OWN_MODELS = ("null", "null-workers", "request-cost", "images-a-request", "replacing", "sharing")
"""Scenarios that make the models which they serve."""


def main() -> None:
    """Run the scenarios that are asked for."""
    arguments = _parse()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            repository=arguments.repository,
            model=arguments.model,
            device=arguments.device,
            port=arguments.port,
            duration_s=arguments.duration_s,
            rounds=arguments.rounds,
            concurrency=arguments.concurrency,
            workers=arguments.workers,
            seed=arguments.seed,
            options=arguments.server_option,
            files=write_photos(Path(folder)),
        )
        for name in arguments.scenarios or SCENARIOS:
            machine = describe()
            result = SCENARIOS[name](bench)
            _show(name, bench, result)
            _write(arguments.results, name, bench, {"machine": machine, **result})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--repository", type=Path, default=Path("model-repository"))
    parser.add_argument("--model", default="dat_demo")
    parser.add_argument("--device", default="cpu", help="of the server and of the bare session")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--duration-s", type=float, default=5.0, help="of each figure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals and the priorities")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--server-option", action="append", default=[], metavar="--OPTION=VALUE")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    return parser


def _parse() -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.scenarios) - SCENARIOS.keys())
    if unknown:
        parser.error(f"no scenario is called {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    return arguments


def _show(name: str, bench: Bench, result: Result) -> None:
    print(f"\n{name} ({_served(name, bench)})")
    for key, value in result.items():
        if key != "rows":
            print(f"  {key}: {value}")
    print(table([_flat(row) for row in result["rows"]]))


def _served(name: str, bench: Bench) -> str:
    """Return the model that a scenario serves."""
    return null_model.NAME if name in _OF_OWN_MODELS else bench.model


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its nested figures beside the others; of a distribution, what a table has room for."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key in ("accepted_ms", "refused_ms"):
            for kind, figures in value.items():
                shown = ("count", "p50", "p99") if key == "accepted_ms" else ("count", "p50", "without_retry_after")
                flat |= {f"{kind} {name}": figures.get(name) for name in shown}
        elif isinstance(value, dict):
            flat |= {f"{key} {name}": figure for name, figure in value.items()}
        else:
            flat[key] = value
    return flat


def _write(folder: Path, name: str, bench: Bench, result: Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "device": bench.device,
        "duration_s": bench.duration_s,
        "rounds": bench.rounds,
        "workers": bench.workers,
        "seed": bench.seed,
        "server_options": list(bench.options),
    }
    model = _served(name, bench)
    document = {"scenario": name, "model": model, "options": options, **result}
    device = "" if bench.device == "cpu" else f"-{bench.device.replace(':', '')}"
    (folder / f"{name}-{model}{device}.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
