"""HEVC, which HEIC files hold: the pixels that a decoder of an item's data would go over, from its headers alone.

The data are NAL units, each behind its length; the parameter sets, which give the size, are in the configuration, and
may be in the data as well. Each slice may cover the whole picture again, whatever its encoder made of it, and counts
as one. (ITU-T H.265, 7.3; ISO/IEC 14496-15, 8.3.3.)
"""

from __future__ import annotations

from service.images.bits import Bits
from service.images.isobmff import Account, Box, Reader
from service.images.limits import DecodeLimits, UnusableImage, corrupt, not_taken

CODING, CONFIGURATION = b"hvc1", b"hvcC"

_LENGTH_SIZE_PLACE = 21
_SEQUENCE_SET, _FIRST_NOT_OF_A_SLICE = 33, 32
_HEAD_BYTES = 2
_SET_BYTES = 256
"""More than what is read of a sequence's parameter set: seven sublayers' profiles come first, of 12 bytes each."""
_SEPARATE_CHROMA = 3
_BITS = range(8, 13)


def configuration(content: bytes) -> bytes:
    """Return what a decoder needs of a configuration box: all of it."""
    return content


def pixels(configuration: bytes, data: bytes, limits: DecodeLimits, account: Account) -> int:
    """Return how many pixels decoding an item's data goes over.

    Raises UnusableImage where its picture is too large, or in a form that is not taken, or it has more than one.
    """
    length_bytes, sets = _configured(configuration, account)
    largest, slices, pictures = 0, 0, 0
    for unit in sets:
        if _kind(unit) == _SEQUENCE_SET:
            largest = max(largest, _picture_pixels(unit, limits))
    place = 0
    while place < len(data):
        account.count()
        start = place + length_bytes
        end = start + int.from_bytes(data[place:start], "big")
        if not start + _HEAD_BYTES < end <= len(data):
            raise corrupt()
        kind = _kind(data[start : start + _HEAD_BYTES])
        if kind == _SEQUENCE_SET:
            largest = max(largest, _picture_pixels(data[start : min(end, start + _SET_BYTES)], limits))
        elif kind < _FIRST_NOT_OF_A_SLICE:
            slices += 1
            pictures += data[start + _HEAD_BYTES] >> 7
        place = end
    if not largest or not pictures:
        raise corrupt()
    if pictures > 1:
        raise UnusableImage("too_complex", f"An image of the file has {pictures} pictures in place of one.")
    return largest * slices


def _configured(configuration: bytes, account: Account) -> tuple[int, list[bytes]]:
    """Return how many bytes a length has, and the beginnings of the units of a configuration."""
    reader = Reader(configuration, Box(CONFIGURATION, 0, len(configuration)))
    reader.take(_LENGTH_SIZE_PLACE)
    length_bytes = (reader.number(1) & 0x3) + 1
    units = []
    for _ in range(reader.number(1)):
        account.count()
        reader.take(1)
        for _ in range(reader.number(2)):
            account.count()
            unit = reader.take(reader.number(2))
            if len(unit) <= _HEAD_BYTES:
                raise corrupt()
            units.append(bytes(unit[:_SET_BYTES]))
    return length_bytes, units


def _kind(unit: bytes) -> int:
    return unit[0] >> 1 & 0x3F


def _picture_pixels(unit: bytes, limits: DecodeLimits) -> int:
    """Return the pixels of a sequence's pictures, by its parameter set."""
    # Two zeros and a three stand for two zeros, lest data look like the beginning of a unit.
    bits = Bits(unit[_HEAD_BYTES:].replace(b"\0\0\3", b"\0\0"))
    bits.read(4)
    sublayers = bits.read(3)
    bits.read(1)
    _pass_over_profiles(bits, sublayers)
    bits.exponential()
    chroma = bits.exponential()
    if chroma == _SEPARATE_CHROMA:
        bits.read(1)
    width, height = bits.exponential(), bits.exponential()
    if bits.flag():
        for _ in range(4):
            bits.exponential()
    if chroma > _SEPARATE_CHROMA or not all(8 + bits.exponential() in _BITS for _ in range(2)):
        raise not_taken("A HEIC file of more than 12 bits a channel")
    limits.check_pixels(width, height)
    return width * height


def _pass_over_profiles(bits: Bits, sublayers: int) -> None:
    bits.read(88 + 8)
    present = [(bits.flag(), bits.flag()) for _ in range(sublayers)]
    if sublayers:
        bits.read(2 * (8 - sublayers))
    for has_profile, has_level in present:
        bits.read(88 * has_profile + 8 * has_level)
