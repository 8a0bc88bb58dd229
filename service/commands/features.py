"""`features`: outputs of the model for image files, as one NumPy archive."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import aclosing
from pathlib import Path

from service.commands import source
from service.commands.answers import answers
from service.commands.archive import ArchiveWriter
from service.commands.files import Found, find_files
from service.commands.terminal import report, report_left_out, say
from service.errors import SettingsError
from service.predictors.types import Fault, Predictor
from service.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image file, folder, or pattern in quotes")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.npz",
        help="archive to write: an array `path`, and one an output, with a row for each image that could be used",
    )  # fmt: skip
    parser.add_argument(
        "--outputs", default="embedding", metavar="NAMES",
        help="outputs of the model, separated by commas, as in embedding,stage4 (default: embedding)",
    )  # fmt: skip
    source.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Write the archive, and return 1 if any file has no row or was left out.

    Raises StartupError where none could have a row.

    What is done when the work is interrupted, or its source fails, is written all the same.
    """
    settings = source.prepare(options)
    if not options.out.parent.is_dir():
        raise SettingsError(f"--out: there is no folder {options.out.parent}")
    if options.out.is_dir():
        raise SettingsError(f"--out: {options.out} is a folder")
    return asyncio.run(_extract(options, settings))


async def _extract(options: argparse.Namespace, settings: Settings) -> int:
    out: Path = options.out
    found = await asyncio.to_thread(find_files, options.paths)
    for given, fault in found.faults.items():
        report(given, fault)
    report_left_out(found.left_out)
    if not found.files:
        return 1
    async with source.open_source(options, settings) as predictor:
        outputs = source.checked_outputs(options.outputs, predictor.model)
        with ArchiveWriter(out, outputs) as archive:
            try:
                await _fill(archive, found, predictor, outputs, max_bytes=settings.max_body_bytes)
            finally:
                archive.finish()
                say(f"{out}: features of {archive.rows} of {len(found.files)} images")
    return 0 if archive.rows == len(found.files) and not found.faults and not found.left_out.others else 1


async def _fill(
    archive: ArchiveWriter, found: Found, predictor: Predictor, outputs: tuple[str, ...], *, max_bytes: int
) -> None:
    under_way = answers(
        found.files,
        lambda image: predictor.features(image, outputs),
        concurrency=predictor.concurrency,
        max_bytes=max_bytes,
        description="extracting",
    )
    async with aclosing(under_way) as results:
        async for path, result in results:
            if isinstance(result, Fault):
                report(path, result)
            else:
                archive.add(path, result)
