"""The model repository on disk: what a model directory holds, and how it is found and checked.

`<repository>/<model>/<version>/` holds `model.onnx`, `manifest.json` and `labels.tsv`, `explain.onnx` where the model
can say where it looked, and `fused.onnx` where it has a graph for the library of GPU kernels. The manifest is the whole
contract between the exporter, which writes it, and the service, which trusts nothing else about a model.

Invariants: a `ModelDirectory` exists only for a directory whose manifest is valid and whose files have the sizes
and sha256 that the manifest gives; class names are as many as the model has classes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from service.errors import IncompleteModel, RepositoryError
from service.model.manifest import (
    EXPLAIN_FILE,
    FUSED_FILE,
    LABELS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    NAME_PATTERN,
    FileRecord,
    Manifest,
)
from service.text_files import BadTextFile, is_blank, read_lines


@dataclass(frozen=True, slots=True)
class Label:
    """One class: its name for people and, where it has one, its WordNet synset."""

    class_id: int
    name: str
    synset: str | None = None


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A model directory that was read and checked."""

    path: Path
    manifest: Manifest
    labels: tuple[Label, ...]
    lease: object = field(default=None, compare=False, repr=False)
    """What keeps the directory from being removed while somebody holds this; None where nobody would."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by their ids."""
        return tuple(label.name for label in self.labels)

    @property
    def model_path(self) -> Path:
        """The graph's file."""
        return self.path / MODEL_FILE

    @property
    def explain_path(self) -> Path:
        """The file of the graph that says where the model looked; there is one where the manifest has `explain`."""
        return self.path / EXPLAIN_FILE

    @property
    def fused_path(self) -> Path:
        """The file of the graph of the library's operators; there is one where the manifest has `fused`."""
        return self.path / FUSED_FILE


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_labels(path: Path, num_classes: int) -> tuple[Label, ...]:
    """Read a model directory's labels: columns parted by tabs, a header with `class_id`, `name` and maybe `synset`.

    Nothing is quoted, so that a name holds neither tab nor line end. Raises RepositoryError unless the table lists
    exactly the classes 0 ... num_classes - 1 in order.
    """
    try:
        lines = read_lines(path)
    except BadTextFile as error:
        raise RepositoryError(str(error)) from error
    rows = ((number, line.split("\t")) for number, line in enumerate(lines, start=1) if not is_blank(line))
    return labels_of_rows(path, rows, num_classes)


def labels_of_rows(path: Path, rows: Iterator[tuple[int, list[str]]], num_classes: int) -> tuple[Label, ...]:
    """Return the labels in a table's rows, each with the number of its line, header first; raises RepositoryError."""
    _, header = next(rows, (1, []))
    if "class_id" not in header or "name" not in header:
        raise RepositoryError(f"{path}: the first line must name the columns class_id and name")
    labels: list[Label] = []
    for number, cells in rows:
        if len(cells) != len(header):
            raise RepositoryError(f"{path}: line {number} has {len(cells)} columns, the header {len(header)}")
        row = dict(zip(header, cells, strict=True))
        if row["class_id"] != str(len(labels)):
            raise RepositoryError(f"{path}: line {number} should be class {len(labels)}, not {row['class_id']!r}")
        labels.append(Label(len(labels), row["name"], row.get("synset")))
    if len(labels) != num_classes:
        raise RepositoryError(f"{path}: {len(labels)} labels for {num_classes} classes")
    return tuple(labels)


def open_model(path: Path, *, manifest_sha256: str | None = None) -> ModelDirectory:
    """Read and check a model directory `<repository>/<model>/<version>`, and its manifest by a digest if one is given.

    Raises RepositoryError that names the file and what is wrong with it: IncompleteModel where files are missing or
    too short, which may be for now.
    """
    manifest = _whole_manifest(path, manifest_sha256)
    for name, record in manifest.files.items():
        _check_digest(path / name, record)
    return ModelDirectory(path, manifest, read_labels(path / LABELS_FILE, manifest.num_classes))


def check_whole(path: Path) -> None:
    """Raise IncompleteModel while files of a model directory are missing or too short; reads nothing but the manifest.

    Anything else that is wrong is for `open_model` to say.
    """
    try:
        _whole_manifest(path)
    except IncompleteModel:
        raise
    except RepositoryError:
        return


def parse_manifest(content: bytes, place: str, *, folder: tuple[str, str], sha256: str | None = None) -> Manifest:
    """Return the manifest in a file that lies at `place`, in a folder of the model's name with one of its version.

    Raises RepositoryError that names it where it is no manifest, of another model or version, or not of the digest:
    IncompleteModel where it is cut off.
    """
    if sha256 is not None and (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise RepositoryError(f"{place} has sha256 {digest}, and {sha256} is wanted")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'manifest'}: {problem['msg']}" for problem in error.errors()
        )
        # A file that is cut off is no JSON; one that is JSON is all there.
        is_cut_off = any(problem["type"] == "json_invalid" for problem in error.errors())
        kind = IncompleteModel if is_cut_off else RepositoryError
        raise kind(f"{place} is not a valid manifest: {problems}") from error
    if (manifest.name, str(manifest.version)) != folder:
        raise RepositoryError(
            f"{place} is of {manifest.name} version {manifest.version}, but lies in {'/'.join(folder)}"
        )
    return manifest


def _whole_manifest(path: Path, sha256: str | None = None) -> Manifest:
    """Return the manifest of a directory whose files have the sizes that it says; raises RepositoryError."""
    manifest_path = path / MANIFEST_FILE
    try:
        content = manifest_path.read_bytes()
    except FileNotFoundError as error:
        raise IncompleteModel(f"{manifest_path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise RepositoryError(f"{manifest_path} cannot be read: {error.strerror}") from error
    manifest = parse_manifest(content, str(manifest_path), folder=(path.parent.name, path.name), sha256=sha256)
    for name, record in manifest.files.items():
        _check_size(path / name, record)
    return manifest


def _check_size(path: Path, record: FileRecord) -> None:
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise IncompleteModel(f"{path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise RepositoryError(f"{path} cannot be read: {error.strerror}") from error
    if size_bytes != record.size_bytes:
        kind = IncompleteModel if size_bytes < record.size_bytes else RepositoryError
        raise kind(f"{path} has {size_bytes} bytes; its manifest says {record.size_bytes}")


def _check_digest(path: Path, record: FileRecord) -> None:
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise RepositoryError(f"{path} cannot be read: {error.strerror}") from error
    if digest != record.sha256:
        raise RepositoryError(f"{path} does not match its manifest: sha256 {digest}, expected {record.sha256}")


def find_models(repository: Path) -> dict[str, tuple[int, ...]]:
    """Return the models in a repository with their versions, ascending; directories being written are passed over.

    Raises RepositoryError where it cannot be read.
    """
    try:
        entries = sorted(entry for entry in repository.iterdir() if re.match(NAME_PATTERN, entry.name))
        found = {entry.name: _versions_in(entry) for entry in entries if entry.is_dir()}
    except OSError as error:
        raise RepositoryError(f"the model repository {repository} cannot be read: {error.strerror}") from error
    return {name: versions for name, versions in found.items() if versions}


def _versions_in(directory: Path) -> tuple[int, ...]:
    named = (child for child in directory.iterdir() if re.fullmatch(r"[1-9][0-9]*", child.name))
    return tuple(sorted(int(child.name) for child in named if (child / MANIFEST_FILE).exists()))


def held_models(repository: Path) -> dict[str, tuple[int, ...]]:
    """Return what `find_models` does; raises RepositoryError where that is nothing."""
    found = find_models(repository)
    check_any(repository, found)
    return found


def check_any(repository: object, found: Mapping[str, Sequence[int]]) -> None:
    """Raise RepositoryError unless a repository, named as it prints, holds a model."""
    if not found:
        raise RepositoryError(f"the model repository {repository} holds no model; make one with: python -m export")


def check_held(repository: object, found: Mapping[str, Sequence[int]], name: str, version: int | None = None) -> None:
    """Raise RepositoryError that says what there is unless a repository holds a model and, if given, its version."""
    if name not in found:
        raise RepositoryError(f"{repository} holds no model {name!r}; it holds: {', '.join(found)}")
    if version is not None and version not in found[name]:
        listed = ", ".join(map(str, found[name]))
        raise RepositoryError(f"{repository} holds no version {version} of {name}; it holds: {listed}")


def select_model(repository: Path, *, name: str | None = None, version: int | None = None) -> ModelDirectory:
    """Open the named model (the only one where no name is given) at the given, or its highest, version."""
    found = held_models(repository)
    if name is None:
        if len(found) > 1:
            raise RepositoryError(f"{repository} holds several models, choose one of: {', '.join(found)}")
        name = next(iter(found))
    check_held(repository, found, name, version)
    return open_model(repository / name / str(version or found[name][-1]))
