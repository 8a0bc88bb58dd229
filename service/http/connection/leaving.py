"""How a process that serves ends in time although threads of it do not.

Python waits for threads when it ends, and no thread can be stopped from outside. So a process whose work is closed in
order and that has threads left ends without them. What holds the interpreter's lock for ever cannot be left behind
either; a supervisor kills such a process, and so must whoever watches over one that is alone.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

_log = logging.getLogger(__name__)
_WATCH = "leave"
_ENDING_S = 0.25
"""For threads that are ending."""


def leave_within(time_s: float) -> None:
    """End the process with status 0 after a time, should it not have ended by itself."""
    threading.Thread(target=_leave_after, args=(time_s,), name=_WATCH, daemon=True).start()


def leave_threads_behind() -> None:
    """End the process with status 0 now if it has threads that would be waited for, or run while it ends."""
    until_s = time.monotonic() + _ENDING_S
    for thread in _others():
        thread.join(max(until_s - time.monotonic(), 0.0))
    if _others():
        _leave()


def _leave_after(time_s: float) -> None:
    time.sleep(time_s)
    _leave()


def _others() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name != _WATCH and each is not threading.current_thread()]


def _leave() -> None:
    names = ",".join(thread.name for thread in _others())
    _log.warning("threads that do not end are left behind", extra={"fields": {"threads": names}})
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
