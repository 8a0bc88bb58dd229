"""A repository that lies elsewhere: looked at by its listing, and copied whole, version by version, to be opened.

An object store lists its files. A web server does not: there the file `index.json`, `{"MODEL": [VERSION, ...]}`, says
which versions there are or, without one, the versions that the settings name are those that are looked for.

Invariants: nothing is opened but copies whose every byte was checked, by the manifest and by the digest of that; over
`http://`, where anybody on the way could change what is read, nothing but versions of a digest that was given.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.errors import RemoteFailed, RepositoryError
from service.model.directory import ModelDirectory, parse_manifest
from service.model.holdings import Stamp, Survey
from service.model.manifest import MANIFEST_FILE, NAME_PATTERN, Manifest
from service.model.version_cache import Kept, VersionCache
from service.remote.address import RemoteAddress
from service.remote.download import TimedProgress, download, out_of_space
from service.remote.store import RemoteFile, RemoteStore
from service.settings_file import MODEL_SETTINGS_FILE

_log = logging.getLogger(__name__)

INDEX_FILE = "index.json"
_MAX_SMALL_BYTES = 8 * 1024 * 1024
"""Of an index, a manifest or settings, which are read at once."""
_MANIFEST_PATH = re.compile(rf"({NAME_PATTERN.strip('^$')})/([1-9][0-9]{{0,8}})/{re.escape(MANIFEST_FILE)}")


class RemoteHoldings:
    """The repository at an address, with what is kept of it at `root`; see `holdings.Holdings`.

    `named` are the versions that are asked for by number, which are looked for where nothing says what there is.
    """

    def __init__(self, address: RemoteAddress, root: Path, *, named: Mapping[str, Sequence[int]]) -> None:
        self._address = address
        self._store = RemoteStore(address)
        self._cache = VersionCache(root)
        self._named = {name: tuple(versions) for name, versions in named.items() if versions}
        self._manifests: dict[RemoteFile, bytes] = {}
        self._settings_seen: dict[str, RemoteFile | None] = {}

    def survey(self, *, or_kept: bool = False) -> Survey:
        """Look at the repository, and have the models' own settings here; see `holdings.Holdings`."""
        try:
            return self._survey()
        except RemoteFailed as error:
            kept = self._cache.kept() if or_kept else {}
            if not kept:
                raise
            _log.warning(
                "the repository cannot be read; what is kept of it serves", extra={"fields": {"reason": str(error)}}
            )
            return _KeptSurvey(self._cache, kept)

    def _survey(self) -> Survey:
        files = {file.path: file for file in self._store.list()} if self._address.is_bucket else None
        models, is_all = (_models_of(files), True) if files is not None else self._indexed()
        if is_all:
            self._cache.withdraw_all_but(models)
        survey = _RemoteSurvey(self, models, files)
        if not self._address.is_plain:
            for name in models:
                self._take_settings(name, survey.find(f"{name}/{MODEL_SETTINGS_FILE}"))
        return survey

    def _indexed(self) -> tuple[dict[str, tuple[int, ...]], bool]:
        """Return what a web server's index lists, or else what is named, and whether that is all there is."""
        content = self._store.read(INDEX_FILE, max_bytes=_MAX_SMALL_BYTES)
        if content is not None:
            return _index_of(content, f"{self._address}/{INDEX_FILE}"), True
        if not self._named:
            raise RepositoryError(
                f"{self._address} has no {INDEX_FILE}, so that only models named as NAME:VERSION are found there"
            )
        return dict(self._named), False

    def _take_settings(self, name: str, found: RemoteFile | None) -> None:
        if name in self._settings_seen and self._settings_seen[name] == found:
            return
        content = None
        if found is not None:
            content = self._store.read(found.path, max_bytes=_MAX_SMALL_BYTES)
        self._cache.put_settings(name, content)
        self._settings_seen[name] = found

    def head(self, path: str) -> RemoteFile | None:
        """Ask for a file by itself."""
        return self._store.head(path)

    def manifest(self, name: str, version: int, found: RemoteFile) -> Manifest:
        """Return the manifest of a version, which is read once for as long as it stays the same."""
        content = self._manifests.get(found)
        if content is None:
            content = self._read_manifest(name, version)
            self._manifests = {file: each for file, each in self._manifests.items() if file.path != found.path}
            self._manifests[found] = content
        return parse_manifest(content, self._place(name, version), folder=(name, str(version)))

    def open(self, name: str, version: int, manifest_sha256: str | None) -> ModelDirectory:
        """Copy a version here, unless it is here already, and open it; raises RepositoryError."""
        if manifest_sha256 is None and self._address.is_plain:
            raise RepositoryError(
                f"{self._place(name, version)} comes by plain http, where it could be changed on the way: name the "
                f"model as {name}:{version}@sha256:DIGEST, or have it come by https"
            )
        if manifest_sha256 is not None and self._cache.kept().get(name, {}).get(version) == manifest_sha256:
            return _open_kept(self._cache, name, version, manifest_sha256)
        content = self._read_manifest(name, version)
        manifest = parse_manifest(
            content, self._place(name, version), folder=(name, str(version)), sha256=manifest_sha256
        )
        digest = hashlib.sha256(content).hexdigest()
        model = self._cache.bring(name, version, digest, lambda place: self._copy(manifest, content, digest, place))
        self._cache.note(name, version, digest)
        self._cache.remove_unknown()
        return model

    def _read_manifest(self, name: str, version: int) -> bytes:
        content = self._store.read(f"{name}/{version}/{MANIFEST_FILE}", max_bytes=_MAX_SMALL_BYTES)
        if content is None:
            raise RepositoryError(f"{self._place(name, version)} cannot be read: there is no such file")
        return content

    def _copy(self, manifest: Manifest, content: bytes, digest: str, place: Path) -> None:
        """Fill a directory with the files of a version, going on with what is there of them."""
        name, version = manifest.name, manifest.version
        fields: dict[str, object] = {"model": name, "version": version}
        total_bytes = sum(record.size_bytes for record in manifest.files.values())
        self._cache.require_room(total_bytes - sum(each.stat().st_size for each in place.iterdir()))
        _log.info("downloading", extra={"fields": {**fields, "from": str(self._address), "total_bytes": total_bytes}})
        began_s = time.monotonic()

        def say(done_bytes: int) -> None:
            _log.info("downloading", extra={"fields": {**fields, "done_bytes": done_bytes, "total_bytes": total_bytes}})

        progress = TimedProgress(say)
        try:
            for file, record in manifest.files.items():
                download(
                    self._store,
                    f"{name}/{version}/{file}",
                    place / file,
                    sha256=record.sha256,
                    size_bytes=record.size_bytes,
                    progress=progress,
                )
            (place / MANIFEST_FILE).write_bytes(content)
        except OSError as error:
            if out_of_space(error):  # which others may want more
                self._cache.discard_partial(digest)
            raise
        fields["duration_s"] = round(time.monotonic() - began_s, 3)
        _log.info("downloaded", extra={"fields": {**fields, "total_bytes": total_bytes}})

    def _place(self, name: str, version: int) -> str:
        return f"{self._address}/{name}/{version}/{MANIFEST_FILE}"


class _RemoteSurvey:
    """What a listing has said or, without one, what the server says of each file that is asked for."""

    def __init__(
        self,
        holdings: RemoteHoldings,
        models: Mapping[str, tuple[int, ...]],
        listing: Mapping[str, RemoteFile] | None,
    ) -> None:
        self.models = models
        self._holdings = holdings
        self._listing = listing
        self._asked: dict[str, RemoteFile | None] = {}

    def find(self, path: str) -> RemoteFile | None:
        """Return what is known of a file; None where there is none."""
        if self._listing is not None:
            return self._listing.get(path)
        if path not in self._asked:
            self._asked[path] = self._holdings.head(path)
        return self._asked[path]

    def stamp(self, name: str, versions: Sequence[int]) -> Stamp:
        """See `holdings.Survey`; a manifest has the digests of all other files of its version."""
        paths = (f"{name}/{MODEL_SETTINGS_FILE}", *(f"{name}/{version}/{MANIFEST_FILE}" for version in versions))
        files = [file for file in map(self.find, paths) if file is not None]
        return tuple((file.path, file.size_bytes, file.tag) for file in files)

    def missing(self, name: str, version: int) -> str:
        """See `holdings.Survey`."""
        found = self.find(f"{name}/{version}/{MANIFEST_FILE}")
        if found is None:
            return f"{name}/{version}/{MANIFEST_FILE} is missing"
        try:
            manifest = self._holdings.manifest(name, version, found)
        except RepositoryError:
            return ""  # for `open` to say
        for file, record in manifest.files.items():
            has = self.find(f"{name}/{version}/{file}")
            if has is None or has.size_bytes < record.size_bytes:
                return f"{name}/{version}/{file} has {has.size_bytes if has else 'no'} bytes of {record.size_bytes}"
        return ""

    def open(self, name: str, version: int, *, manifest_sha256: str | None) -> ModelDirectory:
        """See `holdings.Survey`."""
        return self._holdings.open(name, version, manifest_sha256)


class _KeptSurvey:
    """What is kept here of a repository that is not reached."""

    def __init__(self, cache: VersionCache, kept: Kept) -> None:
        self.models = {name: tuple(sorted(versions)) for name, versions in sorted(kept.items())}
        self._cache = cache
        self._kept = kept

    def stamp(self, name: str, versions: Sequence[int]) -> Stamp:
        """See `holdings.Survey`; what is kept does not change."""
        return tuple((version, self._kept[name][version]) for version in versions)

    def missing(self, name: str, version: int) -> str:  # noqa: ARG002
        """See `holdings.Survey`."""
        return ""

    def open(self, name: str, version: int, *, manifest_sha256: str | None) -> ModelDirectory:
        """See `holdings.Survey`."""
        digest = self._kept[name][version]
        if manifest_sha256 not in (None, digest):
            raise RepositoryError(
                f"the manifest that is kept of {name}:{version} has sha256 {digest}, and {manifest_sha256} is wanted"
            )
        return _open_kept(self._cache, name, version, digest)


def _open_kept(cache: VersionCache, name: str, version: int, digest: str) -> ModelDirectory:
    def refuse(place: Path) -> None:  # noqa: ARG001
        raise RepositoryError(f"what is kept of {name}:{version} is damaged")

    return cache.bring(name, version, digest, refuse)


def _models_of(files: Mapping[str, RemoteFile]) -> dict[str, tuple[int, ...]]:
    """Return the models and versions whose manifests are among some files."""
    versions: dict[str, list[int]] = {}
    for match in filter(None, map(_MANIFEST_PATH.fullmatch, files)):
        versions.setdefault(match[1], []).append(int(match[2]))
    return {name: tuple(sorted(versions[name])) for name in sorted(versions)}


def _index_of(content: bytes, place: str) -> dict[str, tuple[int, ...]]:
    """Return the models and versions that an index lists; raises RepositoryError where it is none."""
    try:
        index = dict(json.loads(content))
        models = {name: tuple(sorted({int(version) for version in index[name]})) for name in sorted(index)}
    except (ValueError, TypeError) as error:
        raise RepositoryError(f"{place} is no index, which is {{'MODEL': [VERSION, ...]}}: {error}") from error
    for name, versions in models.items():
        if not re.fullmatch(NAME_PATTERN, name) or any(version < 1 for version in versions):
            raise RepositoryError(f"{place}: {name!r} is no model's name, or a version of it no number from 1 on")
    return {name: versions for name, versions in models.items() if versions}
