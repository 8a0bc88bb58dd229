"""`evaluate`: top-1 and top-5 accuracy on a folder of images whose classes are known."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from service.commands import source
from service.commands.answers import answers
from service.commands.files import images_below
from service.commands.options import given_settings
from service.commands.reports import Evaluation, as_json, as_text
from service.commands.terminal import report, report_left_out, say
from service.errors import SettingsError
from service.evaluation.classes import Classes
from service.evaluation.comparison import Comparison
from service.evaluation.ground_truth import BadGroundTruth, Known, by_file, by_folders
from service.evaluation.tally import TOP
from service.images.names import LeftOut
from service.predictors.types import Fault, Predictor, Ranking, ScoresByBoth
from service.settings import Settings

_Answer: TypeAlias = Ranking | ScoresByBoth | Fault
_Ask: TypeAlias = Callable[[bytes], Awaitable[_Answer]]
_COUNTED_FROM = {"class-id": 0, "class-number": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "folder", metavar="FOLDER", help="images, in folders named after their classes unless a file names them"
    )
    truth = parser.add_argument_group("what the images show")
    truth.add_argument(
        "--ground-truth", type=Path, metavar="FILE",
        help="file that names the classes: `filename,class` by comma, tab or space; Kaggle's LOC_val_solution.csv; "
        "or a class number a line, for the images in the order of their names",
    )  # fmt: skip
    truth.add_argument(
        "--numbers", choices=tuple(_COUNTED_FROM),
        help="of a list of numbers: they are class ids (from 0), or the same counted from 1",
    )  # fmt: skip
    truth.add_argument(
        "--synset-order", type=Path, metavar="FILE",
        help="of a list of numbers: line n of FILE is the synset that number n stands for, as for ImageNet's "
        "ILSVRC2012_validation_ground_truth.txt, whose order is that of its development kit's meta.mat",
    )  # fmt: skip
    truth.add_argument(
        "--class-by", choices=("any", "id", "name", "synset"), default="any",
        help="what classes are named by (default: any, where that is clear)",
    )  # fmt: skip
    parser.add_argument("--format", choices=("text", "json"), default="text", help="form of the report (default: text)")
    parser.add_argument("--per-class", action="store_true", help="report every class by itself, too")
    parser.add_argument(
        "--confusions", type=int, default=10, metavar="N", help="most frequent wrong classes to show (default: 10)"
    )
    parser.add_argument(
        "--compare-resize", action="store_true",
        help="resize every image as `--resize fast` does too, and report what that changes; not with --url",
    )  # fmt: skip
    source.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print the report, and return 1 if any image could not be used or was left out.

    Raises StartupError where none could be used.

    When the work is interrupted, or its source fails, the report is of what was done, and says so.
    """
    settings = source.prepare(options)
    if options.compare_resize and options.url is not None:
        raise SettingsError("--compare-resize is for a model in this process: the server at --url resizes in one way")
    if options.compare_resize and "resize" in given_settings(options):
        raise SettingsError("--compare-resize is for both ways: leave out --resize")
    if not Path(options.folder).is_dir():
        raise SettingsError(f"there is no folder {options.folder}")
    return asyncio.run(_evaluate(options, settings))


async def _evaluate(options: argparse.Namespace, settings: Settings) -> int:
    if options.ground_truth is None and (options.numbers or options.synset_order):
        raise SettingsError("--numbers and --synset-order are about a --ground-truth")
    async with _open(options, settings) as (predictor, ask):
        classes = Classes(predictor.model.labels, by=options.class_by)
        known, left_out, unlisted = await asyncio.to_thread(_known_images, options, classes)
        report_left_out(left_out)
        if unlisted:
            say(f"{unlisted} images of the folder are not in the ground truth, and are left out")
        evaluation = Evaluation(predictor.model, planned=len(known), left_out=left_out, unlisted=unlisted)
        if options.compare_resize:
            evaluation.model = replace(predictor.model, resize="exact")
            evaluation.comparison = Comparison("fast")
        try:
            await _count(evaluation, known, ask, concurrency=predictor.concurrency, max_bytes=settings.max_body_bytes)
        finally:
            render = as_json if options.format == "json" else as_text
            print(render(evaluation, confusions=options.confusions, per_class=options.per_class), flush=True)
    return 1 if evaluation.faults or left_out.others or unlisted else 0


def _known_images(options: argparse.Namespace, classes: Classes) -> tuple[list[Known], LeftOut, int]:
    """Return the images with their classes, what the folder holds besides, and how many images have no class."""
    unreadable: dict[str, Fault] = {}
    left_out = LeftOut()
    files = list(images_below(options.folder, unreadable, left_out))
    if unreadable:
        path, fault = next(iter(unreadable.items()))
        raise BadGroundTruth(f"{path}: {fault.detail}")  # how many images are missing there, nobody knows
    if not files:
        besides = f", only others: {left_out.describe()}" if left_out else ""
        raise BadGroundTruth(f"{options.folder} holds no images{besides}")
    if options.ground_truth is None:
        return by_folders(options.folder, files, classes), left_out, 0
    known = by_file(
        options.ground_truth,
        options.folder,
        files,
        classes,
        synset_order=options.synset_order,
        counted_from=_COUNTED_FROM.get(options.numbers),
    )
    return known, left_out, len(set(files).difference(image.path for image in known if image.path is not None))


@asynccontextmanager
async def _open(options: argparse.Namespace, settings: Settings) -> AsyncIterator[tuple[Predictor, _Ask]]:
    """Give who answers, and the question: which classes, by one resize or by both."""
    if not options.compare_resize:
        async with source.open_source(options, settings) as predictor:
            yield predictor, partial(predictor.classify, top_k=TOP)
        return
    async with source.open_in_process(options, settings) as local:
        yield local, local.scores_by_both_resizes


async def _count(evaluation: Evaluation, known: list[Known], ask: _Ask, *, concurrency: int, max_bytes: int) -> None:
    there = [(image, image.path) for image in known if image.path is not None]
    for image in known:
        if image.path is None:
            fault = Fault("not_found", "The ground truth names it, and the folder does not hold it.")
            report(image.name, fault)
            evaluation.add(image, fault)
    under_way: AsyncGenerator[tuple[str, _Answer], None] = answers(
        [path for _, path in there],
        ask,
        concurrency=concurrency,
        max_bytes=max_bytes,
        description="evaluating",
        done=len(known) - len(there),
    )
    images = (image for image, _ in there)
    async with aclosing(under_way) as results:
        async for path, result in results:
            if isinstance(result, Fault):
                report(path, result)
            evaluation.add(next(images), result)
