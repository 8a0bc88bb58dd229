"""The documentation of the settings says what is true."""

from __future__ import annotations

import re
from pathlib import Path

from service.settings import markdown_table

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_table_of_settings_is_the_settings_own() -> None:
    match = re.search(r"<!-- settings -->\n(.*?)<!-- /settings -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    assert match[1] == markdown_table()
