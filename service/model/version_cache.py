"""Copies of model directories, each under the digest of its manifest: put in place whole or not at all, never changed.

    versions/<digest>/<model>/<version>/    a copy that is whole
    versions/<digest>.partial/              one that is being made, or was broken off and goes on here
    locks/<digest>.use, <digest>.make       held by who reads the copy (shared), and by who makes it
    kept.json                               which digest was last had for which version
    models/<model>/settings.toml            models' own settings

Several processes, on several machines where the file system's locks reach so far, may share it. A lock is let go of by
the kernel when its process ends, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.errors import RepositoryError
from service.model.directory import ModelDirectory, open_model
from service.model.publish import sync
from service.settings_file import MODEL_SETTINGS_FILE, SETTINGS_FOLDER

_log = logging.getLogger(__name__)

Kept = dict[str, dict[int, str]]
"""Digests of manifests by model and version."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Lease:
    """Keeps a copy from being removed, for as long as this is held; a process that is sent it holds none."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _no_lease, ()


def _no_lease() -> None:
    return None


class VersionCache:
    """The copies below `root`; every method raises RepositoryError where that cannot be read or written."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def bring(self, name: str, version: int, digest: str, copy: Callable[[Path], None]) -> ModelDirectory:
        """Return the copy of a version whose manifest has that digest; `copy` fills a directory where there is none.

        What `copy` raises is raised, and what it has written is there when it is called again.
        """
        with self._writing():
            lease = self._lock(f"{digest}.use", fcntl.LOCK_SH)
            model = self._open(name, version, digest)
            if model is None:
                with self._making(digest):
                    model = self._open(name, version, digest) or self._made(name, version, digest, copy)
            return replace(model, lease=lease)

    def kept(self) -> Kept:
        """Return the digests of the versions that are here, as they were last had under their numbers."""
        try:
            noted = json.loads((self._root / "kept.json").read_text())
            kept = {name: {int(each): str(digest) for each, digest in of.items()} for name, of in noted.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            _log.warning("what is kept of a repository cannot be read: %s", error)
            return {}
        present = {
            name: {each: digest for each, digest in of.items() if self._directory(name, each, digest).is_dir()}
            for name, of in kept.items()
        }
        return {name: of for name, of in present.items() if of}

    def note(self, name: str, version: int, digest: str) -> None:
        """Have a version known by the digest that was had under its number."""
        if self.kept().get(name, {}).get(version) != digest:
            self._change(lambda kept: kept.setdefault(name, {}).update({version: digest}))

    def withdraw_all_but(self, found: Mapping[str, Sequence[int]]) -> None:
        """Have no version known by its number any more that is not among those found."""

        def withdraw(kept: Kept) -> None:
            for name, versions in kept.items():
                kept[name] = {each: digest for each, digest in versions.items() if each in found.get(name, ())}

        if any(version not in found.get(name, ()) for name, versions in self.kept().items() for version in versions):
            self._change(withdraw)

    def remove_unknown(self) -> None:
        """Remove the copies, whole or begun, that are known by no number and that nobody uses or makes."""
        with self._writing(), self._locked("kept"):
            known = {digest for versions in self.kept().values() for digest in versions.values()}
            present = {entry.name.partition(".")[0] for entry in (self._root / "versions").iterdir()}
            for digest in present - known:
                self._remove_if_idle(digest)

    def put_settings(self, name: str, content: bytes | None) -> None:
        """Have a model's own settings be these; None for none."""
        path = self._root / SETTINGS_FOLDER / name / MODEL_SETTINGS_FILE
        with self._writing():
            if content is None:
                path.unlink(missing_ok=True)
            elif not path.exists() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, content)

    def require_room(self, size_bytes: int) -> None:
        """Raise RepositoryError where the disk has not that much room."""
        with self._writing():
            free_bytes = shutil.disk_usage(self._root).free
        if free_bytes < size_bytes:
            raise RepositoryError(f"{self._root} has room for {free_bytes} bytes, and {size_bytes} are wanted")

    def _directory(self, name: str, version: int, digest: str) -> Path:
        return self._root / "versions" / digest / name / str(version)

    def _open(self, name: str, version: int, digest: str) -> ModelDirectory | None:
        """Return the copy, checked; None where there is none that is right."""
        path = self._directory(name, version, digest)
        if not path.exists():
            return None
        try:
            return open_model(path, manifest_sha256=digest)
        except RepositoryError as error:
            _log.warning("a copy is damaged, and is made anew: %s", error)
            return None

    def _made(self, name: str, version: int, digest: str, copy: Callable[[Path], None]) -> ModelDirectory:
        """Make a copy in place of what there is, and return it, checked."""
        partial = self._root / "versions" / f"{digest}.partial"
        directory = partial / name / str(version)
        directory.mkdir(parents=True, exist_ok=True)
        copy(directory)
        try:
            open_model(directory, manifest_sha256=digest)
        except RepositoryError:
            shutil.rmtree(partial)  # what is wrong in it would be wrong the next time
            raise
        place = self._root / "versions" / digest
        if place.exists():
            with tempfile.TemporaryDirectory(dir=self._root / "versions", prefix="damaged.") as away:
                place.rename(Path(away) / digest)
                partial.rename(place)
        else:
            partial.rename(place)
        sync(place.parent)
        return open_model(self._directory(name, version, digest), manifest_sha256=digest)

    def discard_partial(self, digest: str) -> None:
        """Remove what is there of a copy that is being made by the caller."""
        shutil.rmtree(self._root / "versions" / f"{digest}.partial", ignore_errors=True)

    def _remove_if_idle(self, digest: str) -> None:
        if not _DIGEST.fullmatch(digest):
            return
        try:
            locks = [self._lock(f"{digest}.{each}", fcntl.LOCK_EX | fcntl.LOCK_NB) for each in ("use", "make")]
        except BlockingIOError:
            return
        for name in (digest, f"{digest}.partial"):
            shutil.rmtree(self._root / "versions" / name, ignore_errors=True)
        del locks

    def _change(self, change: Callable[[Kept], Any]) -> None:
        with self._writing(), self._locked("kept"):
            kept = self.kept()
            change(kept)
            _write(self._root / "kept.json", json.dumps(kept, indent=1).encode())

    @contextlib.contextmanager
    def _making(self, digest: str) -> Iterator[None]:
        """Be the only one who makes a copy; waits for whoever does."""
        try:
            lock = self._lock(f"{digest}.make", fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another process that downloads the same")
            lock = self._lock(f"{digest}.make", fcntl.LOCK_EX)
        try:
            yield
        finally:
            del lock

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        lock = self._lock(f"{name}.lock", fcntl.LOCK_EX)
        try:
            yield
        finally:
            del lock

    def _lock(self, name: str, operation: int) -> Lease:
        """Return a lock on a file of that name; raises BlockingIOError where LOCK_NB is asked and another holds it."""
        folder = self._root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        lease = Lease(descriptor)
        fcntl.flock(descriptor, operation)
        return lease

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RepositoryError(
                f"the cache of models {self._root} cannot be used: {error.strerror or error}"
            ) from error


def _write(path: Path, content: bytes) -> None:
    """Put a file in place whole."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink()
        raise
