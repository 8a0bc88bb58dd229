"""Which class a text means: the text of a folder's name or of a ground truth, by the labels of the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, TypeAlias

from service.errors import StartupError
from service.model.directory import Label
from service.text_files import composed

By: TypeAlias = Literal["any", "id", "name", "synset"]


class UnknownClass(StartupError):
    """A text means no class of the model, or more than one."""

    code = "unknown_class"


class Classes:
    """The classes of a model by their ids, names and synsets; `by` says which of them texts are."""

    def __init__(self, labels: Sequence[Label], *, by: By = "any") -> None:
        self._by = by
        self._meanings: defaultdict[str, set[int]] = defaultdict(set)
        for label in labels:
            if by in ("any", "id"):
                self._meanings[str(label.class_id)].add(label.class_id)
            if by in ("any", "name"):
                self._meanings[composed(label.name)].add(label.class_id)
            if by in ("any", "synset") and label.synset is not None:
                self._meanings[label.synset].add(label.class_id)

    def find(self, text: str) -> int:
        """Return the class that a text means, whichever of Unicode's forms it has.

        Raises UnknownClass where that is none, or more than one.
        """
        meanings = sorted(self._meanings.get(composed(text), ()) or self._meanings.get(composed(text.strip()), ()))
        if len(meanings) == 1:
            return meanings[0]
        if meanings:
            raise UnknownClass(
                f"{text!r} may be each of the classes {', '.join(map(str, meanings))}: name them otherwise, "
                "or say with --class-by what they are named by"
            )
        kinds = "id, name or synset" if self._by == "any" else self._by
        raise UnknownClass(f"{text!r} is not the {kinds} of a class of this model")
