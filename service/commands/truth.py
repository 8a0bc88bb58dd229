"""A folder of images whose classes are known, as the command line says, and what a predictor says of them."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from service.commands.answers import answers
from service.commands.files import images_below
from service.commands.terminal import report, report_left_out, say
from service.errors import SettingsError
from service.evaluation.ground_truth import BadGroundTruth, Known, by_file, by_folders
from service.images.names import LeftOut
from service.model.classes import Classes
from service.predictors.types import Fault, Predictor

R = TypeVar("R")
_COUNTED_FROM = {"class-id": 0, "class-number": 1}


@dataclass(frozen=True, slots=True)
class KnownImages:
    """The images of a folder whose classes are known, and what it holds besides."""

    images: Sequence[Known]
    left_out: LeftOut
    unlisted: int
    """Images of the folder that the ground truth does not name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder, and the options that say what its images show."""
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


def check(options: argparse.Namespace) -> None:
    """Raise SettingsError where the options contradict each other, or there is no such folder."""
    if not Path(options.folder).is_dir():
        raise SettingsError(f"there is no folder {options.folder}")
    if options.ground_truth is None and (options.numbers or options.synset_order):
        raise SettingsError("--numbers and --synset-order are about a --ground-truth")


async def known_images(options: argparse.Namespace, predictor: Predictor) -> KnownImages:
    """Return the images with their classes, and say what is left out; raises BadGroundTruth, UnknownClass."""
    known = await asyncio.to_thread(_find, options, Classes(predictor.model.labels, by=options.class_by))
    report_left_out(known.left_out)
    if known.unlisted:
        say(f"{known.unlisted} images of the folder are not in the ground truth, and are left out")
    return known


def _find(options: argparse.Namespace, classes: Classes) -> KnownImages:
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
        return KnownImages(by_folders(options.folder, files, classes), left_out, 0)
    known = by_file(
        options.ground_truth,
        options.folder,
        files,
        classes,
        synset_order=options.synset_order,
        counted_from=_COUNTED_FROM.get(options.numbers),
    )
    unlisted = set(files).difference(image.path for image in known if image.path is not None)
    return KnownImages(known, left_out, len(unlisted))


async def answered(
    known: Sequence[Known],
    ask: Callable[[bytes], Awaitable[R | Fault]],
    predictor: Predictor,
    *,
    max_bytes: int,
    description: str,
) -> AsyncGenerator[tuple[Known, R | Fault], None]:
    """Yield each image with what `ask` says of its bytes, those that are not there first, and report every fault.

    Close it where it may not be read to its end.
    """
    there = [(image, image.path) for image in known if image.path is not None]
    for image in known:
        if image.path is None:
            fault = Fault("not_found", "The ground truth names it, and the folder does not hold it.")
            report(image.name, fault)
            yield image, fault
    under_way = answers(
        [path for _, path in there],
        ask,
        concurrency=predictor.concurrency,
        max_bytes=max_bytes,
        description=description,
        done=len(known) - len(there),
    )
    images = (image for image, _ in there)
    async with aclosing(under_way) as results:
        async for path, result in results:
            if isinstance(result, Fault):
                report(path, result)
            yield next(images), result
