"""The commands of `python -m service`: each a module that is imported when it is asked for, and only then.

A command's module has two functions: `add_arguments(parser)` and `run(options)`, which returns the exit status.

Imports: `access`, `bulk`, `drift`, `engine`, `errors`, `evaluation`, `grpc`, `http`, `images`, `model`, `predictors`,
`processes`, `samples`, `serving`, `settings`, `telemetry`, `text_files`, `tuning`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib import import_module
from typing import Protocol, cast

COMMANDS: Mapping[str, str] = {
    "serve": "serve the models (the default command)",
    "check": "load and warm the models, and say what would be served",
    "tune": "find the fastest settings for this machine by measuring, and write them to a settings file",
    "health": "ask the service that runs with these settings whether it is ready",
    "models": "list the models of a running service, load, replace and unload them",
    "settings": "print every setting with its value",
    "openapi": "print the OpenAPI document, which is the same for every server",
    "key": "make an API key, and show it and its entry for the settings, once",
    "classify": "name the classes of image files",
    "features": "write the features of image files to a NumPy archive",
    "bulk": "write predictions and features of any number of images as Parquet, resumably",
    "drift": "say whether answers differ from those of another time by more than chance",
    "evaluate": "measure the accuracy on a folder of images whose classes are known",
    "calibrate": "find the temperature that makes scores as likely as they say, on such a folder",
}
"""Each command's name, which is its module's too, and what it does."""

DEFAULT = "serve"


class Command(Protocol):
    """What a command's module has."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's own arguments."""
        ...

    def run(self, options: argparse.Namespace) -> int:
        """Do it, and return the exit status; raises StartupError for what the caller can mend."""
        ...


def load(name: str) -> Command:
    """Import one of COMMANDS."""
    return cast(Command, import_module(f"{__name__}.{name}"))
