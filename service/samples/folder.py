"""The folder of a sample: whole files, which all together take no more than their space.

    20261128T102233Z-dat_tiny-1-3fa2c19b.parquet   begins with the time of writing, in UTC: names are in its order
    _lock                                          held by the process that is just writing

A file is written under a name that begins with a dot, flushed to the disk and renamed: what a process that was killed
leaves is no file of the sample, and is removed by the next that writes. Several processes may share the folder. Only
files with such names are ever removed.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK_FILE = "_lock"
_NAME = re.compile(r"\d{8}T\d{6}Z-[A-Za-z0-9][A-Za-z0-9._-]*-\d+-[0-9a-f]{8}\.parquet")
_UNFINISHED = ".unfinished"
_MODE = 0o600
_FOLDER_MODE = 0o700


class TooLargeForFolder(OSError):
    """One file alone would take more than the folder's space."""


class SampleFolder:
    """A folder in which the oldest files make way for new ones; `max_bytes` bounds them all."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes

    def prepare(self) -> None:
        """Make the folder if there is none, for its owner alone; raises OSError where it cannot be written in."""
        self._path.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        with self._locked():
            probe = self._path / f".probe{_UNFINISHED}"
            _write(probe, b"")
            probe.unlink()

    def add(self, model: str, version: int, content: bytes) -> Path:
        """Write a file, the oldest having made way for it; raises OSError, and then leaves none.

        Waits while another process writes.
        """
        if len(content) > self._max_bytes:
            raise TooLargeForFolder(f"{len(content)} bytes are more than the sample may take, {self._max_bytes}")
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = self._path / f"{stamp}-{model}-{version}-{secrets.token_hex(4)}.parquet"
        with self._locked():
            self._make_room(len(content))
            unfinished = path.with_name(f".{path.name}{_UNFINISHED}")
            try:
                _write(unfinished, content)
                unfinished.replace(path)
            except BaseException:
                with suppress(OSError):  # what failed first is what is said
                    unfinished.unlink(missing_ok=True)
                raise
        return path

    def _make_room(self, size_bytes: int) -> None:
        sizes: list[tuple[str, int]] = []
        with os.scandir(self._path) as entries:
            for entry in entries:
                if entry.name.startswith(".") and entry.name.endswith(_UNFINISHED):
                    Path(entry.path).unlink(missing_ok=True)  # nobody else writes now
                elif _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):  # whoever reads the sample may clear it
                        sizes.append((entry.path, entry.stat(follow_symlinks=False).st_size))
        taken = sum(size for _, size in sizes)
        for path, size in sorted(sizes):
            if taken + size_bytes <= self._max_bytes:
                return
            Path(path).unlink(missing_ok=True)
            taken -= size

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from writing; the kernel lets go of what a process held that was killed."""
        lock = os.open(self._path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _write(path: Path, content: bytes) -> None:
    """Write a new file and flush it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
