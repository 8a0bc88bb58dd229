"""The images that int8 is made and judged with: a folder's photos, or seeded samples where there is none.

Invariants: what judges was not used to make; photos go through the service's own preprocessing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from export.errors import ExportError
from export.graph import CLASS_OUTPUT, INPUT_NAME, Normalisation
from export.verify import (
    TOLERANCES,
    Difference,
    Images,
    compare,
    differences_table,
    open_session,
    reference_outputs,
    sample_images,
)
from models.dat import DAT
from service.images.limits import DecodeLimits, UnusableImage
from service.images.names import LeftOut, is_image_name
from service.images.preprocessing import Preprocessing, decode_into, prepare_pillow

SAMPLES: Final = 32
SAMPLE_SEED: Final = 1000
HELD_OUT_EVERY: Final = 5
"""Every fifth image is kept from calibration, to judge by."""
MIN_PHOTOS: Final = 10
MAX_PHOTOS: Final = 500
"""More photos hardly move a range; the first in the order of their names are taken."""

_BATCH: Final = 4
_MAX_PIXELS: Final = 200_000_000


@dataclass(frozen=True, slots=True)
class Calibration:
    """uint8 images (count, height, width, 3) to take ranges from, and others to judge the outcome by."""

    images: Images
    held_out: Images
    source: str
    """What they are, for people; never a path."""
    left_out: str = ""
    """What of a folder was not used, as a part of a sentence; empty where all was."""


@dataclass(frozen=True, slots=True)
class QuantizationError:
    """What quantisation changed on images that it had not seen."""

    differences: tuple[Difference, ...]
    logits_error: float
    """Root mean square of the logits' differences over their standard deviation."""
    top1_agreement: float
    """Share of the images that keep their first class."""

    def __str__(self) -> str:
        return (
            f"logits' error {self.logits_error:.4f} of their standard deviation (allowed {TOLERANCES['int8'].rms}), "
            f"the same first class for {self.top1_agreement:.1%} of the images"
        )


def samples(size: tuple[int, int]) -> Calibration:
    """Return seeded images: patches of colour under noise, no photos."""
    return _split(sample_images(SAMPLE_SEED, SAMPLES, *size), f"{SAMPLES} seeded sample images")


def photos(folder: Path, preprocessing: Preprocessing) -> Calibration:
    """Read the photos that lie in a folder itself; ExportError where one of them, or their number, is no use."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise ExportError(f"the calibration folder {folder} cannot be read: {error.strerror}") from error
    taken = [name for name in names if is_image_name(name) and not name.startswith(".")]
    left_out = LeftOut()
    left_out.count(set(names).difference(taken), taken)
    parts = [left_out.describe()] if left_out else []
    if len(taken) < MIN_PHOTOS:
        others = f" (others: {parts[0]})" if parts else ""
        raise ExportError(f"{folder} holds {len(taken)} images; calibration needs at least {MIN_PHOTOS}{others}")
    if len(taken) > MAX_PHOTOS:
        parts.append(f"{len(taken) - MAX_PHOTOS} photos beyond the first {MAX_PHOTOS}")
    prepare_pillow()
    files = [folder / name for name in taken[:MAX_PHOTOS]]
    pixels = np.empty((len(files), *preprocessing.crop, 3), np.uint8)
    for path, into in zip(files, pixels, strict=True):
        try:
            decode_into(path.read_bytes(), into, preprocessing)
        except (UnusableImage, OSError) as error:
            raise ExportError(f"the calibration image {path} cannot be used: {error}") from error
    return replace(_split(pixels, f"{len(files)} photos"), left_out=", ".join(parts))


def service_preprocessing(resize: tuple[int, int], crop: tuple[int, int]) -> Preprocessing:
    """Return what the service does to images for a model of these sizes, (height, width)."""
    return Preprocessing(resize=resize, crop=crop, limits=DecodeLimits(max_pixels=_MAX_PIXELS))


def _split(images: Images, source: str) -> Calibration:
    is_held_out = np.arange(len(images)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return Calibration(images[~is_held_out], images[is_held_out], source)


def judge(path: Path, model: DAT, normalisation: Normalisation, images: Images) -> QuantizationError:
    """Compare the int8 graph at `path` with the torch model; ExportError where its error is too large."""
    session = open_session(path)
    names = [output.name for output in session.get_outputs()]
    worst: dict[str, Difference] = {}
    computed, expected = [], []
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        outputs, reference = session.run(None, {INPUT_NAME: batch}), reference_outputs(model, normalisation, batch)
        for name, actual, expectation in zip(names, outputs, reference, strict=True):
            difference = compare(name, actual, expectation, "int8")
            if name not in worst or not difference.share <= worst[name].share:
                worst[name] = difference
        computed.append(outputs[names.index(CLASS_OUTPUT)])
        expected.append(reference[names.index(CLASS_OUTPUT)])
    logits, reference_logits = np.concatenate(computed), np.concatenate(expected)
    error = QuantizationError(
        tuple(worst.values()),
        logits_error=float(np.sqrt(np.mean((logits - reference_logits) ** 2)) / reference_logits.std()),
        top1_agreement=float(np.mean(logits.argmax(1) == reference_logits.argmax(1))),
    )
    if not error.logits_error <= TOLERANCES["int8"].rms or not all(each.passes for each in error.differences):
        raise ExportError(f"int8 changes the model's answers too much: {error}\n{differences_table(error.differences)}")
    return error
