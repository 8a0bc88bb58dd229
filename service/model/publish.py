"""Putting a new version into a model repository: all of it at once, or nothing.

A version is written into a hidden directory of the repository, `.<name>-<random>/<name>/<version>`, which the service
passes over, synced to disk, and moved to `<name>/<version>` by one rename. Whatever happens before that rename, an
interrupt included, the repository is left as it was; a killed process leaves only a hidden directory behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.errors import RepositoryError
from service.model.directory import ModelDirectory, open_model
from service.model.manifest import MANIFEST_FILE, NAME_PATTERN, Manifest


def next_version(repository: Path, name: str) -> int:
    """Return the number after the highest version of `name`, 1 where there is none."""
    directory = repository / name
    if not directory.is_dir():
        return 1
    taken = [int(entry.name) for entry in directory.iterdir() if re.fullmatch(r"[1-9][0-9]*", entry.name)]
    return max(taken, default=0) + 1


def check_free(repository: Path, name: str, version: int) -> None:
    """Raise RepositoryError unless `name` is a model name and has no such version yet."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise RepositoryError(
            f"{name!r} is not a model name: letters, digits, '.', '_' and '-', at most 128 characters"
        )
    if version < 1:
        raise RepositoryError(f"version {version} is not possible: versions count from 1")
    if os.path.lexists(repository / name / str(version)):
        raise RepositoryError(
            f"{repository / name / str(version)} exists already and is never overwritten; choose another --version"
        )


@contextlib.contextmanager
def new_version(repository: Path, name: str, version: int) -> Iterator[Path]:
    """Give an empty directory to write the version into, and put it in place when the block ends without an error.

    Raises RepositoryError where the version exists, before the block or by its end.
    """
    check_free(repository, name, version)
    target = repository / name / str(version)
    made = _make_missing(repository)
    staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=repository))
    try:
        directory = staging / name / str(version)
        directory.mkdir(parents=True)
        yield directory
        _sync_tree(directory)
        made += _make_missing(target.parent)
        try:
            directory.rename(target)
        except OSError as error:
            raise RepositoryError(f"{target} cannot be put in place: {error.strerror}") from error
        made.clear()
        sync(target.parent)
        sync(repository)
    finally:
        shutil.rmtree(staging)
        for path in reversed(made):
            with contextlib.suppress(OSError):  # another writer has put something there meanwhile
                path.rmdir()


def derive_version(model: ModelDirectory, **facts: Any) -> Path:
    """Put the next version of a model in place, of the same files and with other facts in its manifest; return it.

    The files are links to the same contents where the file system has such, and copies where it has not. Raises
    RepositoryError where the repository cannot be written, or the files are not those of the manifest any more.
    """
    name, repository = model.manifest.name, model.path.parent.parent
    version = next_version(repository, name)
    manifest = Manifest.model_validate({**model.manifest.model_dump(), **facts, "version": version})
    try:
        with new_version(repository, name, version) as directory:
            for file in manifest.files:
                _link(model.path / file, directory / file)
            (directory / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
            open_model(directory)
    except OSError as error:
        raise RepositoryError(f"{repository} cannot be written: {error.strerror}") from error
    return repository / name / str(version)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def _make_missing(directory: Path) -> list[Path]:
    """Make a directory with its parents; return those that were missing, outermost first."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _sync_tree(directory: Path) -> None:
    for path in directory.iterdir():
        sync(path)
    sync(directory)


def sync(path: Path) -> None:
    """Have a file, or a directory's entries, outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
