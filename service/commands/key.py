"""`key`: make an API key, and show it and its entry for the settings, once."""

from __future__ import annotations

import argparse
import sys

from service.access.keys import make_key
from service.errors import SettingsError
from service.settings import option_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the name and the role."""
    parser.add_argument("name", metavar="NAME", help="what the log and the metrics call the key")
    parser.add_argument("--admin", action="store_true", help="let the key load and unload models, too")


def run(options: argparse.Namespace) -> int:
    """Print a new key and its entry; raises SettingsError for a name that is none."""
    try:
        key, entry = make_key(options.name, role="admin" if options.admin else "user")
    except ValueError as error:
        raise SettingsError(str(error)) from None
    print(f"key      {key}\nsetting  {option_of('api_keys')} {entry}")
    print("The key is kept nowhere: it goes to whoever is to ask, and the entry into the settings.", file=sys.stderr)
    return 0
