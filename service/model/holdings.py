"""What a repository holds, wherever it lies: which versions, how their files are, and each one opened and checked.

A survey is one look at it, and all that is asked of a survey is as that look found it; opening reads anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from service.errors import IncompleteModel
from service.model.directory import ModelDirectory, check_whole, find_models, open_model
from service.remote.address import RemoteAddress
from service.settings import Settings

Stamp = tuple[tuple[str | int, ...], ...]
"""What tells files from others of the same names: sizes, and times of change or the store's marks."""


class Survey(Protocol):
    """What one look at a repository has found."""

    @property
    def models(self) -> Mapping[str, tuple[int, ...]]:
        """The versions of every model, ascending; those that are being written are not among them."""
        ...

    def stamp(self, name: str, versions: Sequence[int]) -> Stamp:
        """Return the stamp of a model's own files and those of some versions: equal while none has changed."""
        ...

    def missing(self, name: str, version: int) -> str:
        """Return what the files of a version lack to be whole; empty where that is nothing."""
        ...

    def open(self, name: str, version: int, *, manifest_sha256: str | None) -> ModelDirectory:
        """Read and check a version, and its manifest by a digest where one is given; raises RepositoryError."""
        ...


class Holdings(Protocol):
    """A repository."""

    def survey(self, *, or_kept: bool = False) -> Survey:
        """Look at it; raises RepositoryError where it cannot be read.

        With `or_kept`, what is kept here of a repository elsewhere stands in for it, as long as it is not reached.
        """
        ...


def holdings_of(settings: Settings) -> Holdings:
    """Return the repository that settings name; raises StartupError where what reading it wants is not installed."""
    if not isinstance(settings.repository, RemoteAddress):
        return LocalHoldings(settings.repository)
    from service.model.remote_holdings import RemoteHoldings

    named = {name: settings.named_versions(name) for name in settings.model_names}
    return RemoteHoldings(settings.repository, settings.kept_repository, named=named)


class LocalHoldings:
    """A repository in a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def survey(self, *, or_kept: bool = False) -> _LocalSurvey:  # noqa: ARG002
        """See `Holdings`."""
        return _LocalSurvey(self._root, find_models(self._root))


class _LocalSurvey:
    """What lay in a directory; stamps and what is missing are read when they are asked for."""

    def __init__(self, root: Path, models: Mapping[str, tuple[int, ...]]) -> None:
        self._root = root
        self.models = models

    def stamp(self, name: str, versions: Sequence[int]) -> Stamp:
        """See `Survey`."""
        places = (self._root / name, *(self._root / name / str(version) for version in versions))
        return tuple(file for place in places for file in _stamp(place))

    def missing(self, name: str, version: int) -> str:
        """See `Survey`."""
        try:
            check_whole(self._root / name / str(version))
        except IncompleteModel as error:
            return str(error)
        return ""

    def open(self, name: str, version: int, *, manifest_sha256: str | None) -> ModelDirectory:
        """See `Survey`."""
        return open_model(self._root / name / str(version), manifest_sha256=manifest_sha256)


def _stamp(directory: Path) -> Stamp:
    """Return the stamp of a directory's own files; empty where it has just gone."""
    try:
        with os.scandir(directory) as entries:
            files = [(entry.path, entry.stat()) for entry in entries if entry.is_file()]
    except OSError:
        return ()
    return tuple(sorted((path, status.st_size, status.st_mtime_ns) for path, status in files))
