"""AV1, which AVIF files hold: the pixels that a decoder of an item's data would go over, from its headers alone.

The data are open bitstream units (OBUs). A sequence header gives the largest frame; a frame may be larger than that
only where its header says that it has a size of its own, whose bits are then all that bounds it. (AV1 Bitstream &
Decoding Process Specification, 5.3 to 5.9.)
"""

from __future__ import annotations

from dataclasses import dataclass

from service.images.bits import Bits
from service.images.isobmff import Account
from service.images.limits import DecodeLimits, UnusableImage, corrupt

CODING, CONFIGURATION = b"av01", b"av1C"

_CONFIGURATION_BYTES = 4
_SEQUENCE, _FRAME_HEADER, _FRAME = 1, 3, 6
_HEADER_BYTES = 400
"""More than the headers that are read can have: 32 operating points of 89 bits at most come first."""
_MOST_FRAMES = 4
"""An item is one frame, or up to four layers of one; each that is decoded stays in memory for the next."""
_KEY_FRAME, _SWITCH_FRAME = 0, 3
_CHOSEN_BY_FRAME = 2


@dataclass(slots=True)
class _Sequence:
    """What a sequence header says that frame headers are read by."""

    is_reduced: bool
    width: int = 0
    height: int = 0
    width_bits: int = 0
    height_bits: int = 0
    presentation_time_bits: int = 0
    """Bits of a shown frame's time; 0 where it has none."""
    frame_id_bits: int = 0
    screen_content: int = _CHOSEN_BY_FRAME
    integer_vectors: int = _CHOSEN_BY_FRAME


def configuration(content: bytes) -> bytes:
    """Return what a decoder needs of a configuration box: its fixed part."""
    if len(content) < _CONFIGURATION_BYTES:
        raise corrupt()
    return content[:_CONFIGURATION_BYTES]


def pixels(_: bytes, data: bytes, limits: DecodeLimits, account: Account) -> int:
    """Return how many pixels decoding an item's data goes over; raises UnusableImage where frames are too large."""
    sequence: _Sequence | None = None
    total, frames, place = 0, 0, 0
    while place < len(data):
        account.count()
        kind, start, end = _unit(data, place)
        head = Bits(data[start : min(end, start + _HEADER_BYTES)])
        if kind == _SEQUENCE:
            sequence = _sequence(head)
        elif kind in (_FRAME_HEADER, _FRAME):
            if sequence is None:
                raise corrupt()
            width, height = _frame(head, sequence)
            limits.check_pixels(width, height)
            frames, total = frames + 1, total + width * height
        place = end
    if not frames:
        raise corrupt()
    if frames > _MOST_FRAMES:
        raise UnusableImage("too_complex", f"An image of the file has {frames} frames; at most {_MOST_FRAMES}.")
    return total


def _unit(data: bytes, place: int) -> tuple[int, int, int]:
    """Return the type of the unit at a place, and where its content begins and ends."""
    head = data[place]
    start = place + (2 if head & 0x04 else 1)
    if not head & 0x02:
        return head >> 3 & 0xF, start, len(data)
    size = 0
    for index in range(8):
        if start >= len(data):
            raise corrupt()
        byte = data[start]
        start += 1
        size |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            break
    if start + size > len(data):
        raise corrupt()
    return head >> 3 & 0xF, start, start + size


def _sequence(bits: Bits) -> _Sequence:
    bits.read(4)  # profile, still picture
    sequence = _Sequence(is_reduced=bits.flag())
    if sequence.is_reduced:
        bits.read(5)  # level
    else:
        sequence.presentation_time_bits = _operating_points(bits)
    sequence.width_bits, sequence.height_bits = bits.read(4) + 1, bits.read(4) + 1
    sequence.width, sequence.height = bits.read(sequence.width_bits) + 1, bits.read(sequence.height_bits) + 1
    if sequence.is_reduced:
        return sequence
    if bits.flag():
        sequence.frame_id_bits = bits.read(4) + 2 + bits.read(3) + 1
    bits.read(7)  # superblocks, tools of intra and inter prediction
    if has_order_hint := bits.flag():
        bits.read(2)
    if not bits.flag():
        sequence.screen_content = bits.read(1)
    if sequence.screen_content and not bits.flag():
        sequence.integer_vectors = bits.read(1)
    if has_order_hint:
        bits.read(3)
    return sequence


def _operating_points(bits: Bits) -> int:
    """Pass over timing and operating points, and return the bits of a shown frame's time."""
    delay_bits = time_bits = 0
    if bits.flag():
        bits.read(64)  # tick and time scale
        if is_even := bits.flag():
            bits.exponential()
        if bits.flag():
            delay_bits = bits.read(5) + 1
            bits.read(32 + 5)
            time_bits = bits.read(5) + 1
            time_bits = 0 if is_even else time_bits
    has_display_delay = bits.flag()
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:  # of such levels there are two tiers
            bits.read(1)
        if delay_bits and bits.flag():
            bits.read(2 * delay_bits + 1)
        if has_display_delay and bits.flag():
            bits.read(4)
    return time_bits


def _frame(bits: Bits, sequence: _Sequence) -> tuple[int, int]:
    """Return the most that a frame's width and height may be."""
    largest = sequence.width, sequence.height
    if sequence.is_reduced:
        return largest
    if bits.flag():  # a frame that was decoded before, shown
        return largest
    kind, is_shown = bits.read(2), bits.flag()
    if is_shown:
        bits.read(sequence.presentation_time_bits)
    else:
        bits.read(1)  # whether it may be shown
    if kind != _SWITCH_FRAME and not (kind == _KEY_FRAME and is_shown):
        bits.read(1)  # error resilience
    bits.read(1)  # adaption of probabilities
    has_screen_content = bits.read(1) if sequence.screen_content == _CHOSEN_BY_FRAME else sequence.screen_content
    if has_screen_content and sequence.integer_vectors == _CHOSEN_BY_FRAME:
        bits.read(1)
    bits.read(sequence.frame_id_bits)
    if kind == _SWITCH_FRAME or bits.flag():
        return 1 << sequence.width_bits, 1 << sequence.height_bits
    return largest
