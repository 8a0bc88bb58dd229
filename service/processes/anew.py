"""How a process that serves alone begins anew: by exec, in its own place, where only the end of its threads helps.

Whoever watches it sees no end: its id, command line, variables and port are the same. The socket stays open, so that
who connects meanwhile waits, and is not refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

_log = logging.getLogger(__name__)

_VARIABLE = "SERVICE_BEGUN_ANEW"
"""Where a process that has begun anew finds how often that was, and its socket's descriptor."""


class Life:
    """One of the lives of a process, from its start or the last time that it began anew."""

    def __init__(self) -> None:
        """Take over what the life before has left, if there was one; once in a life."""
        times, _, descriptor = os.environ.pop(_VARIABLE, "0").partition(",")
        self.times = int(times)
        """How often the process has begun anew."""
        self.listener = socket.socket(fileno=int(descriptor)) if descriptor else None
        """The socket that the life before listened on; None in the first."""
        self._kept: socket.socket | None = None

    def keep(self, listener: socket.socket) -> None:
        """Have the next life listen on a socket that this one is about to close."""
        self._kept = listener.dup()

    def begin_anew(self, why: str) -> NoReturn:
        """Begin the next life; all threads of this one end."""
        assert self._kept is not None
        for number in (signal.SIGTERM, signal.SIGINT):  # nobody here hears one any more
            signal.signal(number, signal.SIG_DFL)
        _log.error("the process begins anew", extra={"fields": {"how": why}})
        logging.shutdown()
        for descriptor in Path("/proc/self/fd").iterdir():
            if int(descriptor.name) > 2:
                with contextlib.suppress(OSError):  # it was that of the folder itself
                    os.set_inheritable(int(descriptor.name), False)
        self._kept.set_inheritable(True)
        os.environ[_VARIABLE] = f"{self.times + 1},{self._kept.fileno()}"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # its own command line
