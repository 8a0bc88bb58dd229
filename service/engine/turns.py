"""Which priority's turn it is, wherever both wait: the one rule for decoding and for batches."""

from __future__ import annotations

from service.engine.types import Priority

BULK_EVERY = 8
"""Of the images taken while both priorities wait, every so-many-th is bulk."""


class Turns:
    """Interactive goes first, but of what is taken while both wait every `bulk_every`-th is bulk: neither starves."""

    def __init__(self, bulk_every: int = BULK_EVERY) -> None:
        if bulk_every < 2:
            raise ValueError(f"bulk_every must be at least 2, not {bulk_every}")
        self._bulk_every = bulk_every
        self._since_bulk = 0

    def take(self, *, interactive: bool, bulk: bool) -> Priority:
        """Return whose turn it is, of those that wait; one of the two does."""
        bulk_is_due = self._since_bulk >= self._bulk_every - 1
        if bulk and (bulk_is_due or not interactive):
            self._since_bulk = 0
            return Priority.BULK
        self._since_bulk = self._since_bulk + 1 if bulk else 0
        return Priority.INTERACTIVE
