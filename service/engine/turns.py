"""Which priority's turn it is, wherever both wait: the one rule for decoding and for batches."""

from __future__ import annotations

from service.engine.types import Priority

BULK_EVERY = 8
"""Of the images taken while both priorities wait, every so-many-th is bulk."""


class Turns:
    """Interactive goes first, but of what is taken while both wait every `bulk_every`-th is bulk: neither starves.

    Whoever takes something else than the turns say, because a batch must go on, has it counted by `count`: what one
    priority had beyond its share the other gets afterwards.
    """

    def __init__(self, bulk_every: int = BULK_EVERY) -> None:
        if bulk_every < 2:
            raise ValueError(f"bulk_every must be at least 2, not {bulk_every}")
        self._interactive_a_bulk = bulk_every - 1
        self._since_bulk = 0
        """Interactive taken while bulk waited; below 0 where bulk had more than its share."""

    def take(self, *, interactive: bool, bulk: bool) -> Priority:
        """Return whose turn it is, of those that wait, and count it as taken; one of the two does wait."""
        priority = self.next(interactive=interactive, bulk=bulk)
        self.count(priority, interactive=interactive, bulk=bulk)
        return priority

    def next(self, *, interactive: bool, bulk: bool) -> Priority:
        """Return whose turn it is, of those that can be taken; one of the two can."""
        bulk_is_due = self._since_bulk >= self._interactive_a_bulk
        return Priority.BULK if bulk and (bulk_is_due or not interactive) else Priority.INTERACTIVE

    def count(self, priority: Priority, *, interactive: bool, bulk: bool) -> None:
        """Count one as taken, while the priorities waited that are named, this one included."""
        if priority is Priority.BULK:
            self._since_bulk = self._since_bulk - self._interactive_a_bulk if interactive else 0
        else:
            self._since_bulk = self._since_bulk + 1 if bulk or self._since_bulk < 0 else 0
