"""Settings as TOML, the form that `service.settings_file` reads.

The standard library reads TOML and does not write it. What settings can be is little of it: numbers, texts, truth
values, lists of these, and tables of texts; that is written here, and anything else refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from service.errors import SettingsError
from service.settings_file import MODELS_TABLE

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def render(values: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]], *, comment: Sequence[str] = ()) -> str:
    """Return the text of a settings file: a comment of some lines, values for all models, tables for one each.

    Raises SettingsError that names a value that cannot be written.
    """
    lines = [f"# {line}".rstrip() for line in comment]
    lines += ["", *_pairs(values)] if values else []
    for name, table in tables.items():
        lines += ["", f"[{MODELS_TABLE}.{_key(name)}]", *_pairs(table)]
    return "\n".join(lines) + "\n"


def _pairs(values: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in values.items():
        try:
            found.append(f"{_key(name)} = {_value(value)}")
        except (TypeError, UnicodeEncodeError) as error:
            raise SettingsError(f"{name}: {value!r} cannot be written to a settings file") from error
    return found


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            return _text(value)
        case Mapping():
            return "{" + ", ".join(f"{_key(str(name))} = {_value(each)}" for name, each in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_value, value)) + "]"
        case _:
            raise TypeError(type(value).__name__)


def _text(text: str) -> str:
    """Return a basic string: as in JSON, but that TOML escapes one character more and knows no surrogates."""
    text.encode()
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
