"""Weights that lie elsewhere: copied to a cache, and taken by their digest alone.

A file that is read from the net could be any file. So its sha256 has to be given, and where it is not, the file is
copied and its digest said, for whoever can compare it with what was published.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from urllib.parse import unquote

from export.errors import ExportError
from export.progress import Progress
from service.model.directory import sha256_of
from service.remote.address import BadAddress, RemoteAddress
from service.remote.download import TimedProgress, download
from service.remote.store import RemoteStore
from service.remote.user_cache import user_cache


def checked_weights(weights: Path | RemoteAddress, sha256: str | None, cache: Path | None, progress: Progress) -> Path:
    """Return the file of weights, which has that digest if one is given; one from elsewhere must be given one.

    Raises ExportError where the digest is another or lacks, StartupError where a file elsewhere cannot be read.
    """
    if isinstance(weights, RemoteAddress):
        return _fetched(weights, sha256, cache, progress)
    if sha256 is not None and weights.exists():
        digest = sha256_of(weights)
        if digest != sha256:
            raise ExportError(f"{weights} has sha256 {digest}, expected {sha256}")
    return weights


def _fetched(address: RemoteAddress, sha256: str | None, cache: Path | None, progress: Progress) -> Path:
    """Return the copy of a file that has that digest."""
    store_address, name = _parted(address)
    root = cache or user_cache()
    if root is None:
        raise ExportError("name a --download-cache: this user has no directory of its own")
    folder = root / "weights" / address.folder_name
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if sha256 is not None and target.exists() and sha256_of(target) == sha256:
            return target
        store = RemoteStore(store_address)
        found = store.head(name)
        if found is None:
            raise ExportError(f"{address} does not exist")
        with progress.step(f"downloading {found.size_bytes / 1e6:.1f} MB from {address}"):
            told = TimedProgress(lambda done_bytes: progress.more(f"{done_bytes / 1e6:.1f}"))
            digest = download(store, name, target, sha256=sha256, size_bytes=found.size_bytes, progress=told)
    if sha256 is None:
        raise ExportError(
            f"{address} has sha256 {digest}; if that is the digest of the weights that you mean, give --sha256 {digest}"
        )
    return target


def _parted(address: RemoteAddress) -> tuple[RemoteAddress, str]:
    """Return the address of the folder that a file is in, and the file's name."""
    folder, _, name = str(address).rpartition("/")
    try:
        return RemoteAddress(folder), name if address.is_bucket else unquote(name)
    except BadAddress:
        raise ExportError(f"{address} is no address of a file") from None
