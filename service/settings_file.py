"""A settings file: TOML whose keys are settings, with tables that are for one model alone.

What is read here is only taken apart; `service.settings` knows which keys there are and what their values may be.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.errors import SettingsError

MODEL_SETTINGS_FILE = "settings.toml"
"""A model's own file, `<repository>/<model>/settings.toml`: what a table for that model would hold."""
SETTINGS_FOLDER = "models"
"""In what is kept of a repository elsewhere: the folder that holds the models' own files as the repository does."""
MODELS_TABLE = "models"


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """What a file says: of all models, and in its tables `[models.NAME]` of one each."""

    path: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_settings_file(path: Path) -> SettingsFile:
    """Read and take apart a file of settings; raises SettingsError that names it, and the line or key at fault."""
    values = _read(path)
    tables = values.pop(MODELS_TABLE, {})
    if not isinstance(tables, dict):
        raise SettingsError(f"{path}: {MODELS_TABLE}: tables such as [{MODELS_TABLE}.dat_tiny] are wanted")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: {MODELS_TABLE}.{name}: a table of settings is wanted")
    return SettingsFile(path, values, tables)


def read_model_file(repository: Path, name: str) -> SettingsFile | None:
    """Read a model's own file; None where it has none. Raises SettingsError that names it and what is wrong."""
    if name.startswith(".") or "/" in name:  # of nobody's model: it may come from a request
        return None
    path = repository / name / MODEL_SETTINGS_FILE
    if not path.exists():
        return None
    return SettingsFile(path, _read(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8, which TOML is") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
