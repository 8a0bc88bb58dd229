"""`bulk`: predictions and features of any number of images, as a folder of Parquet files, in a run that can be resumed.

The summary is one JSON object on standard output, also where the run is interrupted; what happens meanwhile is told on
standard error, a line a part. Everything that needs pyarrow is imported when the command runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.commands import source
from service.commands.files import find_files
from service.commands.terminal import printable, progress, say
from service.errors import SettingsError, StartupError
from service.predictors.types import PredictorModel
from service.settings import Settings, add_options

if TYPE_CHECKING:
    from service.bulk.journal import Journal
    from service.bulk.parts import Part
    from service.bulk.run import Workplace
    from service.bulk.writing import Counts

_PART_IMAGES = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "paths", nargs="+", metavar="INPUT",
        help="image file, tar shard, Parquet file, folder of any of these, or pattern in quotes",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="folder of the Parquet files; a run that was interrupted there is continued",
    )  # fmt: skip
    parser.add_argument(
        "--outputs", default="embedding", metavar="NAMES",
        help="outputs of the model, separated by commas, as in embedding,stage4; none: predictions alone "
        "(default: embedding)",
    )  # fmt: skip
    parser.add_argument("--column", metavar="NAME", help="column of a Parquet file that holds the images")
    parser.add_argument(
        "--part-images", type=source.positive, default=_PART_IMAGES, metavar="N",
        help=f"images of a file of the results, and what a kill can cost; a tar shard is one in any case "
        f"(default: {_PART_IMAGES})",
    )  # fmt: skip
    parser.add_argument(
        "--ray", metavar="ADDRESS",
        help="do the parts on a Ray cluster, on every device of it; its nodes must see INPUT, DIR and the model "
        "repository under the same paths",
    )  # fmt: skip
    add_options(parser, only=("top_k",))
    source.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Do what is not done yet, and return 1 if any image of the whole run is bad; raises StartupError."""
    _require_pyarrow()
    from service.bulk.journal import open_journal

    settings = source.prepare(options)
    if options.ray is not None and options.url is not None:
        raise SettingsError("--ray runs the model on a cluster, and --url asks a server: give one of them")
    files = _find(options.paths, options.out)
    with open_journal(options.out) as journal:
        return asyncio.run(_run(options, settings, files, journal))


@dataclass(slots=True)
class Summary:
    """What a run has done, as it is printed."""

    out: str
    complete: bool = False
    images: int = 0
    """Of all finished parts."""
    bad_images: int = 0
    parts: int = 0
    parts_done: int = 0
    parts_resumed: int = 0
    """Parts that an earlier run had finished."""
    images_per_s: float = 0.0
    """Of this run, in the parts that it finished."""
    seconds: float = 0.0
    _began_s: float = field(default_factory=time.monotonic, repr=False)

    def add(self, counts: Counts) -> None:
        """Count a part."""
        self.images += counts.images
        self.bad_images += counts.bad
        self.parts_done += 1

    def measure(self, images: int) -> None:
        """Take the time for images that were done since the start."""
        self.seconds = round(time.monotonic() - self._began_s, 3)
        self.images_per_s = round(images / self.seconds, 1) if self.seconds else 0.0

    def as_json(self) -> str:
        """Return it as one line."""
        return json.dumps({name: value for name, value in asdict(self).items() if not name.startswith("_")})


async def _run(options: argparse.Namespace, settings: Settings, files: list[str], journal: Journal) -> int:
    from service.bulk.parts import plan
    from service.bulk.run import Question
    from service.bulk.writing import schema_of

    parts = await asyncio.to_thread(plan, files, part_images=options.part_images, column=options.column)
    async with _open_workplace(options, settings, journal) as workplace:
        outputs = () if options.outputs == "none" else source.checked_outputs(options.outputs, workplace.model)
        question = Question(outputs, settings.top_k, settings.max_body_bytes)
        record = _record(options, settings, workplace.model, outputs)
        await asyncio.to_thread(journal.begin, record, files)
        schema = schema_of(await workplace.shapes(outputs), model=record["model"])
        summary = Summary(str(options.out), parts=len(parts))
        still_open = {part.number: part for part in _count_finished(parts, journal, summary)}
        before, summary.parts_resumed = summary.images, summary.parts_done
        if summary.parts_resumed:
            say(f"{summary.parts_resumed} of {summary.parts} parts are there already")
        try:
            with progress(_total(parts), "images", done=before) as advance:
                under_way = workplace.run(tuple(still_open.values()), question, schema, advance=advance)
                async with aclosing(under_way) as done:
                    async for part, counts in done:
                        del still_open[part.number]
                        summary.add(counts)
                        summary.measure(summary.images - before)
                        say(_line(part, counts, summary))
            summary.complete = True
            journal.clear()  # of what was lost on the way with a node of a cluster
        finally:
            _count_finished(
                still_open.values(), journal, summary
            )  # one may have come into place as the run was interrupted
            print(summary.as_json(), flush=True)
    return 1 if summary.bad_images else 0


@asynccontextmanager
async def _open_workplace(
    options: argparse.Namespace, settings: Settings, journal: Journal
) -> AsyncIterator[Workplace]:
    """Give the place that the options choose; raises StartupError where it cannot be had."""
    if options.ray is not None:
        from service.bulk import on_ray

        async with on_ray.open_cluster(options.ray, settings, journal, concurrency=options.concurrency) as cluster:
            yield cluster
        return
    from service.bulk.run import Here

    async with source.open_source(options, settings) as predictor:
        yield Here(predictor, journal)


def _count_finished(parts: Iterable[Part], journal: Journal, summary: Summary) -> list[Part]:
    """Count the parts whose files are there, and return the others."""
    from service.bulk.writing import read_counts

    still_open = []
    for part in parts:
        path = journal.part_file(part.number)
        if path.exists():
            summary.add(read_counts(path))
        else:
            still_open.append(part)
    return still_open


def _find(paths: list[str], out: Path) -> list[str]:
    from service.bulk.inputs import PARQUET_SUFFIXES, TAR_SUFFIXES
    from service.image_files import SUFFIXES

    found = find_files(paths, suffixes=SUFFIXES + TAR_SUFFIXES + PARQUET_SUFFIXES)
    for given, fault in found.faults.items():
        raise StartupError(f"{printable(given)}: {fault.detail}")
    below = os.path.join(os.path.abspath(out), "")  # noqa: PTH100, PTH118
    return [path for path in found.files if not os.path.abspath(path).startswith(below)]  # noqa: PTH100


def _record(
    options: argparse.Namespace, settings: Settings, model: PredictorModel, outputs: tuple[str, ...]
) -> dict[str, Any]:
    """Return what the rows depend on, besides the files."""
    in_process = options.url is None
    return {
        "model": {
            "name": model.name,
            "version": model.version,
            "precision": model.precision,
            "created": model.created,
            "weights_sha256": model.weights_sha256,
        },
        "answered_by": "process" if in_process else "server",
        "exif_orientation": settings.exif_orientation if in_process else None,  # else the server's, which it keeps
        "max_image_pixels": settings.max_image_pixels if in_process else None,
        "max_body_bytes": settings.max_body_bytes,
        "outputs": list(outputs),
        "top_k": settings.top_k,
        "column": options.column,
        "part_images": options.part_images,
    }


def _total(parts: list[Part]) -> int | None:
    images = [part.images for part in parts]
    return None if None in images else sum(count for count in images if count is not None)


def _line(part: Part, counts: Counts, summary: Summary) -> str:
    bad = f", {counts.bad} of them bad" if counts.bad else ""
    return (
        f"part {part.number}: {counts.images} images{bad}; "
        f"{summary.parts_done} of {summary.parts} parts, {summary.images_per_s} images/s"
    )


def _require_pyarrow() -> None:
    try:
        import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"bulk: {error.name} is not installed; requirements/bulk.txt has what reading and writing Parquet needs"
        ) from error
