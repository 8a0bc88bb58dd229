from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from PIL import Image

from service.commands.files import find_files
from service.images.files import read_image
from service.images.formats import FORMATS
from service.images.names import SUFFIXES, LeftOut
from service.images.preprocessing import prepare_pillow
from service.predictors.types import Fault


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def names(root: Path, files: list[str]) -> list[str]:
    return [Path(file).relative_to(root).as_posix() for file in files]


def test_folders_are_searched_for_images_to_any_depth_and_in_order(tmp_path: Path) -> None:
    write(tmp_path, "b.PNG", "a/z.jpeg", "a/deep/er/x.webp", "notes.txt", ".hidden/c.png", "._b.png")
    assert names(tmp_path, find_files([str(tmp_path)]).files) == ["b.PNG", "a/z.jpeg", "a/deep/er/x.webp"]


def test_what_is_left_out_of_folders_is_counted(tmp_path: Path) -> None:
    write(
        tmp_path, "a.jpg", "b.JFIF", "c.jpe", "d.apng", "a.txt", "a.jpg.json", "a.b.xml", "notes.TXT", "e.jxl",
        "README", "deep/f.jxl", "deep/f.txt", ".DS_Store", ".git/config", ".git/x.png", "out/part.parquet",
        "out/_run.json",
    )  # fmt: skip
    found = find_files([str(tmp_path)], without=str(tmp_path / "out"))
    assert names(tmp_path, found.files) == ["a.jpg", "b.JFIF", "c.jpe", "d.apng"]
    assert found.left_out == LeftOut(
        others=Counter({".jxl": 2, ".txt": 2, "no suffix": 1}),
        companions=Counter({".txt": 1, ".json": 1, ".xml": 1}),
        hidden=2,
    )
    assert found.left_out.describe() == (
        "5 by their names (.jxl 2, .txt 2, no suffix 1), 3 that belong to images (.json 1, .txt 1, .xml 1), 2 hidden"
    )
    assert LeftOut.from_dict(found.left_out.as_dict()) == found.left_out


def test_all_names_of_the_formats_are_those_of_images() -> None:
    prepare_pillow()
    registered = {suffix for suffix, name in Image.EXTENSION.items() if name in (*FORMATS, "HEIF")}
    assert registered <= set(SUFFIXES)


def test_files_named_themselves_are_taken_whatever_their_name_and_once(tmp_path: Path) -> None:
    write(tmp_path, "notes.txt", "a.png")
    given = [str(tmp_path / "notes.txt"), str(tmp_path / "a.png"), str(tmp_path)]
    assert names(tmp_path, find_files(given).files) == ["notes.txt", "a.png"]


def test_patterns_stand_for_files_and_folders(tmp_path: Path) -> None:
    write(tmp_path, "a1.png", "a2.txt", "b.png", "a3/c.png", "d/e/f.png")
    assert names(tmp_path, find_files([str(tmp_path / "a*")]).files) == ["a1.png", "a2.txt", "a3/c.png"]
    assert names(tmp_path, find_files([str(tmp_path / "**/f.png")]).files) == ["d/e/f.png"]


def test_a_file_whose_name_looks_like_a_pattern_is_the_file(tmp_path: Path) -> None:
    write(tmp_path, "a[1].png", "a1.png")
    assert names(tmp_path, find_files([str(tmp_path / "a[1].png")]).files) == ["a[1].png"]


def test_what_is_not_there_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    given = [str(tmp_path / "none.png"), str(tmp_path / "*.png"), str(tmp_path / "empty")]
    found = find_files(given)
    assert found.files == []
    assert {Path(path).name: fault.code for path, fault in found.faults.items()} == {
        "none.png": "not_found", "*.png": "not_found", "empty": "no_images",
    }  # fmt: skip


def test_linked_folders_are_followed_and_a_circle_ends(tmp_path: Path) -> None:
    write(tmp_path, "set/a.png", "elsewhere/b.png")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "circle").symlink_to(tmp_path / "set")
    assert names(tmp_path, find_files([str(tmp_path / "set")]).files) == ["set/a.png", "set/link/b.png"]


def test_names_that_are_no_text_are_found_and_read(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"data")
    (found,) = find_files([str(tmp_path)]).files
    assert read_image(found, 10) == b"data"


def test_a_file_that_is_too_large_or_cannot_be_read_has_a_fault(tmp_path: Path) -> None:
    write(tmp_path, "12345.png")
    assert read_image(str(tmp_path / "12345.png"), 9) == b"12345.png"
    large = read_image(str(tmp_path / "12345.png"), 8)
    assert isinstance(large, Fault)
    assert large.code == "too_large"
    assert read_image(str(tmp_path / "gone.png"), 8) == Fault("unreadable", "No such file or directory.")
    assert read_image(str(tmp_path), 8) == Fault("unreadable", "Is a directory.")
