"""What one image may be and cost, and how it is refused: as `UnusableImage`, with the fault that it has.

The costs are bounded by what a file's structure says, before anything is decoded. A decoder cannot be interrupted, and
its work does not grow with the file's bytes: a progressive JPEG of 78 kB can go over 16 million pixels 1,500 times.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import ImageFault

MAX_PIXELS = 64_000_000
MAX_SCAN_PIXELS = 1_280_000_000
"""An image of 64 million pixels in 20 scans. Encoders write 10 scans, or 18 in CMYK."""
MAX_SIDE = 65_535
"""The most that JPEG and GIF can say. Thinner images cost far more than their pixels: memory by the line, and a filter
as wide as the image when it is resized."""
MAX_SEGMENTS = 16_384
"""Files of cameras and of the web have fewer than a hundred; 128 MiB of PNG in libpng's chunks have as many."""


class UnusableImage(Exception):
    """One image cannot be used; `fault` says why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.fault = ImageFault(code, detail)


def corrupt() -> UnusableImage:
    """Return the error of a file that is not what its format asks for."""
    return UnusableImage("undecodable", "The image is truncated or corrupt.")


def not_taken(what: str) -> UnusableImage:
    """Return the error of a file that is valid, in a way that is not taken; `what` begins a sentence, as "A TIFF"."""
    return UnusableImage("unsupported_encoding", f"{what} is not taken; save it anew, as an ordinary PNG or JPEG.")


@dataclass(frozen=True)
class DecodeLimits:
    """What one image may be and cost."""

    max_pixels: int = MAX_PIXELS
    """Width times height, as the header has them."""
    max_scan_pixels: int = MAX_SCAN_PIXELS
    """Pixels that the decoder may go over in all: those of each scan, strip or tile of the file."""
    max_segments: int = MAX_SEGMENTS
    """Segments, chunks, blocks, tags, strips or tiles that the file may consist of."""

    def check_pixels(self, width: int, height: int) -> None:
        """Raise UnusableImage with code `too_many_pixels`."""
        if max(width, height) > MAX_SIDE:
            raise UnusableImage(
                "too_many_pixels",
                f"The image is {width} x {height} pixels; sides of at most {MAX_SIDE} are taken.",
            )
        if width * height > self.max_pixels:
            raise UnusableImage(
                "too_many_pixels",
                f"The image is {width} x {height} pixels; at most {self.max_pixels} in all are taken.",
            )

    def check_scans(self, scans: int, pixels: int, *, what: str) -> None:
        """Raise UnusableImage with code `too_complex` where a decoder would go over so many pixels so many times."""
        if scans * pixels > self.max_scan_pixels:
            raise UnusableImage(
                "too_complex",
                f"The image has too many {what}: {scans} of {pixels} pixels, which decoding would go over one by one; "
                f"at most {self.max_scan_pixels} pixels in all are taken.",
            )

    def check_segments(self, segments: int, *, what: str) -> None:
        """Raise UnusableImage with code `too_complex` where a file has more parts than are taken."""
        if segments > self.max_segments:
            raise UnusableImage("too_complex", f"The file has more than {self.max_segments} {what}.")


DEFAULT_LIMITS = DecodeLimits()


@dataclass(frozen=True, slots=True)
class GreyRange:
    """How the numbers of a grey image stand for light, where they are not simply 0, black, to 255, white."""

    bits: int
    is_signed: bool = False
    is_inverted: bool = False
    """The smallest number is white."""


@dataclass(frozen=True, slots=True)
class Essence:
    """What of a file decides its pixels: the file for the decoder, without metadata.

    Metadata are left out since nothing here uses them, while decoders read them at a cost, and refuse whole images for
    their sake.
    """

    form: str
    """The format, by Pillow's name."""
    data: bytes | bytearray
    orientation: int = 1
    """EXIF's: 1 is upright, 2 to 8 are turned or mirrored."""
    grey: GreyRange | None = None
    """None where the decoder reads the range of grey rightly by itself."""
    kind: str = ""
    """What is special about the file, where a decoder may well not take it though it is valid; begins a sentence."""
    crop: tuple[int, int, int, int] | None = None
    """What of the decoded pixels is the picture: (left, top, right, bottom), before they are turned; None for all."""
