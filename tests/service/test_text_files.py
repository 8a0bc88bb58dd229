from __future__ import annotations

from pathlib import Path

import pytest

from service.text_files import BadTextFile, read_lines, read_list, table_rows


def lines_of(tmp_path: Path, data: bytes) -> list[str]:
    (tmp_path / "text").write_bytes(data)
    return read_lines(tmp_path / "text")


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb\xbfa\r\nb", ["a", "b"]),
        ("a\r\nb\r\n\r\n".encode("utf-16"), ["a", "b"]),
        ("\ufeffa\nb".encode("utf-16-be"), ["a", "b"]),
        (b"a\rb\r", ["a", "b"]),
        (b"a\n\nb\n \t\n\n", ["a", "", "b"]),
        ("a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g".encode(), ["a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"]),
        (b"\n\n", []),
    ],
)
def test_lines_end_where_systems_end_them(tmp_path: Path, data: bytes, lines: list[str]) -> None:
    assert lines_of(tmp_path, data) == lines


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a\r\nb\xe9\n", "line 2 .*0xe9"),
        ("a\nb\n".encode("utf-16-le"), "line 1 .*null"),
        (b"\xff\xfea", "line 1 .*UTF-16"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(BadTextFile, match=f"{tmp_path}/text: {reason}"):
        lines_of(tmp_path, data)


def test_a_blank_line_within_a_list_is_an_error(tmp_path: Path) -> None:
    assert lines_of(tmp_path, b" a \nb\n\n") == [" a ", "b"]
    assert read_list(tmp_path / "text") == ["a", "b"]
    (tmp_path / "text").write_bytes(b"a\n \nb\n")
    with pytest.raises(BadTextFile, match=f"{tmp_path}/text: line 2"):
        read_list(tmp_path / "text")


def test_rows_are_numbered_by_their_lines() -> None:
    lines = ["a,b", "", '"c,', 'd",e', " f , g"]
    assert list(table_rows(Path("t"), lines, ",")) == [(1, ["a", "b"]), (3, ["c,\nd", "e"]), (5, ["f", "g"])]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadTextFile, match=f"{tmp_path}/absent"):
        read_lines(tmp_path / "absent")
