"""How a request over HTTP learns that its client has gone.

Where the server says so itself (a `Departure` in the request's scope), that is listened to; where it does not, as under
a test's transport or Ray's proxy, a task waits for its message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Receive, Scope

from service.calls.in_flight import Departure, Work

DEPARTURE = "dat_serve.departure"
"""Under `state` in a request's scope: its Departure."""


def watch(work: Work, scope: Scope, receive: Receive) -> None:
    """End the work when the client goes away; its body must have been read, and nobody else may receive."""
    if work.is_unwatched:
        work.watch(scope["state"].get(DEPARTURE) or _Awaited(receive))


class _Awaited(Departure):
    """A departure that a task waits for, until nobody wants to know any more."""

    __slots__ = ("_waiting",)

    def __init__(self, receive: Receive) -> None:
        super().__init__()
        self._waiting = asyncio.create_task(self._wait(receive))

    def tell(self, listener: Callable[[], None] | None) -> None:
        """Have `listener` called when the client goes; None ends the wait."""
        super().tell(listener)
        if listener is None:
            self._waiting.cancel()

    async def _wait(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.happen()
