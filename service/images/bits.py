"""Numbers of single bits, as the headers of video codecs have them; the highest bit comes first."""

from __future__ import annotations

from service.images.limits import corrupt

_MOST_ZEROS = 31


class Bits:
    """Reads numbers one after the other; every read raises UnusableImage where the bits end before it."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._bits = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        """Return the next `count` bits as a number."""
        if count > self._left:
            raise corrupt()
        self._left -= count
        return self._bits >> self._left & (1 << count) - 1

    def flag(self) -> bool:
        """Return the next bit."""
        return self.read(1) == 1

    def exponential(self) -> int:
        """Return a number of the exponential Golomb code of order 0: uvlc() of AV1, ue(v) of HEVC."""
        zeros = 0
        while not self.flag():
            zeros += 1
            if zeros > _MOST_ZEROS:
                raise corrupt()
        return (1 << zeros) - 1 + self.read(zeros)
