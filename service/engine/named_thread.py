"""Threads that the kernel knows by the names that Python gives them, as Python itself does from 3.14 on."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

_log = logging.getLogger(__name__)


class NamedThread(threading.Thread):
    """A thread that `top -H`, `perf` and `/proc/PID/task/*/comm` show by its name, of which they have 15 characters.

    Threads that it starts in other languages, as the runtime's, have its name too.
    """

    def run(self) -> None:
        """Take the name, and do what a thread does."""
        try:
            Path(f"/proc/self/task/{self.native_id}/comm").write_text(self.name)
        except OSError as error:  # no Linux, or no /proc
            _log.debug("the thread %s has no name outside Python: %s", self.name, error)
        super().run()
