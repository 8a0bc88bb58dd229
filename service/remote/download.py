"""Copying one file from elsewhere: it goes on where it was broken off, and is whole and right or is not there.

A copy is read in parts, each appended as it comes; what is there already, of an earlier attempt too, is not read again.
That is safe because the digest of the whole is known beforehand and decides.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from service.errors import RemoteFailed, RepositoryError
from service.remote.store import RangesUnsupported, RemoteStore

_log = logging.getLogger(__name__)

PART_BYTES = 8 * 1024 * 1024
"""Read at a time, so that a request's time is bounded and little is lost when one breaks."""
_DELAYS_S = (0.5, 1.0, 2.0, 4.0)
"""Between attempts of which none brought a byte; then the copy fails, and what is there is kept for the next one."""
_REPORT_S = 5.0


class Progress(Protocol):
    """Told of bytes that have come."""

    def __call__(self, count: int, /) -> None: ...  # noqa: D102


class TimedProgress:
    """Has `say` tell every few seconds how many bytes there are."""

    def __init__(self, say: Callable[[int], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._done_bytes = 0
        self._said_s = clock()

    def __call__(self, count: int) -> None:
        """Count bytes, and say how many there are if that was not said lately."""
        self._done_bytes += count
        if self._clock() - self._said_s >= _REPORT_S:
            self._said_s = self._clock()
            self._say(self._done_bytes)


def download(
    store: RemoteStore,
    path: str,
    target: Path,
    *,
    sha256: str | None,
    size_bytes: int,
    progress: Progress,
    pause: Callable[[float], None] = time.sleep,
) -> str:
    """Copy a file of `size_bytes` to `target`, going on with what is there of it, and return its sha256.

    Without a digest to tell by whether what is there is of the same file, it begins anew.
    Raises RemoteFailed where it cannot be read to its end, and keeps what came; RepositoryError, and keeps nothing,
    where its content is not that of the digest; OSError where it cannot be written.
    """
    began_bytes = target.stat().st_size if target.exists() else 0
    if began_bytes > size_bytes or sha256 is None:
        target.unlink(missing_ok=True)
        began_bytes = 0
    _complete(store, path, target, size_bytes=size_bytes, progress=progress, pause=pause)
    digest = _sha256_of(target)
    if sha256 not in (None, digest) and began_bytes:  # what was there may have been of another file, or damaged
        _log.warning("a download begins anew, since what was kept of it is not right", extra={"fields": {"file": path}})
        target.unlink()
        _complete(store, path, target, size_bytes=size_bytes, progress=progress, pause=pause)
        digest = _sha256_of(target)
    if sha256 not in (None, digest):
        target.unlink()
        raise RepositoryError(f"{store}/{path} has sha256 {digest}, expected {sha256}")
    return digest


def out_of_space(error: OSError) -> bool:
    """Tell whether an error says that the disk, or what one may use of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _complete(
    store: RemoteStore,
    path: str,
    target: Path,
    *,
    size_bytes: int,
    progress: Progress,
    pause: Callable[[float], None],
) -> None:
    """Read what a copy lacks, with some patience; it has `size_bytes` afterwards."""
    failures, sends_parts = 0, True
    with target.open("ab") as file:
        progress(file.tell())
        while (start := file.tell()) < size_bytes:
            try:
                if sends_parts:
                    _read_part(store, path, file, length=min(PART_BYTES, size_bytes - start), progress=progress)
                else:
                    _read_whole(store, path, file, size_bytes=size_bytes, progress=progress)
                failures = 0
            except RangesUnsupported:
                sends_parts = False
            except RemoteFailed as error:
                if failures == len(_DELAYS_S):
                    raise
                _log.warning(
                    "a download was broken, and is tried again",
                    extra={"fields": {"file": path, "done_bytes": file.tell(), "reason": str(error)}},
                )
                pause(_DELAYS_S[failures])
                failures += 1
        file.flush()
        os.fsync(file.fileno())


def _read_part(store: RemoteStore, path: str, file: BinaryIO, *, length: int, progress: Progress) -> None:
    """Append the next part of a file; raises RemoteFailed where it ends before that."""
    start = file.tell()
    part = store.read_part(path, start=start, length=length)
    if len(part) != length:
        raise RemoteFailed(f"{store}/{path} has {start + len(part)} bytes, expected more")
    file.write(part)
    progress(len(part))


def _read_whole(store: RemoteStore, path: str, file: BinaryIO, *, size_bytes: int, progress: Progress) -> None:
    """Read a file from its beginning; raises RemoteFailed where it ends before `size_bytes`, RepositoryError after."""
    progress(-file.tell())
    file.truncate(0)
    file.seek(0)
    for part in store.read_whole(path):
        file.write(part)
        progress(len(part))
        if file.tell() > size_bytes:
            file.truncate(0)
            raise RepositoryError(f"{store}/{path} has more bytes than the {size_bytes} that are expected")
    if file.tell() < size_bytes:
        raise RemoteFailed(f"{store}/{path} has {file.tell()} bytes, expected {size_bytes}")


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
