"""Class names for a model: read from a user's file, or bundled with the project.

`imagenet1k.tsv` beside this module holds the ImageNet-1k classes; the demo model's lie with its weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import models.demo
from export.errors import ExportError
from service.repository import Label, read_labels

IMAGENET_CLASSES: Final = 1000
DEMO_VARIANT: Final = "dat_demo"
DEMO_CLASSES: Final = 10

_IMAGENET_FILE = Path(__file__).with_name("imagenet1k.tsv")
_DEMO_FILE = Path(models.demo.__file__).with_name("labels.tsv")


def labels_from_file(path: Path, num_classes: int) -> tuple[Label, ...]:
    """Read class names from a table (a header with `class_id` and `name`) or from plain text, one name a line.

    Raises ExportError or RepositoryError, naming the file, unless it holds exactly `num_classes` names.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ExportError(f"{path}: the labels cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"{path}: the labels are not UTF-8 text: {error}") from error
    if lines and "class_id" in lines[0].split("\t"):
        return read_labels(path, num_classes)
    for number, name in enumerate(lines, start=1):
        if not name.strip() or "\t" in name:
            raise ExportError(f"{path}: line {number} is not a class name; give one name a line, or a table")
    if len(lines) != num_classes:
        raise ExportError(f"{path}: {len(lines)} labels for {num_classes} classes")
    return tuple(Label(index, name.strip()) for index, name in enumerate(lines))


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
    """Return the text of a model directory's labels file; the synset column only where every class has one."""
    if all(label.synset for label in labels):
        rows = [f"{label.class_id}\t{label.synset}\t{label.name}" for label in labels]
        return "\n".join(("class_id\tsynset\tname", *rows, ""))
    rows = [f"{label.class_id}\t{label.name}" for label in labels]
    return "\n".join(("class_id\tname", *rows, ""))
