"""From a command line that was parsed to the settings."""

from __future__ import annotations

import argparse
from typing import Any

from service.settings import Settings, load_settings


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the command line gives, by their fields' names."""
    return {name: value for name, value in vars(options).items() if name in Settings.model_fields}


def settings_from(options: argparse.Namespace) -> Settings:
    """Return the settings of the command line and the environment; raises SettingsError."""
    return load_settings(given_settings(options))
