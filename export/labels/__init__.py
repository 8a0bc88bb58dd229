"""Class names for a model: read from a user's file, or bundled with the project.

`imagenet1k.tsv` beside this module holds the ImageNet-1k classes; the demo model's lie with its weights.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import models.demo
from export.errors import ExportError
from service.model.directory import Label, labels_of_rows, read_labels
from service.text_files import BadTextFile, check_list, composed, read_lines, table_rows

IMAGENET_CLASSES: Final = 1000
DEMO_VARIANT: Final = "dat_demo"
DEMO_CLASSES: Final = 10
_DELIMITERS: Final = ("\t", ",", ";")

_IMAGENET_FILE = Path(__file__).with_name("imagenet1k.tsv")
_DEMO_FILE = Path(models.demo.__file__).with_name("labels.tsv")


def labels_from_file(path: Path, num_classes: int) -> tuple[Label, ...]:
    """Read class names from a table (a header with `class_id` and `name`) or from plain text, one name a line.

    Columns of a table are parted by tabs, commas or semicolons. Names come out in Unicode's composed form. Raises
    ExportError or RepositoryError, naming the file and the line, unless it holds exactly `num_classes` names.
    """
    try:
        lines = read_lines(path)
        delimiter = _delimiter(lines[0]) if lines else None
        if delimiter is not None:
            labels = labels_of_rows(path, table_rows(path, lines, delimiter), num_classes)
        else:
            labels = _listed(path, lines, num_classes)
    except BadTextFile as error:
        raise ExportError(f"the labels {error}") from error
    for label in labels:
        if not label.name or any(separator in f"{label.name}{label.synset or ''}" for separator in "\t\r\n"):
            raise ExportError(
                f"{path}: the name of class {label.class_id}, {label.name!r}, is empty or of several lines or cells"
            )
    return tuple(replace(label, name=composed(label.name)) for label in labels)


def _delimiter(header: str) -> str | None:
    """Return what parts the columns of a table, None where the first line is not the header of one."""
    for delimiter in _DELIMITERS:
        cells = next(csv.reader([header], delimiter=delimiter), [])
        if {"class_id", "name"} <= {cell.strip() for cell in cells}:
            return delimiter
    return None


def _listed(path: Path, lines: Sequence[str], num_classes: int) -> tuple[Label, ...]:
    check_list(path, lines)
    for number, line in enumerate(lines, start=1):
        if "\t" in line.strip(" \t"):
            raise ExportError(
                f"{path}: line {number} is not a class name, for it has a tab; give one name a line, or a table whose "
                "first line names its columns class_id and name"
            )
    if len(lines) != num_classes:
        raise ExportError(f"{path}: {len(lines)} labels for {num_classes} classes")
    return tuple(Label(index, line.strip(" \t")) for index, line in enumerate(lines))


def bundled_labels(variant: str, num_classes: int) -> tuple[Label, ...] | None:
    """Return the class names that come with the project for this variant and class count, None where there are none."""
    if variant == DEMO_VARIANT and num_classes == DEMO_CLASSES:
        return read_labels(_DEMO_FILE, num_classes)
    if num_classes == IMAGENET_CLASSES:
        return read_labels(_IMAGENET_FILE, num_classes)
    return None


def numbered_labels(num_classes: int) -> tuple[Label, ...]:
    """Return names that say only the class's number, such as "class_3"."""
    return tuple(Label(index, f"class_{index}") for index in range(num_classes))


def labels_table(labels: tuple[Label, ...]) -> str:
    """Return the text of a model directory's labels file; the synset column only where every class has one.

    Nothing is quoted there: names hold neither tabs nor line ends.
    """
    if all(label.synset for label in labels):
        rows = [f"{label.class_id}\t{label.synset}\t{label.name}" for label in labels]
        return "\n".join(("class_id\tsynset\tname", *rows, ""))
    rows = [f"{label.class_id}\t{label.name}" for label in labels]
    return "\n".join(("class_id\tname", *rows, ""))
