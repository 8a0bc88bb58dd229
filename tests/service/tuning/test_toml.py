"""What is written is read back the same."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import SettingsError
from service.tuning.toml import render

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
PLAIN = st.one_of(
    st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False), TEXTS, st.lists(TEXTS, max_size=3),
    st.lists(st.integers(1, 99), max_size=3).map(tuple), st.dictionaries(TEXTS, TEXTS, max_size=3),
)  # fmt: skip
VALUES = st.dictionaries(TEXTS.filter(lambda name: name != "models"), PLAIN, max_size=4)


def as_read(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@given(VALUES, st.dictionaries(TEXTS, VALUES, max_size=3))
def test_any_settings_are_read_back(values: dict[str, Any], tables: dict[str, dict[str, Any]]) -> None:
    read = tomllib.loads(render(values, tables, comment=["said of it"]))
    assert read.pop("models", {}) == {
        name: {key: as_read(value) for key, value in table.items()} for name, table in tables.items()
    }
    assert read == {name: as_read(value) for name, value in values.items()}


@pytest.mark.parametrize("value", ["\udcff", Path("x"), None, [object()]])
def test_what_cannot_be_written_is_refused(value: object) -> None:
    with pytest.raises(SettingsError, match="root_path"):
        render({"root_path": value}, {})
