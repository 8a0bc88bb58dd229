"""How many images all models of one process may have in hand, from being decoded to being answered.

Invariant: what was taken is given back once, by whoever frees the slots that it was taken for.
"""

from __future__ import annotations


class Room:
    """A number of places; belongs to one event loop."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.in_use = 0

    @property
    def free(self) -> int:
        """How many more may be taken."""
        return self.images - self.in_use

    def take(self, n: int) -> None:
        """Have `n` places, which are free."""
        self.in_use += n

    def give_back(self, n: int) -> None:
        """Have `n` places no more."""
        self.in_use -= n
