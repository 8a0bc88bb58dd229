"""Images whose classes are known, by the folders that they lie in or by a file that lists them.

Three forms of file are understood, told apart by their content:

    image and class     `name,class`, by tab, comma, semicolon or space, with a header `filename,class` or none
    Kaggle's            `ImageId,PredictionString`, whose second column is a synset and a box, repeated
    numbers             one class a line, for the images in the order of their names

Numbers need to be told in which order classes are counted. ImageNet's own `ILSVRC2012_validation_ground_truth.txt`
counts them from 1 in the order of the development kit, which is not the order of any model's classes: it takes the
kit's synsets in that order to read it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath

from service.errors import StartupError
from service.model.classes import Classes, UnknownClass
from service.text_files import BadTextFile, check_list, composed, is_blank, read_lines, read_list, table_rows

_HEADER = ["filename", "class"]
_KAGGLE_HEADER = ["imageid", "predictionstring"]
_DELIMITERS = ("\t", ",", ";", " ")
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
    try:
        lines = read_lines(ground_truth)
        if not lines:
            raise BadGroundTruth(f"{ground_truth} is empty")
        if all(line.strip().isdecimal() for line in lines if not is_blank(line)):
            check_list(ground_truth, lines)
            return _numbered(ground_truth, lines, files, classes, synset_order=synset_order, counted_from=counted_from)
        if synset_order is not None or counted_from is not None:
            raise BadGroundTruth(
                f"{ground_truth} names its images and classes: --numbers and --synset-order are for numbers"
            )
        return _named(ground_truth, lines, _Images(folder, files), classes)
    except BadTextFile as error:
        raise BadGroundTruth(str(error)) from error


def _named(path: Path, lines: Sequence[str], images: _Images, classes: Classes) -> list[Known]:
    known = []
    for number, name, text in _rows(path, lines):
        with _at_line(path, number):
            known.append(Known(name, images.find(name), classes.find(text)))
    return known


@contextmanager
def _at_line(path: Path, number: int) -> Iterator[None]:
    """Have errors of the block name the line."""
    try:
        yield
    except (BadGroundTruth, UnknownClass) as error:
        raise type(error)(f"{path}: line {number}: {error}") from error


def _numbered(
    ground_truth: Path,
    lines: Sequence[str],
    files: Sequence[str],
    classes: Classes,
    *,
    synset_order: Path | None,
    counted_from: int | None,
) -> list[Known]:
    if (synset_order is None) == (counted_from is None):
        raise BadGroundTruth(
            f"{ground_truth} is a list of numbers, which may be counted in several ways: say --numbers class-id, "
            "--numbers class-number (from 1), or --synset-order FILE for those of ImageNet's development kit"
        )
    if len(lines) != len(files):
        raise BadGroundTruth(f"{ground_truth} has {len(lines)} lines for {len(files)} images")
    numbers = [int(line) for line in lines]
    if counted_from is not None:
        texts = [str(number - counted_from) for number in numbers]
    else:
        assert synset_order is not None  # one of the two is given
        synsets = read_list(synset_order)
        if min(numbers) < 1 or max(numbers) > len(synsets):
            raise BadGroundTruth(
                f"{ground_truth} has numbers from {min(numbers)} to {max(numbers)}, "
                f"but {synset_order} has synsets for 1 to {len(synsets)}"
            )
        texts = [synsets[number - 1] for number in numbers]
    by_name = sorted(files, key=lambda file: PurePath(file).name)
    known = []
    for number, (file, text) in enumerate(zip(by_name, texts, strict=True), start=1):
        with _at_line(ground_truth, number):
            known.append(Known(file, file, classes.find(text)))
    return known


def _rows(path: Path, lines: Sequence[str]) -> Iterable[tuple[int, str, str]]:
    """Yield the number of each line that names an image, the image, and its class."""
    rows = _parted(path, lines)
    head = [cell.lower() for cell in rows[0][1]]
    is_kaggle = head == _KAGGLE_HEADER
    for number, row in rows[head in (_HEADER, _KAGGLE_HEADER) :]:
        if len(row) != len(_HEADER):
            raise BadGroundTruth(f"{path}: line {number} has {len(row)} columns; an image and its class are wanted")
        name, text = row
        yield number, name, _synset_of_boxes(path, number, text) if is_kaggle else text


def _parted(path: Path, lines: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Return the rows by the delimiter that parts all of them in two or, where none does, the first of the first line.

    A name may hold what the others are parted by.
    """
    delimiters = [each for each in _DELIMITERS if each in lines[0]] or [","]
    for delimiter in delimiters:
        try:
            rows = list(table_rows(path, lines, delimiter))
        except BadTextFile:  # the quotes may be meant for another delimiter
            continue
        if all(len(row) == len(_HEADER) for _, row in rows):
            return rows
    return list(table_rows(path, lines, delimiters[0]))


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
                self._by_name[composed(name)].append(file)

    def find(self, name: str) -> str | None:
        """Return the file of that name, whichever of Unicode's forms it has; None where there is none.

        Raises BadGroundTruth where there are several.
        """
        written = composed(name)
        for path in (PurePath(written), PurePath(PureWindowsPath(written).as_posix())):
            files = self._by_name.get(path.as_posix(), [])
            if len(files) > 1:
                raise BadGroundTruth(
                    f"{name!r} may be each of {', '.join(files[:3])}: name it by its path in the folder"
                )
            if files:
                return files[0]
        return None
