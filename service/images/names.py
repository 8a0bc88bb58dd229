"""Which files are images by their names, and an account of those that are not taken, so that none is left out silently.

What is left out is of three kinds:

    others       files that may be meant as images, under names that no image has: the exit status tells of them
    companions   files that belong to an image that is taken, whose name they share up to a dot: `7.json` with `7.jpg`
    hidden       names that begin with a dot
"""

from __future__ import annotations

import os.path
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif",
    ".tiff", ".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif",
)  # fmt: skip
"""Names of images end with one of these, in any case: all that the formats go by. Those of HEIC are, whether or not it
is read here: a file that is refused says why."""


@dataclass(slots=True)
class LeftOut:
    """Files, or members of a shard, that were not taken because of their names."""

    others: Counter[str] = field(default_factory=Counter)
    """By suffix."""
    companions: Counter[str] = field(default_factory=Counter)
    """By suffix."""
    hidden: int = 0

    def __bool__(self) -> bool:
        return bool(self.others or self.companions or self.hidden)

    def __add__(self, other: LeftOut) -> LeftOut:
        """Return the account of both."""
        return LeftOut(self.others + other.others, self.companions + other.companions, self.hidden + other.hidden)

    def count(self, names: Iterable[str], taken: Iterable[str]) -> None:
        """Count names of one folder that are not taken, given those that are."""
        stems = {os.path.splitext(name)[0] for name in taken}  # noqa: PTH122  # names of members of shards, too
        for name in names:
            if name.startswith("."):
                self.hidden += 1
            elif any(name[:place] in stems for place, character in enumerate(name) if character == "."):
                self.companions[suffix_of(name)] += 1
            else:
                self.others[suffix_of(name)] += 1

    def describe(self) -> str:
        """Return it as a part of a sentence, such as "3 files by their names (.jxl 2, .txt 1), 1 hidden"."""
        parts = []
        if self.others:
            parts.append(f"{self.others.total()} by their names ({_listed(self.others)})")
        if self.companions:
            parts.append(f"{self.companions.total()} that belong to images ({_listed(self.companions)})")
        if self.hidden:
            parts.append(f"{self.hidden} hidden")
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"others": dict(self.others), "companions": dict(self.companions), "hidden": self.hidden}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> LeftOut:
        """Return what `as_dict` was made of."""
        return cls(Counter(document["others"]), Counter(document["companions"]), document["hidden"])


def is_image_name(name: str) -> bool:
    """Tell whether a name is that of an image."""
    return name.lower().endswith(SUFFIXES)


def suffix_of(name: str) -> str:
    """Return what a name ends with, from its last dot, in small letters; "no suffix" where there is none."""
    return os.path.splitext(name)[1].lower() or "no suffix"  # noqa: PTH122  # names of members of shards, too


def _listed(counts: Counter[str]) -> str:
    return ", ".join(
        f"{suffix} {count}" for suffix, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
