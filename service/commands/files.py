"""The image files that a command was given.

Finding gives the whole list at once, as strings, so that what is missing is named before any work begins and a
progress bar knows its end; a hundred thousand paths take about ten megabytes.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from service.images.files import reason_of
from service.images.names import SUFFIXES, LeftOut
from service.predictors.types import Fault


@dataclass(slots=True)
class Found:
    """Files to read, each once and in order, what could not be found, by what was given, and what was left out."""

    files: list[str] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)


def find_files(given: Sequence[str], *, suffixes: tuple[str, ...] = SUFFIXES, without: str | None = None) -> Found:
    """Return the files that paths, folders (searched to any depth) and patterns (`**` for any depth) stand for.

    In folders only names with one of the `suffixes` are taken, and files and folders whose names begin with a dot are
    not; a file that is named itself is taken whatever its name. The folder `without` is not looked into.
    """
    found = Found()
    for each in given:
        if os.path.lexists(each):
            paths = [each]
        else:
            paths = sorted(glob.glob(each, recursive=True))
            if not paths:
                kind = "No file matches this pattern." if glob.has_magic(each) else "There is no such file or folder."
                found.faults[each] = Fault("not_found", kind)
        for path in paths:
            if os.path.isdir(path):
                _add_folder(path, found, suffixes, without)
            else:
                found.files.append(path)
    found.files = list(dict.fromkeys(found.files))
    return found


def images_below(
    folder: str,
    faults: dict[str, Fault],
    left_out: LeftOut,
    *,
    suffixes: tuple[str, ...] = SUFFIXES,
    without: str | None = None,
) -> Iterator[str]:
    """Yield the images of a folder in order; links to folders are followed, each folder once.

    A folder that cannot be read is added to `faults`, and what is not taken to `left_out`.
    """
    seen: set[tuple[int, int]] = set()

    def note(error: OSError) -> None:
        faults[str(error.filename)] = Fault("unreadable", reason_of(error))

    for parent, folders, names in os.walk(folder, onerror=note, followlinks=True):
        try:
            status = os.stat(parent)
        except OSError as error:  # removed since it was listed
            note(error)
            continue
        if (status.st_dev, status.st_ino) in seen or (without and os.path.abspath(parent) == without):
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        left_out.hidden += sum(name.startswith(".") for name in folders)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        taken = sorted(name for name in names if not name.startswith(".") and name.lower().endswith(suffixes))
        left_out.count(set(names).difference(taken), taken)
        for name in taken:
            yield os.path.join(parent, name)


def _add_folder(folder: str, found: Found, suffixes: tuple[str, ...], without: str | None) -> None:
    before = len(found.files) + len(found.faults)
    found.files.extend(images_below(folder, found.faults, found.left_out, suffixes=suffixes, without=without))
    if len(found.files) + len(found.faults) == before:
        found.faults[folder] = Fault("no_images", "The folder holds no images.")
