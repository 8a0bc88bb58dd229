"""`settings`: print every setting with its value, or the table of the documentation."""

from __future__ import annotations

import argparse

from service.commands.options import settings_from
from service.settings import add_options, markdown_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every setting."""
    add_options(parser)
    parser.add_argument("--markdown", action="store_true", help="print the table of all settings instead")


def run(options: argparse.Namespace) -> int:
    """Print the settings; raises SettingsError where one is wrong."""
    if options.markdown:
        print(markdown_table(), end="")
        return 0
    for name, value in settings_from(options).model_dump(mode="json").items():
        print(f"{name} = {value}")
    return 0
