"""What two JSON documents of one kind have in common, whatever their values."""

from __future__ import annotations

from typing import Any


def keys(value: Any) -> Any:
    """All keys of a JSON value, at every depth; of a list, those of any of its elements."""
    if isinstance(value, dict):
        return frozenset((key, keys(each)) for key, each in value.items())
    if isinstance(value, list):
        return ("list", frozenset(map(keys, value)))
    return None
