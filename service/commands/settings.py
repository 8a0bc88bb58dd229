"""`settings`: print every setting with its value, and what differs for single models; or the documentation's table."""

from __future__ import annotations

import argparse

from service.commands.options import settings_from
from service.errors import RepositoryError
from service.model.directory import find_models
from service.settings import OF_ONE_MODEL, Settings, add_options, markdown_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every setting."""
    add_options(parser)
    parser.add_argument("--markdown", action="store_true", help="print the table of all settings instead")


def run(options: argparse.Namespace) -> int:
    """Print the settings; raises SettingsError where one is wrong."""
    if options.markdown:
        print(markdown_table(), end="")
        return 0
    settings = settings_from(options)
    values = settings.model_dump(mode="json")
    for name, value in values.items():
        print(f"{name} = {value}")
    for model in _models(settings):
        of_model = settings.of_model(model).model_dump(mode="json", include=set(OF_ONE_MODEL))
        for name in OF_ONE_MODEL:
            if of_model[name] != values[name]:
                print(f"models.{model}.{name} = {of_model[name]}")
    return 0


def _models(settings: Settings) -> list[str]:
    """Return the models that may have settings of their own: in the file, or in what is here of the repository."""
    try:
        held = find_models(settings.local_repository)
    except RepositoryError:
        held = {}
    return list(dict.fromkeys((*settings.model_names, *settings.models_with_tables, *held)))
