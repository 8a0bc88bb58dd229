"""Who answers a command's questions, a server or a model in this process, as the command line says."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.options import given_settings, settings_from
from service.errors import SettingsError
from service.model.classes import Classes, UnknownClass
from service.model.manifest import unknown_outputs
from service.model.postprocess import Choice
from service.model.selection import settings_of_only_model
from service.predictors.types import Predictor, PredictorModel
from service.settings import CLIENT_API_KEY, Settings, add_options, option_of
from service.telemetry.logs import configure_logging
from service.text_files import BadTextFile, read_lines

if TYPE_CHECKING:
    from service.predictors.in_process import InProcessPredictor

_OF_EITHER = frozenset({"settings", "model", "max_body_bytes", "log_level", "log_format"})
_OF_A_PROCESS = frozenset(
    {
        "repository", "repository_cache", "model_version", "device", "threads", "decode_threads", "strict_device",
        "fused", "cuda_graphs", "self_check", "shrink_arena_above", "provider_options", "batch_buckets", "max_delay_ms",
        "hang_timeout_ms", "max_image_pixels", "max_image_scan_pixels", "max_image_segments", "exif_orientation",
        "resize",
    }
)  # fmt: skip
"""Settings that a server has chosen for itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose who answers."""
    server = parser.add_argument_group("ask a server")
    server.add_argument("--url", help="address of a running service; left out, the model is loaded in this process")
    server.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"file that holds the API key (default: ${CLIENT_API_KEY})"
    )
    parser.add_argument(
        "--concurrency",
        type=positive,
        metavar="N",
        help="images under way at a time (default: what keeps the model busy)",
    )
    add_options(parser, only=_OF_EITHER | _OF_A_PROCESS)


def add_choice_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose which predictions are named."""
    add_options(parser, only=("top_k",))
    parser.add_argument(
        "--min-score", type=probability, default=0.0, metavar="SCORE", help="leave out predictions with a lower score"
    )
    parser.add_argument(
        "--classes", action="append", default=[], metavar="CLASSES",
        help="name these classes alone, by ids, labels or synsets, separated by commas or each by an option of its own",
    )  # fmt: skip


def choice_of(options: argparse.Namespace, settings: Settings, model: PredictorModel) -> Choice:
    """Return which predictions the options ask for; left out, how many is for whoever answers.

    Raises SettingsError that names what is no class of the model.
    """
    try:
        classes = Classes(model.labels).chosen(options.classes) if options.classes else None
    except UnknownClass as error:
        raise SettingsError(f"--classes: {error}") from error
    return Choice(getattr(options, "top_k", None) and settings.top_k, options.min_score, classes)


def probability(text: str) -> float:
    """Return a number from 0 to 1, as argparse asks for it."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return number


def positive(text: str) -> int:
    """Return a whole number above 0, as argparse asks for it."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def prepare(options: argparse.Namespace) -> Settings:
    """Return the settings, and set the logs up; raises SettingsError where options contradict each other."""
    settings = settings_from(options)
    if options.url is None and options.api_key_file is not None:
        raise SettingsError("--api-key-file is for a server: give its --url")
    if len(settings.model) > 1 or settings.serves_all:
        raise SettingsError(f"{option_of('model')}: one model is asked here (given {','.join(settings.model)!r})")
    if options.url is not None and "@" in "".join(settings.model):
        raise SettingsError(f"{option_of('model')}: the server at --url has checked the model's digest itself")
    meant_for_process = sorted(_OF_A_PROCESS & given_settings(options).keys()) if options.url is not None else []
    if meant_for_process:
        raise SettingsError(
            f"{', '.join(map(option_of, meant_for_process))}: the server at --url has chosen that itself"
        )
    level = settings.log_level if "log_level" in settings.model_fields_set else "warning"
    configure_logging(level=level, form=settings.log_format)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every request
    return settings


def of_the_model(options: argparse.Namespace, settings: Settings) -> Settings:
    """Return what holds for the one model that is asked in this process, the command's options before all else.

    Raises StartupError where the repository does not hold it, or something is wrong with its settings.
    """
    return settings_of_only_model(settings).with_options(given_settings(options))


@asynccontextmanager
async def open_source(options: argparse.Namespace, settings: Settings) -> AsyncIterator[Predictor]:
    """Give the predictor that the options choose; only what that one needs is imported.

    Raises StartupError where the model cannot be loaded, or the server not reached.
    """
    if options.url is None:
        async with open_in_process(options, settings) as local:
            yield local
    else:
        from service.predictors import over_http

        async with over_http.open_predictor(
            options.url,
            api_key=api_key(options.api_key_file),
            model=settings.model[0] if settings.model else None,
            concurrency=options.concurrency,
        ) as remote:
            yield remote


@asynccontextmanager
async def open_in_process(options: argparse.Namespace, settings: Settings) -> AsyncIterator[InProcessPredictor]:
    """Give the predictor of the model in this process; raises StartupError where it cannot be loaded."""
    from service.predictors import in_process

    settings = of_the_model(options, settings)
    async with in_process.open_predictor(settings, concurrency=options.concurrency) as local:
        yield local


def checked_outputs(text: str, model: PredictorModel) -> tuple[str, ...]:
    """Return the outputs that a list with commas names, each once; raises SettingsError where the model lacks one."""
    outputs = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if lacking := unknown_outputs(outputs, model.outputs):
        raise SettingsError(f"--outputs: {lacking}")
    return outputs


def api_key(file: Path | None) -> str | None:
    """Return the API key to show to a server, of a file or else the environment; raises SettingsError."""
    if file is None:
        return os.environ.get(CLIENT_API_KEY) or None
    try:
        lines = read_lines(file)
    except BadTextFile as error:
        raise SettingsError(f"--api-key-file: {error}") from error
    key = lines[0].strip() if len(lines) == 1 else ""
    if not key.isascii():
        raise SettingsError(f"--api-key-file: {file} cannot be read as a key: it holds more than ASCII")
    if not key or not key.isprintable():
        raise SettingsError(f"--api-key-file: {file} should hold one line, the key")
    return key
