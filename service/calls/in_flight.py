"""The requests in flight, and the one way in which each is ended before its work is done.

A request's work may have to end early because its deadline passes, its client goes away, or the service itself ends.
Whichever comes first cancels the work in whatever stage it is, and the error that says why takes the cancellation's
place. What a thread or the engine computes for it by then cannot be stopped, and goes nowhere.

Invariants: a request ends early at most once, by the first reason; when its answer begins, nothing ends it any more;
the timer and the listener that watch over it end with it.

When its client goes a request is told by a `Departure`, which whatever carries the request makes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from types import TracebackType

from service.errors import Cancelled, DeadlineExceeded, NotReady, ServiceError


class Departure:
    """Told by what carries a request when its client has gone; tells one who wants to know, at once or later."""

    __slots__ = ("_listener", "has_happened")

    def __init__(self) -> None:
        self.has_happened = False
        self._listener: Callable[[], None] | None = None

    def happen(self) -> None:
        """Note that the client has gone; more than once is once."""
        self.has_happened = True
        listener, self._listener = self._listener, None
        if listener is not None:
            listener()

    def tell(self, listener: Callable[[], None] | None) -> None:
        """Have `listener` called when the client goes, in place of another; None for nobody any more."""
        self._listener = listener
        if self.has_happened and listener is not None:
            self.happen()


class InFlight:
    """The requests of one application that are not answered yet; belongs to its event loop."""

    def __init__(self) -> None:
        self._works: set[Work] = set()
        self._given_up = False

    @property
    def given_up(self) -> bool:
        """Whether the service has given up what is in flight, and takes nothing more."""
        return self._given_up

    def give_up(self) -> None:
        """End the work of every request, and of those that still come, with NotReady."""
        self._given_up = True
        for work in list(self._works):
            work.end(_over())

    def enter(self, work: Work) -> None:
        """Take a request in; raises NotReady after `give_up`."""
        if self._given_up:
            raise _over()
        self._works.add(work)

    def leave(self, work: Work) -> None:
        """Let a request go; again is nothing."""
        self._works.discard(work)


class Work:
    """What one request has to do until its answer begins; a context manager around it, in one task.

    Leaving it raises the reason for which the work was ended early, if it was, in place of the cancellation.
    """

    __slots__ = (
        *("_cancelling", "_departure", "_in_flight", "_is_open", "_reason", "_task", "_timer"),
        "deadline_s",
    )

    def __init__(self, in_flight: InFlight) -> None:
        self.deadline_s = math.inf
        """On time.monotonic; see `due_by`."""
        self._in_flight = in_flight
        self._is_open = False
        self._reason: ServiceError | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._timer: asyncio.TimerHandle | None = None
        self._departure: Departure | None = None

    def __enter__(self) -> Work:
        self._in_flight.enter(self)
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._is_open = True
        if self.deadline_s < math.inf:
            self._set_timer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        # As asyncio.timeout does: a cancellation of somebody else's, at the same time or before, is left to go on.
        if self._reason is not None:
            assert self._task is not None
            if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise self._reason from None

    def due_by(self, deadline_s: float) -> None:
        """Have the work ended at a time on time.monotonic, unless it is to end earlier anyway."""
        if deadline_s >= self.deadline_s:
            return
        self.deadline_s = deadline_s
        if self._is_open:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer()

    @property
    def is_unwatched(self) -> bool:
        """Whether the work would want to know of its client's going, and has nobody yet who tells."""
        return self._is_open and self._departure is None

    def watch(self, departure: Departure) -> None:
        """End the work, which must be unwatched, when the client goes away."""
        self._departure = departure
        departure.tell(self._client_went)

    def end(self, reason: ServiceError) -> None:
        """End the work; it is cancelled where it waits. Does nothing where it has ended, or is ending."""
        if self._is_open and self._reason is None:
            assert self._task is not None
            self._reason = reason
            self._task.cancel()

    def close(self) -> None:
        """Let nothing end the work any more: its answer begins, or it is done. Again is nothing."""
        self._is_open = False
        self._in_flight.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._departure is not None:
            self._departure.tell(None)

    def _set_timer(self) -> None:
        left_s = max(self.deadline_s - time.monotonic(), 0.0)
        self._timer = asyncio.get_running_loop().call_later(left_s, self._look)

    def _look(self) -> None:
        # An event loop counts in milliseconds and may be early; others go by the same deadline and would not be late.
        if time.monotonic() < self.deadline_s:
            self._set_timer()
        else:
            self.end(DeadlineExceeded("The deadline passed before the answer was there."))

    def _client_went(self) -> None:
        self.end(Cancelled("The client went away before its answer."))


def _over() -> NotReady:
    return NotReady("The service ends, and its time to finish what was asked is over.")
