from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from service.evaluation.ground_truth import BadGroundTruth, Known, by_file, by_folders
from service.model.classes import Classes, UnknownClass
from service.model.directory import Label

LABELS = [Label(number, f"name {number}", f"n0000000{number}") for number in range(4)]
CLASSES = Classes(LABELS)
FILES = ["images/b/ILSVRC_2.JPEG", "images/a/ILSVRC_3.JPEG", "images/ILSVRC_1.JPEG"]


def read(tmp_path: Path, text: str, **options: object) -> dict[str, int]:
    """The classes of the images by their names."""
    truth = tmp_path / "truth.txt"
    truth.write_text(text, encoding="utf-8")
    known = by_file(truth, "images", FILES, CLASSES, **options)  # type: ignore[arg-type]
    return {Path(each.path or f"missing {each.name}").name: each.class_id for each in known}


@pytest.mark.parametrize(
    "text",
    [
        "ILSVRC_1.JPEG,2\nb/ILSVRC_2.JPEG,0\nILSVRC_3.JPEG,1\n",
        "filename,class\nILSVRC_1.JPEG,n00000002\nILSVRC_2.JPEG,n00000000\nILSVRC_3,n00000001",
        "\ufefffilename\tclass\r\nILSVRC_1.JPEG\tname 2\r\nILSVRC_2.JPEG\tname 0\r\n\r\nILSVRC_3.JPEG\tname 1\r\n",
        "ILSVRC_1.JPEG 2\nILSVRC_2.JPEG 0\nILSVRC_3.JPEG 1\n",
        '"ILSVRC_1.JPEG","name 2"\nILSVRC_2,name 0\nILSVRC_3,1\n',
        "ImageId,PredictionString\nILSVRC_1,n00000002 1 2 3 4 n00000002 5 6 7 8 \nILSVRC_2,n00000000 1 2 3 4 \n"
        "ILSVRC_3,n00000001 9 9 9 9 \n",
    ],
    ids=["ids", "synsets", "names-and-tabs", "spaces", "quotes", "kaggle"],
)
def test_images_are_named_with_their_classes(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == {"ILSVRC_1.JPEG": 2, "ILSVRC_2.JPEG": 0, "ILSVRC_3.JPEG": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_files_of_other_systems_are_read(tmp_path: Path, encoding: str, end: str) -> None:
    for name, text in [
        ("named", "filename,class\nILSVRC_1.JPEG,2\n\nb\\ILSVRC_2.JPEG,0\n\n"),
        ("numbers", "2\n0\n1\n\n"),
    ]:
        (tmp_path / name).write_bytes(text.replace("\n", end).encode(encoding))
    named = by_file(tmp_path / "named", "images", FILES, CLASSES)
    assert [(known.path, known.class_id) for known in named] == [(FILES[2], 2), (FILES[0], 0)]
    numbers = by_file(tmp_path / "numbers", "images", FILES, CLASSES, counted_from=0)
    assert [known.class_id for known in numbers] == [2, 0, 1]


def test_names_hold_commas_blanks_and_separators(tmp_path: Path) -> None:
    names = ["a, b.png", "c d.png", "e\u2028f.png", 'g"h.png', "i;j.png"]
    files = [f"images/{name}" for name in names]
    truth = tmp_path / "truth.csv"
    for delimiter in "\t,; ":
        cells = ['"' + name.replace('"', '""') + '"' for name in names]
        truth.write_text("".join(f"{cell}{delimiter}{number % 4}\n" for number, cell in enumerate(cells)))
        known = by_file(truth, "images", files, CLASSES)
        assert [(each.path, each.class_id) for each in known] == [
            (file, number % 4) for number, file in enumerate(files)
        ]
    truth.write_text("".join(f"{name}\t{number % 4}\n" for number, name in enumerate(names)))
    assert [each.path for each in by_file(truth, "images", files, CLASSES)] == files


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_names_match_in_either_of_unicodes_forms(tmp_path: Path, form: str, other: str) -> None:
    written, found = (unicodedata.normalize(each, "Éléphant") for each in (form, other))
    classes = Classes([Label(0, written)])
    assert by_folders("f", [f"f/{found}/x.png"], classes) == [Known(f"f/{found}/x.png", f"f/{found}/x.png", 0)]
    truth = tmp_path / "truth.csv"
    truth.write_text(f"{written}.png,{found}\n", encoding="utf-8")
    assert by_file(truth, "f", [f"f/{found}.png"], classes) == [Known(f"{written}.png", f"f/{found}.png", 0)]


def test_an_unknown_class_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UnknownClass, match=r"truth\.txt: line 3: 'dog' is not the id"):
        read(tmp_path, "filename,class\nILSVRC_1.JPEG,2\nILSVRC_2.JPEG,dog\n")


def test_an_image_that_is_not_there_is_kept_without_a_file(tmp_path: Path) -> None:
    assert read(tmp_path, "ILSVRC_1.JPEG,2\nother.JPEG,1\n") == {"ILSVRC_1.JPEG": 2, "missing other.JPEG": 1}


def test_numbers_are_for_the_images_by_name_and_counted_as_told(tmp_path: Path) -> None:
    assert read(tmp_path, "2\n0\n1\n", counted_from=0) == {"ILSVRC_1.JPEG": 2, "ILSVRC_2.JPEG": 0, "ILSVRC_3.JPEG": 1}
    assert read(tmp_path, "3\n1\n2\n", counted_from=1) == {"ILSVRC_1.JPEG": 2, "ILSVRC_2.JPEG": 0, "ILSVRC_3.JPEG": 1}
    order = tmp_path / "order.txt"
    order.write_text("n00000003\nn00000002\nn00000000\nn00000001\n")
    assert read(tmp_path, "2\n3\n4\n", synset_order=order) == {
        "ILSVRC_1.JPEG": 2, "ILSVRC_2.JPEG": 0, "ILSVRC_3.JPEG": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("1\n2\n3\n", {}, "may be counted in several ways"),
        ("1\n2\n", {"counted_from": 0}, "2 lines for 3 images"),
        ("a,1\n", {"counted_from": 0}, "are for numbers"),
        ("ILSVRC_1,1,2\n", {}, "line 1 has 3 columns"),
        ("filename,class\nILSVRC_1\n", {}, "line 2 has 1 columns"),
        ("\n\n", {}, "is empty"),
        ("ImageId,PredictionString\nILSVRC_1,n00000002 1 2 3 4 n00000001 5 6 7 8\n", {}, "line 2 has 2 classes"),
        ("ImageId,PredictionString\nILSVRC_1,\n", {}, "line 2 has 0 classes"),
        ("1\n\n2\n3\n", {"counted_from": 0}, r"truth\.txt: line 2 is blank"),
        ('ILSVRC_1.JPEG,2\n"ILSVRC_2,1\n', {}, r"truth\.txt: line 2 cannot be read as cells in quotes"),
    ],
)
def test_what_cannot_be_understood_is_named(tmp_path: Path, text: str, options: dict[str, object], reason: str) -> None:
    with pytest.raises(BadGroundTruth, match=reason):
        read(tmp_path, text, **options)


def test_numbers_beyond_the_order_of_synsets_are_an_error(tmp_path: Path) -> None:
    order = tmp_path / "order.txt"
    order.write_text("n00000003\nn00000002\n")
    with pytest.raises(BadGroundTruth, match=r"numbers from 1 to 3, but .* for 1 to 2"):
        read(tmp_path, "1\n2\n3\n", synset_order=order)
    with pytest.raises(UnknownClass, match="'-1'"):
        read(tmp_path, "0\n1\n2\n", counted_from=1)


def test_a_name_that_several_files_have_is_an_error(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("same.png,1\n")
    with pytest.raises(BadGroundTruth, match=r"'same\.png' may be each of"):
        by_file(truth, "images", ["images/a/same.png", "images/b/same.png"], CLASSES)
    truth.write_text("a/same.png,1\n")
    assert by_file(truth, "images", ["images/a/same.png", "images/b/same.png"], CLASSES) == [
        Known("a/same.png", "images/a/same.png", 1)
    ]


def test_folders_name_the_classes_of_all_below_them() -> None:
    files = ["f/name 1/x.png", "f/n00000002/deep/y.png", "f/3/z.png"]
    assert [known.class_id for known in by_folders("f", files, CLASSES)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("files", "reason"),
    [(["f/1/x.png", "f/loose.png"], "1 images lie in no folder"), (["f/1/x.png", "f/dog/x.png"], "1 folders .*'dog'")],
)
def test_images_without_a_class_are_an_error(files: list[str], reason: str) -> None:
    with pytest.raises(BadGroundTruth, match=reason):
        by_folders("f", files, CLASSES)
