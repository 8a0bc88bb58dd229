"""The pages of the documentation: their blocks of commands and programs, and what is said of who runs these.

A block of `sh` or `python` is run as it stands by `test_commands`, unless the line above it is one of

    <!-- run by PATH -->        that module runs it, which asks for it by `blocks_run_by`
    <!-- not run: REASON -->    nothing here can
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
RUN = ("sh", "python")
"""Languages of what is to be run."""

_BLOCK = re.compile(
    r"(?:^<!-- *(?P<mark>(?:(?!-->).)*?) *-->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
_MARK = re.compile(r"(run by|not run:)\s+(\S.*)", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block; `mark` is the comment on the line above it, if there is one."""

    page: Path
    line: int
    language: str
    text: str
    mark: str | None

    @property
    def place(self) -> str:
        """The page and the line that it begins on."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def run_by(self) -> str | None:
        """What else runs it, as a path in the repository."""
        return self._said("run by")

    @property
    def why_not(self) -> str | None:
        """Why nothing runs it."""
        return self._said("not run:")

    def _said(self, what: str) -> str | None:
        match = _MARK.fullmatch(self.mark or "")
        return match[2] if match and match[1] == what else None


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start("text")), match["language"], match["text"], match["mark"])
        for match in _BLOCK.finditer(text)
    ]


def prose_of(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def sections_of(page: Path) -> list[str]:
    """Return the parts of a page between its headings, each without the heading and without fenced blocks."""
    return re.split(r"^#+ .*$", prose_of(page), flags=re.MULTILINE)


def headings_of(page: Path) -> list[str]:
    """Return the texts of a page's headings."""
    return re.findall(r"^#+ +(.*?) *$", prose_of(page), re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """Return a page's anchors, as they are made of its headings where the repository is shown."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings_of(page)}


def rows_of(page: Path, *columns: str) -> list[tuple[str, ...]]:
    """Return the rows of a page's tables whose first columns have these headings, cut to these columns."""
    found: list[tuple[str, ...]] = []
    header: tuple[str, ...] = ()
    for line in prose_of(page).splitlines():
        cells = tuple(cell.strip() for cell in line.strip("|").split("|")) if line.startswith("|") else ()
        if not cells:
            header = ()
        elif not header:
            header = cells
        elif header[: len(columns)] == columns and set("".join(cells)) != {"-"}:
            found.append(cells[: len(columns)])
    return found


def code_of(cell: str) -> list[str]:
    """Return what a cell of a table has between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def commands_of(block: Block) -> list[list[str]]:
    """Return the words of each of a block's commands, comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
"""All blocks of all pages."""


def blocks_run_by(module: str) -> list[Block]:
    """Return the blocks that a module, given by its file, is to run."""
    return [block for block in BLOCKS if block.run_by == Path(module).resolve().relative_to(ROOT).as_posix()]
