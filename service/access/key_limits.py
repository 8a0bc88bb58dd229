"""What each API key may still ask for: one account for the whole service, whichever worker a request comes to.

For every key there is a row of float64 in memory that all workers share:

    due        a time on the monotonic clock, which all processes share: when a request would be the next, had the
               key's requests come evenly at its rate (the generic cell rate algorithm: a token bucket in one number)
    in flight  one column a worker: its requests that are being answered

A worker reads and writes under a record lock of the memory's descriptor. The kernel gives such a lock back when a
process ends, however it ends, and each number is written whole: no worker's death leaves a lock or half an entry
behind. A column is cleared when its worker has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from service.access.keys import ApiKey
from service.errors import ConcurrencyLimited, RateLimited

_DUE = 0
_IN_FLIGHT = 1
CONCURRENCY_RETRY_AFTER_S = 1.0
"""When a request in flight will end is not known."""


class KeyLimits:
    """The account of all keys, as one worker sees it; used by one thread, that of its event loop."""

    def __init__(
        self,
        keys: Sequence[ApiKey],
        *,
        workers: int = 1,
        worker: int = 0,
        descriptor: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Map what `create_shared` made, and keep its descriptor; without one, the account is this process's own."""
        self._keys = keys
        self._worker = worker
        self._clock = clock
        self._descriptor = descriptor
        columns = _IN_FLIGHT + workers
        self._rows: NDArray[np.float64]
        if descriptor is None:
            self._rows = np.zeros((len(keys), columns))
        else:
            memory = mmap.mmap(descriptor, _size(keys, workers))
            self._rows = np.frombuffer(memory, np.float64, len(keys) * columns).reshape(len(keys), columns)

    @staticmethod
    def create_shared(keys: Sequence[ApiKey], *, workers: int) -> int:
        """Return the descriptor of a new account, with nothing asked for yet."""
        descriptor = os.memfd_create("dat-serve-key-limits", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _size(keys, workers))
        return descriptor

    def begin(self, place: int) -> Callable[[], None]:
        """Take a request of the key at that place into account, and return what to call, once, at its end.

        Raises ConcurrencyLimited, or RateLimited with the exact time after which one would be taken; neither counts.
        """
        key = self._keys[place]
        if key.rate_per_s is None and key.concurrency is None:
            return _nothing
        row = self._rows[place]
        with self._locked():
            if key.concurrency is not None and row[_IN_FLIGHT:].sum() >= key.concurrency:
                raise ConcurrencyLimited(
                    f"The API key {key.name!r} may have {key.concurrency} requests in flight, and has.",
                    retry_after_s=CONCURRENCY_RETRY_AFTER_S,
                )
            if key.rate_per_s is not None:
                now_s = self._clock()
                due_s = max(float(row[_DUE]), now_s) + 1 / key.rate_per_s
                early_s = due_s - now_s - key.burst / key.rate_per_s
                if early_s > _ROUNDING_S:
                    raise RateLimited(
                        f"The API key {key.name!r} may send {key.rate_per_s:g} requests a second.",
                        retry_after_s=early_s,
                    )
                row[_DUE] = due_s
            row[_IN_FLIGHT + self._worker] += 1
        return lambda: self._end(place)

    def _end(self, place: int) -> None:
        self._rows[place, _IN_FLIGHT + self._worker] -= 1  # this worker's own number: no lock is needed

    def clear_worker(self, worker: int) -> None:
        """Forget what a worker that has ended had in flight."""
        self._rows[:, _IN_FLIGHT + worker] = 0

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._descriptor is None:
            yield
            return
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


_ROUNDING_S = 1e-6
"""A request may come so much early: sums of floats must not refuse one that comes at the very time it was told."""


def _size(keys: Sequence[ApiKey], workers: int) -> int:
    return max(len(keys) * (_IN_FLIGHT + workers), 1) * 8


def _nothing() -> None:
    """Do nothing at the end of a request without limits."""
