"""When to ask again, and when to give up."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to wait before each further try.

    A server that says when to come back is taken at its word and given a little more, so that those whom it sent away
    together do not come back together. Otherwise the wait doubles from `first_wait_s` up to `longest_wait_s`, less up
    to half of it by chance. No try begins later than `give_up_after_s` after the first.
    """

    first_wait_s: float = 0.5
    longest_wait_s: float = 20.0
    give_up_after_s: float = 120.0
    uniform: Callable[[float, float], float] = random.uniform

    def wait_s(self, tries: int, *, elapsed_s: float, retry_after_s: float | None) -> float | None:
        """Return how long to wait after so many tries in `elapsed_s`, or None to give up."""
        if retry_after_s is None:
            longest_s = min(self.first_wait_s * 2 ** min(tries - 1, 30), self.longest_wait_s)
            wait_s = self.uniform(longest_s / 2, longest_s)
        else:
            wait_s = retry_after_s + self.uniform(0.0, max(retry_after_s / 4, self.first_wait_s))
        return wait_s if elapsed_s + wait_s <= self.give_up_after_s else None


def retry_after_s(header: str | None, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float | None:
    """Return a Retry-After header's wait from now, given in seconds or as a date; None where there is none to read."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max((date - now()).total_seconds(), 0.0)
