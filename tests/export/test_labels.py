"""Class names from users' files and from the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.errors import ExportError
from export.labels import bundled_labels, labels_from_file, labels_table, numbered_labels
from service.errors import RepositoryError
from service.model.directory import Label, read_labels


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_plain_text_is_one_name_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "names.txt", "cat\ndog, hound\nÉléphant\n")
    assert labels_from_file(path, 3) == (Label(0, "cat"), Label(1, "dog, hound"), Label(2, "Éléphant"))


def test_table_is_read_by_its_header(tmp_path: Path) -> None:
    path = written(tmp_path / "names.tsv", "name\tclass_id\tsynset\ncat\t0\tn1\ndog\t1\tn2\n")
    assert labels_from_file(path, 2) == (Label(0, "cat", "n1"), Label(1, "dog", "n2"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cat\n", r"\b1 labels.*\b2 classes"),
        ("cat\n\ndog\n", r"names\.txt: line 2"),
        ("cat\n\n", r"\b1 labels.*\b2 classes"),
        ("class_id\tname\n0\tcat\n1\t \n", "class 1, ''"),
        ('class_id\tname\n0\tcat\n1\t"dog\nhound"\n', r"class 1, 'dog\\nhound'"),
        ('class_id,name\n0,cat\n1,"dog\n', r"names\.txt: line 3"),
        ("cat\ta\ndog\tb\n", "line 1"),
        ("", r"\b0 labels.*\b2 classes"),
    ],
)
def test_unusable_text_is_refused_with_its_reason(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=reason):
        labels_from_file(written(tmp_path / "names.txt", text), 2)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("after", ["", "\n", "\n\n \n"])
@pytest.mark.parametrize("text", ["zero\nÉins\n two, 2 ", "class_id\tname\n0\tzero\n1\tÉins\n2\ttwo, 2"])
def test_marks_line_ends_and_blank_last_lines_are_no_part_of_names(
    text: str, after: str, end: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes((text + after).replace("\n", end).encode(encoding))
    assert [label.name for label in labels_from_file(path, 3)] == ["zero", "Éins", "two, 2"]


def test_tables_of_spreadsheets_are_read(tmp_path: Path) -> None:
    for delimiter in "\t,;":
        rows = [["class_id", "name"], ["0", '"dog, hound; ""big"""'], ["", ""], ["1", "5' plate\""]]
        path = written(tmp_path / "names.csv", "\n".join(delimiter.join(row) for row in rows))
        path.write_text(path.read_text().replace(f"\n{delimiter}\n", "\n\n"))
        assert labels_from_file(path, 2) == (Label(0, 'dog, hound; "big"'), Label(1, "5' plate\""))


SEPARATORS = (
    "vertical\x0btab",
    "form\x0cfeed",
    "next\x85line",
    "line\u2028separator",
    "paragraph\u2029separator",
    "\x1c4",
)


def test_separators_that_end_no_line_stay_in_names_up_to_the_service(tmp_path: Path) -> None:
    path = written(tmp_path / "names.txt", "\n".join(SEPARATORS))
    labels = labels_from_file(path, len(SEPARATORS))
    assert tuple(label.name for label in labels) == SEPARATORS
    assert read_labels(written(tmp_path / "labels.tsv", labels_table(labels)), len(SEPARATORS)) == labels


def test_names_come_out_composed(tmp_path: Path) -> None:
    assert labels_from_file(written(tmp_path / "names.txt", "E\u0301le\u0301phant\n"), 1) == (Label(0, "Éléphant"),)


def test_text_in_another_encoding_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("cat\r\ndög\r\n".encode("latin-1"))
    with pytest.raises(ExportError, match=r"names\.txt: line 2 .*0xf6"):
        labels_from_file(path, 2)


def test_table_out_of_order_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "names.tsv", "class_id\tname\n1\tcat\n0\tdog\n")
    with pytest.raises(RepositoryError, match=r"line 2\b.*class 0"):
        labels_from_file(path, 2)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.txt"):
        labels_from_file(tmp_path / "none.txt", 2)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ExportError, match=r"image\.png: line 1 .*UTF-8"):
        labels_from_file(tmp_path / "image.png", 2)


def test_thousand_classes_are_those_of_imagenet() -> None:
    labels = bundled_labels("dat_tiny", 1000)
    assert labels is not None
    assert labels[0] == Label(0, "tench, Tinca tinca", "n01440764")
    assert len(labels) == 1000


def test_demo_classes_are_the_digits() -> None:
    labels = bundled_labels("dat_demo", 10)
    assert labels is not None
    assert [label.name for label in labels] == list("0123456789")


def test_other_class_counts_have_no_names() -> None:
    assert bundled_labels("dat_tiny", 37) is None
    assert numbered_labels(2) == (Label(0, "class_0"), Label(1, "class_1"))


@pytest.mark.parametrize("labels", [(Label(0, "cat", "n1"), Label(1, "dog", "n2")), (Label(0, "cat"), Label(1, "dog"))])
def test_table_that_is_written_is_the_one_that_the_service_reads(labels: tuple[Label, ...], tmp_path: Path) -> None:
    path = written(tmp_path / "labels.tsv", labels_table(labels))
    assert read_labels(path, 2) == labels
