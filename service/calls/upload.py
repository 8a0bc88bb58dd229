"""An image file as a caller sent it, whatever carried it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.calls.base64_text import from_base64
from service.errors import MalformedRequest
from service.images.formats import begins_like_an_image
from service.images.limits import UnusableImage
from service.images.preprocessing import ImageTimings, Preprocessing, decode_into

PREFIX_BYTES = 64

ImageBytes: TypeAlias = bytes | bytearray


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as it was sent; `filename` only where a multipart part gave one."""

    index: int
    filename: str | None
    data: ImageBytes

    @property
    def size_bytes(self) -> int:
        """How many bytes the file has."""
        return len(self.data)

    def digest(self) -> bytes:
        """Return the file's SHA-256."""
        return hashlib.sha256(self.data).digest()

    def write(self, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> ImageTimings:
        """Decode the file into the model's input; raises UnusableImage."""
        try:
            return decode_into(self.data, pixels, preprocessing)
        except UnusableImage as error:
            if error.fault.code == "unsupported_format" and encodes_an_image(bytes(self.data[:PREFIX_BYTES])):
                hint = "It is base64, which is read as such in JSON only."
                raise UnusableImage("unsupported_format", f"{error} {hint}") from error
            raise


def encodes_an_image(text: bytes) -> bool:
    """Return whether text is the base64 of an image, or a data URL with one, by its beginning, `PREFIX_BYTES` of it."""
    begin = text[:PREFIX_BYTES].strip()
    head, comma, encoded = begin.rpartition(b",") if begin.lower().startswith(b"data:") else (b"", b"", begin)
    try:
        return begins_like_an_image(from_base64(head + comma + encoded[: len(encoded) // 4 * 4], "The file"))
    except MalformedRequest:
        return False
