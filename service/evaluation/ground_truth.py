"""Images whose classes are known, by the folders that they lie in or by a file that lists them.

Four forms of file are understood, told apart by their content:

    image and class     `name,class`, by comma, tab or space, with a header `filename,class` or none
    Kaggle's            `ImageId,PredictionString`, whose second column is a synset and a box, repeated
    numbers             one class a line, for the images in the order of their names

Numbers need to be told in which order classes are counted. ImageNet's own `ILSVRC2012_validation_ground_truth.txt`
counts them from 1 in the order of the development kit, which is not the order of any model's classes: it takes the
kit's synsets in that order to read it.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from service.errors import StartupError
from service.evaluation.classes import Classes, UnknownClass

_HEADER = ["filename", "class"]
_KAGGLE_HEADER = ["imageid", "predictionstring"]
_BOX_WORDS = 5
"""A synset and the four sides of its box."""


class BadGroundTruth(StartupError):
    """The ground truth cannot be read, or does not fit the images."""

    code = "bad_ground_truth"


@dataclass(frozen=True, slots=True)
class Known:
    """An image and its class; `path` is None where the ground truth names an image that is not there."""

    name: str
    path: str | None
    class_id: int


def by_folders(folder: str, files: Sequence[str], classes: Classes) -> list[Known]:
    """Return the files below a folder with the classes that its folders are named after.

    Raises BadGroundTruth where files lie in the folder itself, or in a folder that names no class.
    """
    known, unknown, loose = [], dict[str, str](), 0
    found: dict[str, int] = {}
    for file in files:
        parts = PurePath(file).relative_to(folder).parts
        name = parts[0]
        if len(parts) == 1:
            loose += 1
        elif name not in found and name not in unknown:
            try:
                found[name] = classes.find(name)
            except UnknownClass as error:
                unknown[name] = str(error)
        if name in found:
            known.append(Known(file, file, found[name]))
    if loose:
        raise BadGroundTruth(
            f"{folder}: {loose} images lie in no folder of a class; name their classes in a --ground-truth"
        )
    if unknown:
        raise BadGroundTruth(f"{folder}: {len(unknown)} folders name no class: {'; '.join(list(unknown.values())[:5])}")
    return known


def by_file(
    ground_truth: Path, folder: str, files: Sequence[str], classes: Classes, *, synset_order: Path | None = None,
    counted_from: int | None = None,
) -> list[Known]:  # fmt: skip
    """Return the images that a file lists, with their classes, in its order.

    Of a list of numbers, `counted_from` 0 or 1 says that they are the model's class ids, counted from there, and
    `synset_order` is a file whose line n holds the synset that the number n, from 1, stands for. Raises
    BadGroundTruth that names the line, and UnknownClass.
    """
    lines = _lines(ground_truth)
    if all(line.strip().isdecimal() for line in lines):
        if (synset_order is None) == (counted_from is None):
            raise BadGroundTruth(
                f"{ground_truth} is a list of numbers, which may be counted in several ways: say --numbers class-id, "
                "--numbers class-number (from 1), or --synset-order FILE for those of ImageNet's development kit"
            )
        return _numbered(ground_truth, lines, files, classes, synset_order=synset_order, counted_from=counted_from or 0)
    if synset_order is not None or counted_from is not None:
        raise BadGroundTruth(
            f"{ground_truth} names its images and classes: --numbers and --synset-order are for numbers"
        )
    images = _Images(folder, files)
    return [Known(name, images.find(name), classes.find(text)) for name, text in _rows(ground_truth, lines)]


def _numbered(
    ground_truth: Path,
    lines: Sequence[str],
    files: Sequence[str],
    classes: Classes,
    *,
    synset_order: Path | None,
    counted_from: int,
) -> list[Known]:
    if len(lines) != len(files):
        raise BadGroundTruth(f"{ground_truth} has {len(lines)} lines for {len(files)} images")
    numbers = [int(line) for line in lines]
    if synset_order is None:
        texts = [str(number - counted_from) for number in numbers]
    else:
        synsets = [line.strip() for line in _lines(synset_order)]
        if min(numbers) < 1 or max(numbers) > len(synsets):
            raise BadGroundTruth(
                f"{ground_truth} has numbers from {min(numbers)} to {max(numbers)}, "
                f"but {synset_order} has synsets for 1 to {len(synsets)}"
            )
        texts = [synsets[number - 1] for number in numbers]
    by_name = sorted(files, key=lambda file: PurePath(file).name)
    return [Known(file, file, classes.find(text)) for file, text in zip(by_name, texts, strict=True)]


def _lines(path: Path) -> list[str]:
    """Return a file's lines without those that are empty."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadGroundTruth(f"{path} cannot be read: {error}") from error
    if not lines:
        raise BadGroundTruth(f"{path} is empty")
    return lines


def _rows(path: Path, lines: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Yield the image and the class of each line."""
    delimiter = next((each for each in "\t, " if each in lines[0]), ",")
    rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
    head = [cell.strip().lower() for cell in rows[0]]
    is_kaggle = head == _KAGGLE_HEADER
    for number, row in enumerate(rows, start=1):
        if number == 1 and head in (_HEADER, _KAGGLE_HEADER):
            continue
        if len(row) != len(_HEADER):
            raise BadGroundTruth(f"{path}: line {number} has {len(row)} columns; an image and its class are wanted")
        name, text = row
        yield name, _synset_of_boxes(path, number, text) if is_kaggle else text


def _synset_of_boxes(path: Path, number: int, text: str) -> str:
    synsets = set(text.split()[::_BOX_WORDS])
    if len(synsets) != 1:
        raise BadGroundTruth(f"{path}: line {number} has {len(synsets)} classes; an image with one class is wanted")
    return synsets.pop()


class _Images:
    """Files by the names that a ground truth may have for them: below the folder, alone, or without the suffix."""

    def __init__(self, folder: str, files: Sequence[str]) -> None:
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        for file in files:
            path = PurePath(file)
            for name in {path.relative_to(folder).as_posix(), path.name, path.stem}:
                self._by_name[name].append(file)

    def find(self, name: str) -> str | None:
        """Return the file of that name, None where there is none; raises BadGroundTruth where there are several."""
        files = self._by_name.get(PurePath(name).as_posix(), [])
        if len(files) > 1:
            raise BadGroundTruth(f"{name!r} may be each of {', '.join(files[:3])}: name it by its path in the folder")
        return files[0] if files else None
