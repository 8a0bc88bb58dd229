"""The pages of the documentation: their blocks of commands and programs, and what is said of who runs these.

A block of `sh` or `python` is run as it stands by `test_commands`, unless the line above it is one of

    <!-- run by PATH -->        that test or script runs it, and names the page
    <!-- not run: REASON -->    nothing here can
"""

from __future__ import annotations

import re
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


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
