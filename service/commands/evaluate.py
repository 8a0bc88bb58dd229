"""`evaluate`: top-1 and top-5 accuracy on a folder of images whose classes are known."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TypeAlias

from service.commands import source, truth
from service.commands.options import given_settings
from service.commands.reports import Evaluation, as_json, as_text
from service.errors import SettingsError
from service.evaluation.comparison import Comparison
from service.evaluation.ground_truth import Known
from service.evaluation.tally import TOP
from service.model.postprocess import Choice
from service.predictors.types import Fault, Predictor, Ranking, ScoresByBoth
from service.settings import Settings

_Answer: TypeAlias = Ranking | ScoresByBoth | Fault
_Ask: TypeAlias = Callable[[bytes], Awaitable[_Answer]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    truth.add_arguments(parser)
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
    truth.check(options)
    return asyncio.run(_evaluate(options, settings))


async def _evaluate(options: argparse.Namespace, settings: Settings) -> int:
    async with _open(options, settings) as (predictor, ask):
        known = await truth.known_images(options, predictor)
        evaluation = Evaluation(
            predictor.model, planned=len(known.images), left_out=known.left_out, unlisted=known.unlisted
        )
        if options.compare_resize:
            evaluation.model = replace(predictor.model, resize="exact")
            evaluation.comparison = Comparison("fast")
        under_way: AsyncGenerator[tuple[Known, _Answer], None] = truth.answered(
            known.images, ask, predictor, max_bytes=settings.max_body_bytes, description="evaluating"
        )
        try:
            async with aclosing(under_way) as results:
                async for image, result in results:
                    evaluation.add(image, result)
        finally:
            render = as_json if options.format == "json" else as_text
            print(render(evaluation, confusions=options.confusions, per_class=options.per_class), flush=True)
    return 1 if evaluation.faults or known.left_out.others or known.unlisted else 0


@asynccontextmanager
async def _open(options: argparse.Namespace, settings: Settings) -> AsyncIterator[tuple[Predictor, _Ask]]:
    """Give who answers, and the question: which classes, by one resize or by both."""
    if options.compare_resize:
        async with source.open_in_process(options, settings) as local:
            yield local, local.scores_by_both_resizes
        return
    async with source.open_source(options, settings) as predictor:
        yield predictor, lambda image: predictor.classify(image, Choice(TOP))
