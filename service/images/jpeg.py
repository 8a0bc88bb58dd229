"""JPEG: the frame, the scans, and the segments that decide the pixels.

Markers are found as libjpeg finds them: bytes between segments are passed over, as are stuffed zeros and restart
markers within a scan's data, and nothing is read after the end of the image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from service.images.limits import DecodeLimits, Essence, corrupt, not_taken
from service.images.tiff import orientation_in

MAGIC = b"\xff\xd8\xff"
_START_OF_SCAN = b"\xff\xda"
END = b"\xff\xd9"
_LARGEST_MCU = 32
"""A side, in pixels, of the most that is coded together: thin images cost as if they were so thick."""

_MARKER = re.compile(rb"\xff[^\x00\xff]")
_MARKER_AFTER_DATA = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END_OF_SCAN = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
"""Where decoders stop, even those that look for a restart marker and find another."""
_SOI, _EOI, _SOS, _APP0, _APP1, _APP14, _APP15, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_ALONE = frozenset((_SOI, *range(0xC0), *range(0xD0, 0xD8)))
"""Markers without a length and content, and bytes that are no marker."""
_PROGRESSIVE = (0xC2, 0xCA)
_ARITHMETIC = (0xC9, 0xCA)
_ARITHMETIC_COST = 4
"""What a pixel of a scan in arithmetic coding costs, in those of other scans."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NOT_TAKEN = {
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE), "A hierarchical JPEG"),
    **dict.fromkeys((0xC7, 0xCF), "A hierarchical, lossless JPEG"),
    **{0xCB: "A lossless JPEG in arithmetic coding", 0xF7: "A JPEG-LS file"},
}
"""What begins frames that no decoder here knows."""
_EXIF = b"Exif\0\0"


@dataclass(slots=True)
class _Head:
    """What stands before the first scan: the frame's content, the segments to keep, and where the scan begins."""

    frame: bytes = b""
    process: int = 0
    kept: list[tuple[int, int]] = field(default_factory=list)
    exif: bytes = b""
    scan: int = 0
    segments: int = 0


def _covered_pixels(width: int, height: int) -> int:
    """Return the pixels that a scan covers at most, in whole units of what is coded together."""
    return -(-width // _LARGEST_MCU) * _LARGEST_MCU * (-(-height // _LARGEST_MCU) * _LARGEST_MCU)


def check_scans(data: bytes | bytearray, width: int, height: int, limits: DecodeLimits) -> None:
    """Raise UnusableImage with code `too_complex` where the scans of a JPEG cost too much.

    Usual files pass soon: those of one scan by their head, and others at the speed at which memory is read, since the
    two bytes that begin a scan can stand elsewhere too, but no scan is without them.
    """
    _check_scans(data, _head(data, limits), width, height, limits)


def _check_scans(data: bytes | bytearray, head: _Head, width: int, height: int, limits: DecodeLimits) -> None:
    if head.process not in _ARITHMETIC and _is_of_one_scan(data, head):
        return
    pixels = _covered_pixels(width, height) * (_ARITHMETIC_COST if head.process in _ARITHMETIC else 1)
    at_most = data.count(_START_OF_SCAN)
    if at_most * pixels > limits.max_scan_pixels or at_most > limits.max_segments:
        limits.check_scans(_scans(data, head, limits)[0], pixels, what="scans")


def is_whole(data: bytes | bytearray, limits: DecodeLimits) -> bool:
    """Return whether a decoder finds an end to the data of every scan, and need not make one up.

    The data of an only scan end at any marker. After other scans more may follow, until the end of the image.
    """
    head = _head(data, limits)
    if _is_of_one_scan(data, head):
        return _END_OF_SCAN.search(data, head.scan + 2 + _length(data, head.scan + 2)) is not None
    return _scans(data, head, limits)[1]


def orientation(data: bytes | bytearray, limits: DecodeLimits) -> int:
    """Return the EXIF orientation, 1 where there is none."""
    return orientation_in(_head(data, limits).exif, limits)


def essence(data: bytes | bytearray, limits: DecodeLimits) -> Essence:
    """Return the file without metadata; raises UnusableImage where it costs too much, or is not taken or no JPEG."""
    head = _head(data, limits)
    if len(head.frame) < 6:
        raise corrupt()
    precision, components = head.frame[0], head.frame[5]
    height, width = int.from_bytes(head.frame[1:3]), int.from_bytes(head.frame[3:5])
    limits.check_pixels(width, height)
    if precision != 8:
        raise not_taken(f"A JPEG of {precision} bits a channel")
    if components not in (1, 3, 4):
        raise not_taken(f"A JPEG of {components} channels")
    _check_scans(data, head, width, height, limits)
    parts = [b"\xff\xd8", *(data[start:end] for start, end in head.kept), data[head.scan :]]
    return Essence("JPEG", b"".join(parts), orientation=orientation_in(head.exif, limits))


def _head(data: bytes | bytearray, limits: DecodeLimits) -> _Head:
    head = _Head()
    place = 2
    while (found := _MARKER.search(data, place)) is not None:
        marker = data[found.end() - 1]
        place = found.end()
        if marker == _SOS:
            head.scan = found.start()
            return head
        head.segments += 1
        limits.check_segments(head.segments, what="segments")
        if marker == _EOI:
            break
        if marker in _ALONE:
            continue
        end = place + _length(data, place)
        if marker in _NOT_TAKEN:
            raise not_taken(_NOT_TAKEN[marker])
        if marker in _FRAMES:
            head.process, head.frame = marker, bytes(data[place + 2 : end])
        if marker == _APP1 and not head.exif and data[place + 2 : place + 8] == _EXIF:
            head.exif = bytes(data[place + 8 : end])
        if marker in (_APP0, _APP14) or not (_APP0 <= marker <= _APP15 or marker == _COM):
            head.kept.append((found.start(), end))
        place = end
    raise corrupt()


def _is_of_one_scan(data: bytes | bytearray, head: _Head) -> bool:
    """Return whether the first scan has all of all channels, so that decoders take no second one."""
    return head.process not in _PROGRESSIVE and data[head.scan + 4 : head.scan + 5] == head.frame[5:6]


def _scans(data: bytes | bytearray, head: _Head, limits: DecodeLimits) -> tuple[int, bool]:
    """Return the number of scans, and whether the image's end comes after them."""
    scans, segments, place = 0, head.segments, head.scan
    while (found := _MARKER_AFTER_DATA.search(data, place)) is not None:
        marker = data[found.end() - 1]
        place = found.end()
        segments += 1
        limits.check_segments(segments, what="segments")
        if marker == _EOI:
            return scans, True
        if marker in _ALONE:
            continue
        scans += marker == _SOS
        place += _length(data, place)
    return scans, False


def _length(data: bytes | bytearray, place: int) -> int:
    """Return a segment's length, itself included, from its first two bytes; libjpeg takes less than 2 for 2."""
    return max(2, int.from_bytes(data[place : place + 2]))
