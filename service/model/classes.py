"""Which class a text means, by the labels of the model: of a folder, of a ground truth, or of a question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

from service.errors import StartupError
from service.model.directory import Label
from service.text_files import composed

By: TypeAlias = Literal["any", "id", "name", "synset"]
_SHOWN_CLASSES = 5
"""How many texts that mean no class an error names."""


class UnknownClass(StartupError):
    """A text means no class of the model, or more than one."""

    code = "unknown_class"


class Classes:
    """The classes of a model by their ids, names and synsets; `by` says which of them texts are."""

    def __init__(self, labels: Sequence[Label], *, by: By = "any") -> None:
        self._by = by
        self._count = len(labels)
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
        meanings = self._all_of(text)
        if len(meanings) == 1:
            return meanings[0]
        if meanings:
            raise UnknownClass(
                f"{text!r} may be each of the classes {', '.join(map(str, meanings))}: name them otherwise, "
                "or say with --class-by what they are named by"
            )
        kinds = "id, name or synset" if self._by == "any" else self._by
        raise UnknownClass(f"{text!r} is not the {kinds} of a class of this model")

    def chosen(self, texts: Iterable[str]) -> tuple[int, ...]:
        """Return the classes that texts mean, ascending; each is one class, or several by commas.

        A text that is a label as a whole is that label, commas and all, and one that is an id is that id, whatever
        labels there are. Raises UnknownClass that names each text which means no class, or more than one.
        """
        found: set[int] = set()
        wrong: dict[str, None] = {}
        for text in texts:
            for part in [text] if self._all_of(text) else text.split(","):
                meanings = [int(part)] if self._is_id(part.strip()) else self._all_of(part)
                if len(meanings) == 1:
                    found.update(meanings)
                elif meanings:
                    wrong[f"{part.strip()!r} is the label of the classes {', '.join(map(str, meanings))}"] = None
                else:
                    wrong[f"{part.strip()!r} is no class of this model"] = None
        if wrong:
            more = f"; and {len(wrong) - _SHOWN_CLASSES} more" if len(wrong) > _SHOWN_CLASSES else ""
            raise UnknownClass(
                f"{'; '.join(list(wrong)[:_SHOWN_CLASSES])}{more}. A class is named by its id, 0 to {self._count - 1}, "
                "or by its label, which stands alone where it holds a comma"
            )
        return tuple(sorted(found))

    def _all_of(self, text: str) -> list[int]:
        return sorted(self._meanings.get(composed(text), ()) or self._meanings.get(composed(text.strip()), ()))

    def _is_id(self, text: str) -> bool:
        return text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < self._count
