"""Reads a Dockerfile and a .dockerignore as far as the tests ask."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath


@dataclass
class Stage:
    """One stage: what it stands on, and its instructions as (word, the rest of the line)."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for each, rest in self.instructions if each == word]


def read_stages(file: Path) -> dict[str, Stage]:
    """Return the stages by name, in their order."""
    stages: dict[str, Stage] = {}
    stage = Stage("", "")
    for word, rest in _instructions(file.read_text()):
        if word == "FROM":
            base, _, name = rest.split()
            stage = stages[name] = Stage(name, base)
        else:
            stage.instructions.append((word, rest))
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """Return a stage and those that it stands on, the lowest first."""
    chain: list[Stage] = []
    while name in stages:
        chain.insert(0, stages[name])
        name = stages[name].base
    return chain


def copied_from_context(stage: Stage) -> Iterator[str]:
    """Return what a stage copies from the build's context."""
    for rest in stage.all("COPY"):
        words = shlex.split(rest)
        if not any(word.startswith("--from") for word in words):
            yield from words[:-1]


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), " ".join(rest.split())


def is_ignored(patterns: Sequence[str], path: str) -> bool:
    """Whether a .dockerignore's patterns keep a file out: the last one that matches it, or a folder of it, decides."""
    parts = PurePosixPath(path).parts
    itself_and_folders = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    ignored = False
    for pattern in patterns:
        expression = _expression(pattern.removeprefix("!"))
        if any(expression.fullmatch(each) for each in itself_and_folders):
            ignored = not pattern.startswith("!")
    return ignored


def read_ignored(file: Path) -> list[str]:
    """Return a .dockerignore's patterns."""
    lines = (line.strip() for line in file.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _expression(pattern: str) -> re.Pattern[str]:
    parts = (re.escape(part).replace(r"\*", "[^/]*") for part in pattern.replace("**/", "\0").split("\0"))
    return re.compile("(?:.*/)?".join(parts))
