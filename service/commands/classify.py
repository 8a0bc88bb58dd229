"""`classify`: the most likely classes of image files, as a table for people or JSON lines for programs.

Every file is answered for in one place: with its classes, or with what is wrong with it. Lines come in the order of
the files as soon as they are known; nothing is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import aclosing

from service.commands import source
from service.commands.answers import answers
from service.commands.files import find_files
from service.commands.terminal import printable, report_left_out
from service.predictors.types import Fault, Ranking
from service.settings import Settings

_WIDEST_PATH = 60
"""Columns; longer paths push their own line out of line."""
Show = Callable[[str, "Ranking | Fault"], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image file, folder, or pattern in quotes")
    parser.add_argument(
        "--format", choices=("table", "jsonl"), help="form of the answers (default: table on a terminal, else jsonl)"
    )
    source.add_choice_arguments(parser)
    source.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Classify, and return 1 if any file could not be, or was left out; raises StartupError where none can be."""
    settings = source.prepare(options)
    return asyncio.run(_classify(options, settings))


async def _classify(options: argparse.Namespace, settings: Settings) -> int:
    found = await asyncio.to_thread(find_files, options.paths)
    form = options.format or ("table" if sys.stdout.isatty() else "jsonl")
    show: Show = show_json_line
    if form == "table":
        width = min(max(map(len, [*found.files, *found.faults]), default=0), _WIDEST_PATH)
        show = table(width)
    for given, fault in found.faults.items():
        show(given, fault)
    report_left_out(found.left_out)
    is_whole = not found.faults and not found.left_out.others
    if not found.files:
        return 1
    async with source.open_source(options, settings) as predictor:
        choice = source.choice_of(options, settings, predictor.model)
        under_way = answers(
            found.files,
            lambda image: predictor.classify(image, choice),
            concurrency=predictor.concurrency,
            max_bytes=settings.max_body_bytes,
            description="classifying",
        )
        async with aclosing(under_way) as results:
            async for path, result in results:
                show(path, result)
                is_whole = is_whole and not isinstance(result, Fault)
    return 0 if is_whole else 1


def show_json_line(path: str, result: Ranking | Fault) -> None:
    """Print one object: `path`, and `predictions` or `error`."""
    line: dict[str, object] = {"path": path}
    if isinstance(result, Fault):
        line["error"] = {"code": result.code, "detail": result.detail}
    else:
        line["predictions"] = [prediction._asdict() for prediction in result]
    print(json.dumps(line))


def table(width: int) -> Show:
    """Return what prints a file's rows, below a header that is printed at once; `width` is the paths' column."""

    def row(path: str, score: str, text: str) -> None:
        print(f"{printable(path):{width}}  {score:>6}  {printable(text)}")

    def show(path: str, result: Ranking | Fault) -> None:
        if isinstance(result, Fault):
            row(path, "error", f"{result.code}: {result.detail}")
            return
        if not result:
            row(path, "", "no class has the score that is asked for")
        for place, prediction in enumerate(result):
            row(path if place == 0 else "", f"{prediction.score:.4f}", prediction.label)

    row("image", "score", "class")
    return show
