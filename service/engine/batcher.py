"""Which images run next, and in how large a batch: policy alone, without threads, and with the time handed in.

The batcher is work-conserving. It is asked for a batch when the device is free, and answers with what waits then, so
that batches grow with the load and nobody waits on an idle device (unless `max_delay_s` asks for that).

A batch is of one graph and of images of one shape: those of the image at the head of the line, which is the oldest of
the priority whose turn it is. Others of that kind join it past those of other kinds, who lose nothing: they were not to
run in this batch anyway, and are nearer to the head after it. Since every batch takes the head, no kind can starve
another.

Invariants: an image that was added leaves exactly once, in a batch, as expired, or by `cancel`; a batch is never
larger than its bucket; within a priority and a kind images leave in the order they came, and the oldest of a
priority is in the next batch that begins with that priority; an image past its deadline is never in a batch; while
both priorities wait they are taken by `turns`, so that neither can starve or crowd out the other.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from service.engine.costs import GraphCosts
from service.engine.turns import BULK_EVERY, Turns
from service.engine.types import Priority, Shape, WorkItem

Kind: TypeAlias = tuple[str, Shape]
"""What the images of a batch have in common: their graph, by its key, and their shape."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What `next_batch` decided: `expired` images to turn away, `items` of one kind to run as `bucket`, or nothing."""

    items: tuple[WorkItem, ...] = ()
    bucket: int = 0
    expired: tuple[WorkItem, ...] = ()


class Batcher:
    """Two queues and the rules by which images leave them.

    `costs` has the times of each graph's runs, by its key. `max_delay_s` lets the oldest image wait that long for
    company while no kind has its largest bucket waiting.
    """

    def __init__(
        self, costs: Mapping[str, GraphCosts], *, max_delay_s: float = 0.0, bulk_every: int = BULK_EVERY
    ) -> None:
        self.costs = costs
        self._max_delay_s = max_delay_s
        self._turns = Turns(bulk_every)
        self._queues: dict[Priority, OrderedDict[int, WorkItem]] = {priority: OrderedDict() for priority in Priority}
        self._waiting: dict[Kind, int] = {}
        """Images that wait; what waits no more has no entry, for callers may send any number of shapes."""

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def images_per_s(self) -> float | None:
        """The best rate of any graph's runs, of images of the model's own shape; None before the first."""
        rates = [costs.own.images_per_s for costs in self.costs.values()]
        return max((rate for rate in rates if rate is not None), default=None)

    @property
    def ready_at_s(self) -> float | None:
        """When `next_batch` has something to decide: None while nothing waits, else a time that may have passed."""
        oldest = [next(iter(queue.values())).enqueued_s for queue in self._queues.values() if queue]
        if not oldest:
            return None
        return min(oldest) + (0.0 if not self._max_delay_s or self._has_full_batch else self._max_delay_s)

    @property
    def _has_full_batch(self) -> bool:
        return any(waiting >= self.costs[graph].largest_at(shape) for (graph, shape), waiting in self._waiting.items())

    def due_priority(self, now_s: float) -> Priority | None:
        """Return the most urgent priority of what waits; None where `next_batch` has nothing to decide yet."""
        ready_at_s = self.ready_at_s
        if ready_at_s is None or now_s < ready_at_s:
            return None
        return next(priority for priority, queue in self._queues.items() if queue)

    def add(self, item: WorkItem) -> None:
        """Let an image wait; tickets are never used twice."""
        self._queues[item.priority][item.ticket] = item
        kind = item.graph, item.shape
        self._waiting[kind] = self._waiting.get(kind, 0) + 1

    def cancel(self, ticket: int) -> WorkItem | None:
        """Take an image out; None where it waits no more."""
        for queue in self._queues.values():
            item = queue.pop(ticket, None)
            if item is not None:
                self._left((item.graph, item.shape), 1)
                return item
        return None

    def _left(self, kind: Kind, images: int) -> None:
        self._waiting[kind] -= images
        if not self._waiting[kind]:
            del self._waiting[kind]

    def next_batch(self, now_s: float, *, longest_s: float = math.inf) -> Batch:
        """Decide what the free device does now, for no longer than `longest_s` where a smaller batch is quicker.

        Images whose deadline has passed come alone, without a batch, so that they end before a run keeps the
        caller busy; ask again for the batch.
        """
        expired = tuple(item for queue in self._queues.values() for item in queue.values() if item.deadline_s <= now_s)
        if expired:
            for item in expired:
                self.cancel(item.ticket)
            return Batch(expired=expired)
        ready_at_s = self.ready_at_s
        if ready_at_s is None or now_s < ready_at_s:
            return Batch()
        head = self._head()
        kind = head.graph, head.shape
        bucket = self.costs[head.graph].at(head.shape).choose(self._waiting[kind], longest_s=longest_s)
        return Batch(self._take(kind, bucket), bucket)

    def _head(self) -> WorkItem:
        """Return the image that must be in the next batch."""
        interactive, bulk = self._queues[Priority.INTERACTIVE], self._queues[Priority.BULK]
        priority = self._turns.next(interactive=bool(interactive), bulk=bool(bulk))
        return next(iter(self._queues[priority].values()))

    def _take(self, kind: Kind, bucket: int) -> tuple[WorkItem, ...]:
        """Take up to `bucket` images of a kind, by turns; all that wait count for the turns, of whatever kind.

        Where one priority has none of the kind left the other goes on, since the batch would otherwise run with
        places empty; the turns make up for it afterwards.
        """
        interactive, bulk = self._queues[Priority.INTERACTIVE], self._queues[Priority.BULK]
        graph, shape = kind
        joining = {
            priority: deque(
                islice((item for item in queue.values() if item.graph == graph and item.shape == shape), bucket)
            )
            for priority, queue in self._queues.items()
        }
        taken: list[WorkItem] = []
        while len(taken) < bucket and any(joining.values()):
            priority = self._turns.next(
                interactive=bool(joining[Priority.INTERACTIVE]), bulk=bool(joining[Priority.BULK])
            )
            self._turns.count(priority, interactive=bool(interactive), bulk=bool(bulk))
            item = joining[priority].popleft()
            del self._queues[priority][item.ticket]
            taken.append(item)
        self._left(kind, len(taken))
        return tuple(taken)
