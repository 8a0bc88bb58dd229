"""The directory in which the processes of one service count together, and that nobody finds afterwards.

It is made in memory (/dev/shm) where that is possible, and removed at the end. A service that was killed cannot remove
its own: the next one that starts removes those whose owner is gone, which it knows by their lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client looks for the directory when it is imported."""
_PREFIX = "dat-serve-metrics-"
_MEMORY = Path("/dev/shm")  # noqa: S108  # not a fixed name in it


@contextlib.contextmanager
def metrics_directory(parent: Path | None = None) -> Iterator[Path]:
    """Make a private directory for as long as the context lasts."""
    place = parent or _place()
    for other in place.glob(f"{_PREFIX}*"):
        _remove_if_left_behind(other)
    directory, lock = _make(place)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _place() -> Path:
    return _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _make(place: Path) -> tuple[Path, int]:
    """Return a new directory and the descriptor that holds its lock; the lock ends with the process."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        lock = os.open(directory, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.exists():
            return directory, lock
        os.close(lock)  # another service took it for one left behind before it was locked


def _remove_if_left_behind(directory: Path) -> None:
    try:
        lock = os.open(directory, os.O_RDONLY)
    except OSError:  # another user's, or gone meanwhile
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # in use
        return
    else:
        _log.info("removing %s, which a service that was killed has left behind", directory)
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(lock)
