"""What the clients send: photos of a folder, or made ones of a size."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from service.errors import SettingsError
from service.images.files import reason_of

MOST_BYTES = 64 * 1024 * 1024
"""Of photos that are kept in memory; of a larger folder some are taken, evenly."""
MOST_FILES = 512
_VARIETY = 4
"""Made photos of each size."""
_QUALITY = 90
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height of WIDTHxHEIGHT; raises ValueError."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not WIDTHxHEIGHT")
    return int(found[1]), int(found[2])


def made(sizes: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return JPEG photos of these widths and heights, the same ones each time, as large as photos are."""
    return [_photo(width, height, seed) for seed in range(_VARIETY) for width, height in sizes]


def _photo(width: int, height: int, seed: int) -> bytes:
    """Make soft shapes with some grain: what is smooth compresses too well, and noise not at all."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(height // 24, 2), max(width // 24, 2), 3)).astype(np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = rng.normal(0, 5, soft.shape).astype(np.int16)
    file = io.BytesIO()
    Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def read(paths: Sequence[str]) -> list[bytes]:
    """Return the contents of files, of many of them some; raises SettingsError where one cannot be read."""
    step = max(-(-len(paths) // MOST_FILES), 1)
    taken: list[bytes] = []
    room = MOST_BYTES
    for path in paths[::step]:
        try:
            taken.append(Path(path).read_bytes())
        except OSError as error:
            raise SettingsError(f"{path} cannot be read: {reason_of(error)}") from error
        room -= len(taken[-1])
        if room <= 0:
            break
    return taken
