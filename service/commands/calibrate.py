"""`calibrate`: the temperature that makes a model's scores as likely as they say, on images whose classes are known.

It is fitted on one part of the images, and judged on the other, which it has not seen. `--write` puts a new version
beside the one that was asked, of the same files and with the temperature in its manifest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.commands import source, truth
from service.commands.terminal import printable, report, say
from service.errors import InferenceFailed, SettingsError
from service.evaluation.calibration import (
    BadCalibration,
    Bin,
    Reliability,
    fitted_temperature,
    held_out_of,
    reliability,
)
from service.model.directory import open_model
from service.model.publish import derive_version
from service.predictors.types import Fault, Predictor, PredictorModel
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Calibration:
    """A temperature, and how likely scores are with the one that the model has and with this one."""

    model: PredictorModel
    temperature: float
    fitted: tuple[Reliability, Reliability]
    """Before and after, on the images that it was fitted on."""
    held_out: tuple[Reliability, Reliability]
    """Before and after, on the others."""

    @property
    def helps(self) -> bool:
        """Whether the images that it was not fitted on are more likely with it than before."""
        before, after = self.held_out
        return after.nll < before.nll


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    truth.add_arguments(parser)
    parser.add_argument(
        "--held-out", type=_share, default=0.5, metavar="SHARE",
        help="share of the images, and of each class, to judge by and not to fit on (default: 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--write", action="store_true",
        help="put the next version of the model into its repository, with the temperature in its manifest",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    source.add_arguments(parser)


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return share


def run(options: argparse.Namespace) -> int:
    """Print the report, and return 1 if any image could not be used or was left out.

    Raises StartupError where no temperature fits, and nothing is written then, nor where it does not help.
    """
    settings = source.prepare(options)
    truth.check(options)
    if options.write and options.url is not None:
        raise SettingsError("--write is for a model in a repository of this machine, and --url asks a server")
    if options.write and not isinstance(settings.repository, Path):
        raise SettingsError("--write is for a model in a repository of this machine: copy it from its address first")
    return asyncio.run(_calibrate(options, settings))


async def _calibrate(options: argparse.Namespace, settings: Settings) -> int:
    async with source.open_source(options, settings) as predictor:
        known = await truth.known_images(options, predictor)
        logits, classes = await _logits(known, predictor, max_bytes=settings.max_body_bytes)
        model = predictor.model
    found = _found(model, logits, classes, held_out=options.held_out)
    faults = len(known.images) - len(classes)
    written = None
    if options.write and found.helps:
        directory = open_model(settings.local_repository / model.name / str(model.version))
        written = derive_version(directory, temperature=found.temperature)
    besides = {"unusable": faults, "left_out": known.left_out.as_dict(), "unlisted_images": known.unlisted}
    print(_as_json(found, written, besides) if options.json else _as_text(found, written))
    if not found.helps:
        raise BadCalibration(
            "the images that were held out are not more likely with this temperature than before: nothing is written"
        )
    return 1 if faults or known.left_out.others or known.unlisted else 0


async def _logits(
    known: truth.KnownImages, predictor: Predictor, *, max_bytes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the logits (images, classes) of all images that can be used, and their classes (images,)."""
    output = predictor.model.class_output
    logits = np.empty((len(known.images), len(predictor.model.labels)), np.float32)
    classes: list[int] = []
    under_way = truth.answered(
        known.images,
        lambda data: predictor.features(data, (output,)),
        predictor,
        max_bytes=max_bytes,
        description="calibrating",
    )
    async with aclosing(under_way) as results:
        async for image, result in results:
            if isinstance(result, Fault):
                continue
            if not np.isfinite(result[output]).all():
                report(image.name, Fault(InferenceFailed.code, "The model's answer holds values that are not finite."))
                continue
            logits[len(classes)] = result[output]
            classes.append(image.class_id)
    return logits[: len(classes)], np.array(classes, np.int64)


def _found(
    model: PredictorModel,
    logits: NDArray[np.float32],
    classes: NDArray[np.int64],
    *,
    held_out: float,
) -> Calibration:
    """Fit on a part of the images and judge on both; raises BadCalibration."""
    others = held_out_of(classes.tolist(), held_out)
    temperature = fitted_temperature(logits[~others], classes[~others])

    def judged(part: NDArray[np.bool_]) -> tuple[Reliability, Reliability]:
        before, after = (reliability(logits[part], classes[part], each) for each in (model.temperature, temperature))
        return before, after

    return Calibration(model, temperature, judged(~others), judged(others))


def _as_json(found: Calibration, written: Path | None, besides: dict[str, Any]) -> str:
    parts = {
        name: {"before": asdict(before), "after": asdict(after)}
        for name, (before, after) in (("fitted", found.fitted), ("held_out", found.held_out))
    }
    return json.dumps(
        {
            "model": {"name": found.model.name, "version": found.model.version},
            "resize": found.model.resize,
            "temperature_before": found.model.temperature,
            "temperature": found.temperature,
            **parts,
            **besides,
            "written": None if written is None else str(written),
        },
        indent=2,
    )


def _as_text(found: Calibration, written: Path | None) -> str:
    model, (before, after) = found.model, found.held_out
    had = "none" if model.temperature is None else f"{model.temperature:.4f}"
    lines = [
        f"model        {model.name} version {model.version}",
        f"resize       {model.resize}",
        f"temperature  {found.temperature:.4f}  (before: {had}), fitted on {found.fitted[0].images} images",
        "",
        f"{'':11}{'images':>8}{'accuracy':>10}{'NLL':>9}{'after':>9}{'ECE':>9}{'after':>9}",
    ]
    for name, (had_it, has_it) in (("fitted", found.fitted), ("held out", found.held_out)):
        lines.append(
            f"{name:11}{had_it.images:>8}{had_it.accuracy:>10.2%}{had_it.nll:>9.4f}{has_it.nll:>9.4f}"
            f"{had_it.ece:>9.4f}{has_it.ece:>9.4f}"
        )
    lines += ["", "of those held out, by their highest score, before | after:"]
    lines.append(f"{'score':11}" + " |".join([f"{'images':>8}{'score':>8}{'right':>8}"] * 2))
    for each in zip(before.bins, after.bins, strict=True):
        if any(one.images for one in each):
            lines.append(f"{each[0].lower:.2f}-{each[0].upper:.2f}  " + " |".join(map(_bin, each)))
    if written is not None:
        lines += ["", f"written: {printable(str(written))}"]
        say("a server has the new version when it loads it: python -m service models load, or at its next start")
    return "\n".join(lines)


def _bin(each: Bin) -> str:
    if each.confidence is None or each.accuracy is None:
        return f"{each.images:>8}{'':>16}"
    return f"{each.images:>8}{each.confidence:>8.3f}{each.accuracy:>8.3f}"
