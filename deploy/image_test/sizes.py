"""What takes the room in an image, by layer and by directory, read from the archive that an engine saves it as.

Sizes are of the files as they are when unpacked. What a later layer removes or replaces still counts, as it does on
the disk of whoever pulls the image.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MEGABYTE = 1_000_000
_LARGEST = 12
"""Directories that are named of each layer; the others are added up."""


@dataclass(frozen=True)
class Layer:
    """One layer: the instruction that made it, and the bytes of its files by directory."""

    made_by: str
    directories: Counter[str]

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return self.directories.total()


def read_layers(archive: Path) -> list[Layer]:
    """Return the layers of the one image in an archive of `docker save` or its like, the lowest first."""
    with tarfile.open(archive) as whole:
        (image,) = json.loads(_content(whole, "manifest.json"))
        history = json.loads(_content(whole, image["Config"])).get("history", [])
        made_by = [step.get("created_by", "") for step in history if not step.get("empty_layer")]
        layers: Sequence[str] = image["Layers"]
        if len(made_by) != len(layers):
            made_by = [""] * len(layers)
        return [Layer(step, _directories(whole, name)) for step, name in zip(made_by, layers, strict=True)]


def report(layers: Sequence[Layer]) -> Iterator[str]:
    """Write the table, a line at a time."""
    yield f"{_megabytes(sum(layer.size_bytes for layer in layers))}  the image, unpacked"
    for layer in layers:
        yield f"{_megabytes(layer.size_bytes)}  {' '.join(layer.made_by.split())[:100] or '(not recorded)'}"
        if layer.size_bytes < MEGABYTE:
            continue
        named = layer.directories.most_common(_LARGEST)
        for directory, size_bytes in named:
            yield f"{_megabytes(size_bytes)}      {directory}"
        rest = layer.size_bytes - sum(size_bytes for _, size_bytes in named)
        if rest:
            yield f"{_megabytes(rest)}      elsewhere"


def _content(whole: tarfile.TarFile, name: str) -> bytes:
    file = whole.extractfile(name)
    if file is None:
        raise tarfile.ReadError(f"{name} is not a file of the archive")
    return file.read()


def _directories(whole: tarfile.TarFile, name: str) -> Counter[str]:
    directories: Counter[str] = Counter()
    member = whole.getmember(name)
    if member.issym():  # a layer that the archive holds already
        member = whole.getmember(str(PurePosixPath(name).parent / member.linkname))
    with tarfile.open(fileobj=whole.extractfile(member)) as layer:
        for entry in layer:
            if entry.isreg():
                directories[_directory(entry.name)] += entry.size
    return directories


def _directory(name: str) -> str:
    """Return where a file is counted: a Python package, a package of NVIDIA's, or two levels of the tree."""
    parts = PurePosixPath("/", name).parts[1:-1]
    if "site-packages" in parts:
        packages = parts.index("site-packages") + 1
        depth = 2 if parts[packages : packages + 1] == ("nvidia",) else 1
        return "/".join(parts[packages : packages + depth]) or "site-packages"
    return "/" + "/".join(parts[:3])


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / MEGABYTE:8.1f} MB"
