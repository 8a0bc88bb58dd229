"""Whether to take work on, by the time it would wait: policy alone, without clocks, locks or an event loop.

Work that would be answered too late is best refused at once: its caller can go elsewhere or come back, and nothing is
computed for nobody. The wait is predicted from what lies ahead and from the rate at which images have been answered.

Work is counted in images of the model's own size: one of four times the pixels takes as long as four. The numbers of
images here are therefore no whole ones where requests ask for other sizes.

The rate is measured while there is enough to do to keep the device busy; that of an idle service shows its demand, not
its capacity. Until it has been measured, the
rate of the device's own runs stands in for it.

Invariants: with nothing ahead everything is taken that could be answered in time at all; a caller who is refused learns
when, at the present rate, the work would be taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from service.engine.turns import BULK_EVERY
from service.engine.types import Priority

_MEMORY_S = 4.0
"""Busy time after which a measurement counts for a third."""
_LEAST_BUSY_S = 0.5
"""Busy time from which a measured rate is believed."""
_RETRY_AFTER_S = (1.0, 60.0)
"""The least and the most that a refused caller is asked to wait."""


class Backlog(NamedTuple):
    """Images admitted and not yet answered, by priority, from being decoded to running."""

    interactive: float = 0
    bulk: float = 0

    @property
    def images(self) -> float:
        """All of them."""
        return self.interactive + self.bulk


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not, as a sentence, and when to come back."""

    reason: str
    retry_after_s: float


class BusyRate:
    """Images answered per second of the time in which at least `busy_images` were in the service.

    An exponentially weighted mean over busy time, so that it forgets neither overnight nor in a burst.
    """

    def __init__(self, busy_images: int) -> None:
        self._busy_images = busy_images
        self._seen_s: float | None = None
        self._answered = 0.0
        self._is_busy = False
        self._busy_s = 0.0
        self._images = 0.0

    def observe(self, now_s: float, *, images: float, answered: float) -> None:
        """Take note that `images` are in the service from now on; `answered` counts all that ever were."""
        interval_s = 0.0 if self._seen_s is None else max(now_s - self._seen_s, 0.0)
        if self._is_busy:
            kept = math.exp(-interval_s / _MEMORY_S)
            self._busy_s = kept * self._busy_s + interval_s
            # The count of a process that died leaves the sum: what its successor answers is seen as it comes.
            self._images = kept * self._images + max(answered - self._answered, 0)
        self._seen_s, self._answered = now_s, answered
        self._is_busy = images >= self._busy_images

    @property
    def images_per_s(self) -> float | None:
        """The rate; None until enough busy time has passed, and while nothing was answered in it."""
        if self._busy_s < _LEAST_BUSY_S or self._images <= 0:
            return None
        return self._images / self._busy_s


class Admission:
    """Takes work on or refuses it.

    `largest_batch` images are enough to keep the device busy. `bulk_every` is the batcher's: of the images taken
    while both priorities wait, every so-many-th is bulk. Where `max_wait_s` is above 0, no work is taken that would
    wait longer for its turn, however patient its caller is.
    """

    def __init__(self, *, largest_batch: int, max_wait_s: float = 0.0, bulk_every: int = BULK_EVERY) -> None:
        self._largest_batch = largest_batch
        self._max_wait_s = max_wait_s
        self._slowed_by_bulk = bulk_every / (bulk_every - 1)
        self.rate = BusyRate(largest_batch)

    def ahead(self, priority: Priority, backlog: Backlog) -> float:
        """Return the images that will be answered before new ones of a priority get their turn.

        Interactive ones wait for each other, with bulk ones between them, and for the batch that runs.
        """
        if priority is Priority.BULK:
            return backlog.images
        if not backlog.bulk:
            return backlog.interactive
        running = min(backlog.bulk, self._largest_batch)
        return min(backlog.interactive * self._slowed_by_bulk + running, backlog.images)

    def refusal(
        self, images: float, *, priority: Priority, left_s: float, backlog: Backlog, device_images_per_s: float | None
    ) -> Refusal | None:
        """Return why not to take on `images` that must be answered within `left_s`, or None to take them.

        `device_images_per_s` is the best rate that the device's runs have shown, None before the first.
        """
        rate = self.rate.images_per_s or device_images_per_s
        if rate is None:
            return None
        ahead = self.ahead(priority, backlog)
        wait_s = ahead / rate
        late_s = wait_s + images / rate - left_s if ahead > 0 else 0.0
        over_s = wait_s - self._max_wait_s if self._max_wait_s > 0 else 0.0
        if max(late_s, over_s) <= 0:
            return None
        if late_s > 0:
            total_s = wait_s + images / rate
            reason = f"The answer would take about {total_s:.1f} s, and its deadline is in {left_s:.1f} s."
        else:
            reason = f"The work would wait about {wait_s:.1f} s for its turn; at most {self._max_wait_s:g} s is taken."
        return Refusal(reason, retry_after_s(max(late_s, over_s)))  # when neither is in the way any more

    def time_for_s(self, images: float, *, device_images_per_s: float | None) -> float:
        """Return the time in which so many images are answered, as a refusal gives it."""
        rate = self.rate.images_per_s or device_images_per_s
        return retry_after_s(images / rate if rate else 0.0)


def retry_after_s(wait_s: float) -> float:
    """Return a wait as a refusal gives it: neither a rush nor for ever."""
    least_s, most_s = _RETRY_AFTER_S
    return min(max(wait_s, least_s), most_s)
