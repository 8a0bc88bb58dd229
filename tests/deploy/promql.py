"""What a PromQL expression asks for: its selectors, and the labels that it groups and joins by.

No parser: promtool says whether an expression is valid, and this only reads valid ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^\]]*\]|[A-Za-z_:][\w:]*|=~|!~|!=|==|<=|>=|\d[\w.]*|\S')
_NAME = re.compile(r"[A-Za-z_:][\w:]*")
_LABEL_LISTS = ("by", "without", "on", "ignoring", "group_left", "group_right")
_WORDS = ("and", "or", "unless", "bool", "offset", "inf", "nan")


@dataclass(frozen=True)
class Matcher:
    """One condition on a label."""

    label: str
    operator: str
    value: str

    def alternatives(self) -> list[str]:
        """The values that it names, of a regular expression those between bars."""
        return self.value.split("|") if self.operator in ("=~", "!~") else [self.value]


@dataclass(frozen=True)
class Selector:
    """A metric that is read, and the conditions on its labels."""

    metric: str
    matchers: tuple[Matcher, ...] = ()


@dataclass(frozen=True)
class Query:
    """What one expression reads."""

    selectors: tuple[Selector, ...]
    grouping: frozenset[str]

    @property
    def metrics(self) -> set[str]:
        """The names of what it reads."""
        return {selector.metric for selector in self.selectors}


def read(expression: str) -> Query:
    """Return what an expression reads."""
    tokens = _TOKEN.findall(expression)
    selectors, grouping = [], set()
    at = 0
    while at < len(tokens):
        token, following = tokens[at], tokens[at + 1] if at + 1 < len(tokens) else ""
        at += 1
        if not _NAME.fullmatch(token) or token in _WORDS:
            continue
        if token in _LABEL_LISTS:
            if following == "(":
                end = tokens.index(")", at)
                grouping.update(label for label in tokens[at + 1 : end] if label != ",")
                at = end + 1
        elif following == "{":
            end = tokens.index("}", at)
            selectors.append(Selector(token, tuple(_matchers(tokens[at + 1 : end]))))
            at = end + 1
        elif following != "(" and following not in _LABEL_LISTS[:2]:
            selectors.append(Selector(token))
    return Query(tuple(selectors), frozenset(grouping))


def _matchers(tokens: list[str]) -> Iterator[Matcher]:
    parts = [token for token in tokens if token != ","]
    for label, operator, value in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        yield Matcher(label, operator, value[1:-1])
