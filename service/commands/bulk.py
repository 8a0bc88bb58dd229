"""`bulk`: predictions and features of any number of images, as a folder of Parquet files, in a run that can be resumed.

The summary is one JSON object on standard output, also where the run is interrupted; what happens meanwhile is told on
standard error, a line a part. Everything that needs pyarrow is imported when the command runs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.commands import source
from service.commands.files import Found, find_files
from service.commands.terminal import printable, progress, report_left_out, say
from service.errors import SettingsError, StartupError
from service.images.names import SUFFIXES, LeftOut
from service.model.postprocess import Choice
from service.predictors.types import PredictorModel
from service.settings import Settings

if TYPE_CHECKING:
    from service.bulk.journal import Journal
    from service.bulk.parts import Part
    from service.bulk.run import Question, Workplace

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
    source.add_choice_arguments(parser)
    source.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Do what is not done yet, and return 1 if any image of the whole run is bad, or anything was left out.

    Raises StartupError.
    """
    _require_pyarrow()
    from service.bulk.journal import open_journal

    settings = source.prepare(options)
    if options.ray is not None and options.url is not None:
        raise SettingsError("--ray runs the model on a cluster, and --url asks a server: give one of them")
    found = _find(options.paths, options.out)
    report_left_out(found.left_out)
    with open_journal(options.out) as journal:
        return asyncio.run(_run(options, settings, found, journal))


async def _run(options: argparse.Namespace, settings: Settings, found: Found, journal: Journal) -> int:
    from service.bulk.parts import plan
    from service.bulk.run import Question
    from service.bulk.writing import schema_of

    if options.url is None:
        settings = source.of_the_model(options, settings)
    parts = await asyncio.to_thread(plan, found.files, part_images=options.part_images, column=options.column)
    async with _open_workplace(options, settings, journal) as workplace:
        outputs = () if options.outputs == "none" else source.checked_outputs(options.outputs, workplace.model)
        choice = source.choice_of(options, settings, workplace.model)
        record = _record(options, settings, workplace.model, outputs, choice)
        await asyncio.to_thread(journal.begin, record, found.files)
        question = Question(outputs, choice.or_top_k(settings.top_k), settings.max_body_bytes)
        schema = schema_of(await workplace.shapes(outputs), model=record["model"])
        return await _finish(parts, workplace, question, journal=journal, schema=schema, left_out=found.left_out)


async def _finish(
    parts: Sequence[Part],
    workplace: Workplace,
    question: Question,
    *,
    journal: Journal,
    schema: Any,
    left_out: LeftOut,
) -> int:
    """Do the parts that are not done, print the summary, and return the exit status."""
    from service.bulk.summary import Summary
    from service.bulk.writing import read_counts

    summary = Summary(str(journal.folder), parts=len(parts), left_out=left_out)
    still_open = {part.number: part for part in parts}
    for part in _finished(parts, journal):
        summary.resume(read_counts(journal.part_file(part.number)))
        del still_open[part.number]
    if len(still_open) < len(parts):
        say(f"{len(parts) - len(still_open)} of {len(parts)} parts are there already")
    try:
        with progress(_total(parts), "images", done=summary.images) as advance:
            under_way = workplace.run(tuple(still_open.values()), question, schema, advance=advance)
            async with aclosing(under_way) as done:
                async for part, counts in done:
                    del still_open[part.number]
                    summary.add(counts)
                    say(summary.line(part, counts))
        journal.clear()  # a node of a cluster may have been lost in mid-work
    finally:
        for part in _finished(still_open.values(), journal):  # one came into place as the run was interrupted
            summary.add(read_counts(journal.part_file(part.number)))
        print(summary.as_json(), flush=True)
    return 1 if summary.bad_images or summary.left_out.others else 0


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
    from service.bulk.run import LocalWorkplace

    async with source.open_source(options, settings) as predictor:
        yield LocalWorkplace(predictor, journal)


def _finished(parts: Iterable[Part], journal: Journal) -> list[Part]:
    return [part for part in parts if journal.part_file(part.number).exists()]


def _find(paths: list[str], out: Path) -> Found:
    from service.bulk.inputs import PARQUET_SUFFIXES, TAR_SUFFIXES

    out_folder = os.path.abspath(out)  # noqa: PTH100
    found = find_files(paths, suffixes=SUFFIXES + TAR_SUFFIXES + PARQUET_SUFFIXES, without=out_folder)
    for given, fault in found.faults.items():
        raise StartupError(f"{printable(given)}: {fault.detail}")
    below = os.path.join(out_folder, "")  # noqa: PTH118  # patterns may reach into it
    found.files = [path for path in found.files if not os.path.abspath(path).startswith(below)]  # noqa: PTH100
    return found


def _record(
    options: argparse.Namespace, settings: Settings, model: PredictorModel, outputs: tuple[str, ...], choice: Choice
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
        **(_chosen_limits(settings) if in_process else {}),
        # What older runs did not record, where it is not as they had it.
        **({} if model.resize == "exact" else {"resize": model.resize}),
        **({} if model.temperature is None else {"temperature": model.temperature}),
        **({"min_score": choice.min_score} if choice.min_score else {}),
        **({} if choice.classes is None else {"classes": list(choice.classes)}),
    }


def _chosen_limits(settings: Settings) -> dict[str, int]:
    """Return the limits that older runs did not record, where they are not the defaults, which those had."""
    limits = {name: getattr(settings, name) for name in ("max_image_scan_pixels", "max_image_segments")}
    return {name: limit for name, limit in limits.items() if limit != Settings.model_fields[name].default}


def _total(parts: Sequence[Part]) -> int | None:
    images = [part.images for part in parts]
    return None if None in images else sum(count for count in images if count is not None)


def _require_pyarrow() -> None:
    try:
        import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"bulk: {error.name} is not installed; requirements/bulk.txt has what reading and writing Parquet needs"
        ) from error
