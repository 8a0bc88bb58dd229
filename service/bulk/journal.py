"""The folder of a run: who works in it, what it is a run of, and which parts are done.

    _lock              locked by the process that works here, and unlocked by the kernel when that ends in any way
    _inputs.jsonl      the files that are read, one a line: path, size, time of change
    _run.json          the format of this folder, the model, and the options that the rows depend on
    part-000000.parquet ...   finished parts

Every file but the lock is written under a name that begins with a dot, flushed to the disk, and renamed; the folder
is flushed after that. `_run.json` comes after `_inputs.jsonl` and before any part. Names with a dot or an underscore
in front are passed over by what reads folders of Parquet.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.errors import StartupError
from service.model.publish import sync

FORMAT = 1
LOCK_FILE, INPUTS_FILE, RUN_FILE = "_lock", "_inputs.jsonl", "_run.json"
_UNFINISHED = re.compile(r"\.(part-\d{6,}\.parquet|_inputs\.jsonl|_run\.json)(\.[0-9a-f]+)?\.unfinished")


class JournalError(StartupError):
    """The folder cannot be worked in, or is of another run."""

    code = "bulk_run"


class Journal:
    """A run's folder, which one process has opened by `open_journal`.

    Others, that do parts for it, write under names with a hexadecimal `mark` of their own.
    """

    def __init__(self, folder: Path, *, mark: str = "") -> None:
        self._folder = folder
        self._suffix = f".{mark}.unfinished" if mark else ".unfinished"

    @property
    def folder(self) -> Path:
        """The folder."""
        return self._folder

    def part_file(self, number: int) -> Path:
        """Return the file of a part, which is there when the part is done."""
        return self._folder / f"part-{number:06}.parquet"

    @contextmanager
    def whole_file(self, path: Path) -> Iterator[Path]:
        """Give the path to write a file at, and put it in place of `path`, or remove it where the block raises."""
        unfinished = path.with_name(f".{path.name}{self._suffix}")
        try:
            yield unfinished
            sync(unfinished)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        unfinished.replace(path)
        sync(self._folder)

    def clear(self) -> None:
        """Remove what a killed process left unfinished."""
        for entry in self._folder.iterdir():
            if _UNFINISHED.fullmatch(entry.name):
                entry.unlink()

    def begin(self, record: Mapping[str, Any], files: Sequence[str]) -> None:
        """Record what this is a run of, or make sure that it is the run that is recorded here.

        `record` is what the rows depend on, besides the files. Raises JournalError that names the first difference.
        """
        run_path, inputs_path = self._folder / RUN_FILE, self._folder / INPUTS_FILE
        if run_path.exists():
            self._compare(record, files)
            return
        with self.whole_file(inputs_path) as path, path.open("wb") as file:
            for line in _lines(files):
                file.write(line)
        document = {"format": FORMAT, **record}
        with self.whole_file(run_path) as path:
            path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    def _compare(self, record: Mapping[str, Any], files: Sequence[str]) -> None:
        path = self._folder / RUN_FILE
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JournalError(f"{path} cannot be read: {error}") from error
        if recorded.get("format") != FORMAT:
            raise JournalError(f"{path} has the format {recorded.get('format')}, and this program writes {FORMAT}")
        now = json.loads(json.dumps(record))
        for name in [*now, *(recorded.keys() - now.keys() - {"format"})]:
            if recorded.get(name) != now.get(name):
                raise self._refusal(f"{name} was {json.dumps(recorded.get(name))} and is {json.dumps(now.get(name))}")
        with (self._folder / INPUTS_FILE).open("rb") as before:
            for was, line in itertools.zip_longest(before, _lines(files)):
                if was != line:
                    raise self._refusal(_difference(was, line))

    def _refusal(self, difference: str) -> JournalError:
        return JournalError(
            f"{self._folder} holds another run: {difference}. Continue that as it was begun, or choose another --out"
        )


@contextmanager
def open_journal(folder: Path) -> Iterator[Journal]:
    """Make the folder if there is none, and give its journal until the block ends.

    Raises JournalError where another process works in it, or it holds files that no run has made.
    """
    try:
        folder.mkdir(exist_ok=True)
        _refuse_files_of_others(folder)
        sync(folder.absolute().parent)
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise JournalError(f"{folder} cannot be written in: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(f"another run is at work in {folder}") from error
        journal = Journal(folder)
        journal.clear()
        yield journal
    finally:
        os.close(lock)


def _refuse_files_of_others(folder: Path) -> None:
    if (folder / RUN_FILE).exists():
        return
    for entry in folder.iterdir():
        if entry.name not in (LOCK_FILE, INPUTS_FILE) and not _UNFINISHED.fullmatch(entry.name):
            raise JournalError(f"{folder} holds {entry.name}, and no run: choose an empty or a new folder")


def _lines(files: Sequence[str]) -> Iterator[bytes]:
    for path in files:
        try:
            status = os.stat(path)  # noqa: PTH116  # paths are strings here, there may be a million
        except OSError as error:
            raise JournalError(f"{path}: {error.strerror}") from error
        entry = {"path": path, "size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        yield json.dumps(entry).encode() + b"\n"


def _difference(was: bytes | None, now: bytes | None) -> str:
    old, new = json.loads(was or b"null"), json.loads(now or b"null")
    if old is None:
        return f"{new['path']} was not among its inputs"
    if new is None:
        return f"{old['path']} is no longer among its inputs"
    if old["path"] != new["path"]:
        return f"{old['path']} was where {new['path']} is now among its inputs"
    return f"{old['path']} has changed: its {_sizes(old)}, now {_sizes(new)}"


def _sizes(entry: Mapping[str, Any]) -> str:
    return f"{entry['size_bytes']} bytes were written {entry['mtime_ns']} ns after 1970"
