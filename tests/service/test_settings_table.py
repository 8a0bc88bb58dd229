"""The documentation of the settings says what is true."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.__main__ import main
from service.settings import markdown_table

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_table_of_settings_is_the_settings_own(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- settings -->\n")
    assert rest.partition("<!-- /settings -->")[0] == markdown_table()
    assert main(["settings", "--markdown"]) == 0
    assert capsys.readouterr().out == markdown_table()
