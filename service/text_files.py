"""Text files that people make (labels, tables, ground truth), read by one rule wherever they are read.

- UTF-8, with or without a byte order mark, or UTF-16 with one, as Windows writes it.
- A line ends with LF, CRLF or CR and with nothing else: other separators that Unicode knows belong to the line.
- Blank lines at the end do not count. In a list, whose lines are counted, a blank line before others is an error; in a
  table, whose rows say what they are about, it is passed over.
- Cells of a table may be in double quotes, as spreadsheets write those that hold the delimiter.
- Texts that look the same are the same: names are compared in Unicode's composed form (NFC), see `composed`.

Every error names the file and, where there is one, the line.
"""

from __future__ import annotations

import codecs
import csv
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from service.errors import StartupError

_LINE_END = re.compile(r"\r\n|\n|\r")
_BLANKS = " \t"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class BadTextFile(StartupError):
    """A text file cannot be read, or is no text; the message names the file and the line."""

    code = "bad_text_file"


def read_lines(path: Path) -> list[str]:
    """Return a file's lines without their line ends, and without blank lines at its end.

    Raises BadTextFile.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadTextFile(f"{path} cannot be read: {error.strerror or error}") from error
    lines = _LINE_END.split(_decoded(path, data))
    while lines and is_blank(lines[-1]):
        lines.pop()
    return lines


def _decoded(path: Path, data: bytes) -> str:
    is_utf16 = data.startswith(_UTF16_MARKS)
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        form = "UTF-16" if is_utf16 else "UTF-8"
        before = data[: error.start]
        line = 1 + len(_LINE_END.findall(before.decode("utf-16" if is_utf16 else "utf-8", "ignore")))
        raise BadTextFile(
            f"{path}: line {line} is not {form} text (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = 1 + len(_LINE_END.findall(text[: text.index("\0")]))
        raise BadTextFile(
            f"{path}: line {line} holds a null character, so this is no UTF-8 text; save the file as UTF-8"
        )
    return text


def read_list(path: Path) -> list[str]:
    """Return the lines of a list, whose places count, without blanks around them.

    Raises BadTextFile, which names a blank line before others.
    """
    lines = read_lines(path)
    check_list(path, lines)
    return [line.strip(_BLANKS) for line in lines]


def check_list(path: Path, lines: Sequence[str]) -> None:
    """Raise BadTextFile where a line of a list is blank."""
    for number, line in enumerate(lines, start=1):
        if is_blank(line):
            raise BadTextFile(f"{path}: line {number} is blank, before others that are counted by their places")


def table_rows(path: Path, lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a table with the numbers of their first lines, from 1; blank lines are passed over.

    Cells are without the blanks around them. Raises BadTextFile where quotes are not closed.
    """
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BadTextFile(f"{path}: line {number} cannot be read as cells in quotes: {error}") from error
        cells = [cell.strip(_BLANKS) for cell in row]
        if any(cells):
            yield number, cells


def is_blank(line: str) -> bool:
    """Tell whether a line holds nothing but spaces and tabs."""
    return not line.strip(_BLANKS)


def composed(text: str) -> str:
    """Return a text in Unicode's composed form, in which names are compared: file systems may decompose theirs."""
    return unicodedata.normalize("NFC", text)
