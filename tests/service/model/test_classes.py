from __future__ import annotations

import pytest

from service.model.classes import Classes, UnknownClass
from service.model.directory import Label

LABELS = [
    Label(0, "tench, Tinca tinca", "n01440764"),
    Label(1, "crane", "n02012849"),
    Label(2, "crane", "n03126707"),
    Label(3, "4", "n00000003"),
    Label(4, "four", "n00000004"),
]


@pytest.mark.parametrize(
    ("text", "class_id"), [("0", 0), (" n02012849 ", 1), ("tench, Tinca tinca", 0), ("four", 4), ("2", 2)]
)
def test_a_class_is_found_by_id_synset_or_name(text: str, class_id: int) -> None:
    assert Classes(LABELS).find(text) == class_id


@pytest.mark.parametrize("text", ["crane", "4"])
def test_what_may_be_several_classes_is_refused(text: str) -> None:
    with pytest.raises(UnknownClass, match="--class-by"):
        Classes(LABELS).find(text)


def test_saying_what_classes_are_named_by_settles_it() -> None:
    assert Classes(LABELS, by="id").find("4") == 4
    assert Classes(LABELS, by="name").find("4") == 3
    with pytest.raises(UnknownClass, match="not the synset"):
        Classes(LABELS, by="synset").find("4")


@pytest.mark.parametrize("text", ["5", "-1", "n09999999", "", "Four"])
def test_what_names_no_class_is_refused(text: str) -> None:
    with pytest.raises(UnknownClass, match="not the id, name or synset"):
        Classes(LABELS).find(text)


@pytest.mark.parametrize(
    ("texts", "classes"),
    [
        (["0"], (0,)),
        (["3,1", " 2 ", "1"], (1, 2, 3)),
        (["tench, Tinca tinca"], (0,)),
        (["four,0", "n03126707"], (0, 2, 4)),
        (["4"], (4,)),  # an id, though class 3 is called so
    ],
)
def test_chosen_classes_are_ids_labels_or_synsets_alone_or_by_commas(
    texts: list[str], classes: tuple[int, ...]
) -> None:
    assert Classes(LABELS).chosen(texts) == classes


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            ["dog,cat", "0"],
            "'dog' is no class of this model; 'cat' is no class of this model. A class is named by its id",
        ),
        (["crane"], "'crane' is the label of the classes 1, 2. .* 0 to 4"),
        (["0,tench, Tinca tinca"], "'tench' is no class .*stands alone where it holds a comma"),
        (["5"], "'5' is no class"),
        ([""], "'' is no class"),
        ([",".join(f"x{number}" for number in range(9))], "'x4' is no class of this model; and 4 more"),
    ],
)
def test_what_is_no_class_is_named_each(texts: list[str], said: str) -> None:
    with pytest.raises(UnknownClass, match=said):
        Classes(LABELS).chosen(texts)
