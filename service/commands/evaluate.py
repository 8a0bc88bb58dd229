"""`evaluate`: top-1 and top-5 accuracy on a folder of images whose classes are known."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import aclosing

from service.commands import source, truth
from service.commands.reports import Evaluation, as_json, as_text
from service.evaluation.tally import TOP
from service.model.postprocess import Choice
from service.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    truth.add_arguments(parser)
    parser.add_argument("--format", choices=("text", "json"), default="text", help="form of the report (default: text)")
    parser.add_argument("--per-class", action="store_true", help="report every class by itself, too")
    parser.add_argument(
        "--confusions", type=int, default=10, metavar="N", help="most frequent wrong classes to show (default: 10)"
    )
    source.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print the report, and return 1 if any image could not be used or was left out.

    Raises StartupError where none could be used.

    When the work is interrupted, or its source fails, the report is of what was done, and says so.
    """
    settings = source.prepare(options)
    truth.check(options)
    return asyncio.run(_evaluate(options, settings))


async def _evaluate(options: argparse.Namespace, settings: Settings) -> int:
    async with source.open_source(options, settings) as predictor:
        known = await truth.known_images(options, predictor)
        evaluation = Evaluation(
            predictor.model, planned=len(known.images), left_out=known.left_out, unlisted=known.unlisted
        )
        under_way = truth.answered(
            known.images,
            lambda data: predictor.classify(data, Choice(TOP)),
            predictor,
            max_bytes=settings.max_body_bytes,
            description="evaluating",
        )
        try:
            async with aclosing(under_way) as results:
                async for image, result in results:
                    evaluation.add(image, result)
        finally:
            render = as_json if options.format == "json" else as_text
            print(render(evaluation, confusions=options.confusions, per_class=options.per_class), flush=True)
    return 1 if evaluation.faults or known.left_out.others or known.unlisted else 0
