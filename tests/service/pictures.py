"""Image files for the tests, and the published preprocessing written down once more, step by step."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.service import tiny_model


def pixels(width: int = 80, height: int = 60, *, seed: int = 0, channels: int = 3) -> NDArray[np.uint8]:
    """Smooth colours with noise on them: compressible, and not the same anywhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * (3 + c) + y * (5 + c) + rng.integers(0, 32, (height, width))) % 256 for c in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def photo(form: str = "PNG", *, width: int = 80, height: int = 60, seed: int = 0, **options: Any) -> bytes:
    return encoded(Image.fromarray(pixels(width, height, seed=seed)), form, **options)


def naive(
    data: bytes,
    *,
    resize: tuple[int, int] = (tiny_model.RESIZE, tiny_model.RESIZE),
    crop: tuple[int, int] = (tiny_model.SIZE, tiny_model.SIZE),
) -> NDArray[np.uint8]:
    """Convert to RGB, resize bicubically to (height, width), crop the centre: each step by itself."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image = image.resize((resize[1], resize[0]), resample=Image.Resampling.BICUBIC)
    top = round((resize[0] - crop[0]) / 2.0)
    left = round((resize[1] - crop[1]) / 2.0)
    return np.array(image)[top : top + crop[0], left : left + crop[1]]


def expected(
    data: bytes, output: str, *, size: int = tiny_model.SIZE, seed: int = tiny_model.SEED
) -> NDArray[np.float32]:
    """The output for one image file of the tiny model, or of one with another size or other weights."""
    resize = tiny_model.RESIZE * size // tiny_model.SIZE
    image = naive(data, resize=(resize, resize), crop=(size, size))
    answer: NDArray[np.float32] = tiny_model.reference(image[None], seed=seed)[output][0]
    return answer


def bilevel_png(width: int, height: int) -> bytes:
    """A black 1-bit PNG, built row by row: a small file of any number of pixels."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
