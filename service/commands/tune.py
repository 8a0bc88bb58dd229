"""`tune`: find the settings that serve these models fastest on this machine, and write them to a settings file.

It starts servers, asks them as it is told they will be asked, and keeps what is better beyond noise. What is given, by
options, variables or a settings file, stays as it is; the rest of the settings that matter to speed is tried.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from service.commands.files import find_files
from service.commands.options import settings_from
from service.commands.source import positive
from service.commands.terminal import Advance, progress, report, report_left_out, say
from service.commands.trials import check_table, clients_cost, header, row
from service.errors import SettingsError
from service.model.selection import select_models
from service.settings import add_options
from service.tuning import outcome, pictures
from service.tuning.bench import Load, ServerBench
from service.tuning.choice import Choice
from service.tuning.figures import Goal
from service.tuning.given import MEASURED, Given
from service.tuning.search import Trial, search
from service.tuning.servers import checked_models
from service.tuning.space import Cores, ModelFacts, steps

_CONCURRENCY = "1,8,32"
_SIZE = "640x480"
_WINDOW_S = 2.0
_ROUNDS = 4
_CHECKED_TIMES = 2
"""How many times as many rounds the check at the end has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments, and the settings that may be given."""
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="settings file to write")
    parser.add_argument("--force", action="store_true", help="put FILE in the place of one that is there")
    load = parser.add_argument_group("what the servers will be asked")
    load.add_argument(
        "--concurrency", type=_counts, default=_CONCURRENCY, metavar="N,N",
        help=f"requests in flight, to measure with each (default: {_CONCURRENCY})",
    )  # fmt: skip
    what = load.add_mutually_exclusive_group()
    what.add_argument("--images", metavar="FOLDER", help="photos to send, one a request")
    what.add_argument(
        "--image-size", nargs="+", type=_size, default=[_SIZE], metavar="WxH",
        help=f"sizes of JPEG photos to make and send (default: {_SIZE})",
    )  # fmt: skip
    parser.add_argument(
        "--goal", choices=tuple(map(str, Goal)), default=str(Goal.THROUGHPUT),
        help="what is better: more images a second, or a shorter wait (p50 and p95) with the fewest requests in flight "
        f"(default: {Goal.THROUGHPUT})",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=_seconds, default=_WINDOW_S, metavar="N",
        help=f"how long each window is measured (default: {_WINDOW_S:g})",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=positive, default=_ROUNDS, metavar="N",
        help="windows of each comparison, of which the median is taken; the more, the less noise "
        f"(default: {_ROUNDS}, at the end {_CHECKED_TIMES * _ROUNDS})",
    )  # fmt: skip
    add_options(parser, only=MEASURED | {"settings"})


def _counts(text: str) -> tuple[int, ...]:
    """Return numbers in ascending order, each once."""
    return tuple(sorted({positive(each.strip()) for each in text.split(",")}))


def _size(text: str) -> str:
    """Return a size that is one; argparse says what is wrong with another."""
    try:
        pictures.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _seconds(text: str) -> float:
    """Return a time above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def run(options: argparse.Namespace) -> int:
    """Write the settings file, and return 0; raises StartupError where the servers cannot be measured."""
    outcome.check_place(options.output, force=options.force)
    settings = settings_from(options)
    given = Given.of(settings)
    names = tuple(dict.fromkeys(model.manifest.name for model, _ in select_models(settings)))
    load, told = _load(options)
    with TemporaryDirectory(prefix="dat-serve-tune-") as folder:
        return asyncio.run(_tune(options, _Task(given, names, load, told, Path(folder))))


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be tuned, and by which load."""

    given: Given
    names: tuple[str, ...]
    load: Load
    told: Sequence[str]
    """The load in sentences."""
    folder: Path


def _load(options: argparse.Namespace) -> tuple[Load, list[str]]:
    """Return what servers are asked, and the same in sentences; raises SettingsError."""
    if options.images is None:
        images = pictures.made([pictures.parse_size(each) for each in options.image_size])
        what = f"made photos of {', '.join(options.image_size)}"
    else:
        found = find_files([options.images])
        report_left_out(found.left_out)
        for path, fault in found.faults.items():
            report(path, fault)
        images = pictures.read(found.files)
        what = f"{len(images)} images of {options.images}"
        if not images:
            raise SettingsError(f"--images: {options.images} holds no images")
    counts = options.concurrency[:1] if options.goal == Goal.LATENCY else options.concurrency
    in_flight = ", ".join(map(str, counts))
    told = [f"Told: {in_flight} requests in flight; {what}; goal {options.goal}; windows of {options.seconds:g} s."]
    return Load(images, counts, options.seconds), told


async def _tune(options: argparse.Namespace, task: _Task) -> int:
    goal, cores = Goal(options.goal), Cores.of_this_machine()
    models = await _facts(task)
    plan = steps(models, cores=cores, fixed=task.given.fixed())
    windows = 2 * len(task.load.concurrencies)
    print(task.told[0])
    print(header(task.load.concurrencies), flush=True)
    with progress(windows * options.rounds * (1 + len(plan) + _CHECKED_TIMES), "tuning") as advance:
        rows = _Rows(advance, windows * options.rounds)
        async with ServerBench(task.given, task.load, task.folder, on_window=rows.window) as bench:
            found = await search(
                plan, bench, goal=goal, models=task.names, rounds=options.rounds,
                check_rounds=_CHECKED_TIMES * options.rounds, report=rows.ended,
            )  # fmt: skip
    if found.check is not None:
        print(f"\n{check_table(found, goal)}")
    lines = outcome.verdict_lines(found, goal)
    print("\n" + "\n".join(lines))
    comment = outcome.comment_of(found, models, goal=goal, cores=cores, told=task.told)
    outcome.write(options.output, task.given, found.choice, comment=comment, force=options.force)
    say(f"written: {options.output}; serve with: python -m service --settings {options.output}")
    return 0


async def _facts(task: _Task) -> list[ModelFacts]:
    """Have the models loaded and warmed up once, and return what there is to know; raises StartupError."""
    path = task.folder / "check.toml"
    path.write_text(task.given.for_server(Choice(), task.names), encoding="utf-8")
    found: dict[str, ModelFacts] = {}
    for model in await checked_models(path):  # of versions of one model, the highest, which answers, comes last
        first = model["devices"][0]
        run_ms = {each["images"]: each["run_ms"] for each in first["buckets"]}
        name = model["name"]
        found[name] = ModelFacts(name, first["device"], run_ms, task.given.fixed(name))
    return list(found.values())


class _Rows:
    """Prints a row for each comparison as it ends, and keeps the progress bar in step."""

    def __init__(self, advance: Advance, windows: int) -> None:
        self._advance = advance
        self._windows = windows
        self._seen = 0
        self._count = 0

    def window(self) -> None:
        """Count a window."""
        self._seen += 1
        self._advance()

    def ended(self, trial: Trial | None) -> None:
        """Show a comparison, or pass over a step that was left out."""
        if self._seen < self._windows:
            self._advance(self._windows - self._seen)
        self._seen = 0
        if trial is None:
            return
        print(row(trial, is_first=self._count == 0), flush=True)
        if self._count == 0:
            print(f"(the clients took at most {clients_cost(trial.comparison):.2f} of a core)", flush=True)
        self._count += 1
