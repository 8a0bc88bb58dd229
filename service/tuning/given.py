"""What was given before anything is tuned: settings of options, variables and a settings file.

What is given stays as it is. A measured server is told all of it that has to do with speed, in a file of its own and
by no variable, and nothing of addresses, keys and certificates: it listens on the loopback, for the clients here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from service.settings import ENV_PREFIX, Settings
from service.settings_file import read_model_file, read_settings_file
from service.tuning.choice import Choice
from service.tuning.toml import render

_OF_THE_SERVER = frozenset(
    {
        "settings", "host", "port", "root_path", "forwarded_allow_ips", "log_level", "log_format", "tracing",
        "api_keys", "cors_origins", "tls_certificate", "tls_key", "tls_key_password", "tls_ca_certificates",
        "model_control", "watch_repository", "watch_interval_ms",
    }
)  # fmt: skip
"""Settings that measured servers are not told."""
MEASURED = frozenset(Settings.model_fields) - _OF_THE_SERVER
"""Settings that may be given and stay as they are."""

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Given:
    """What was given: values for all models, and tables of single ones."""

    settings: Settings
    values: Mapping[str, Any]
    tables: Mapping[str, Mapping[str, Any]]
    unmeasured: Mapping[str, Any]
    """What the settings file says besides, of which measured servers are not told."""

    @classmethod
    def of(cls, settings: Settings) -> Given:
        """Take apart what was given; raises SettingsError where the settings file cannot be read."""
        values = {name: _plain(getattr(settings, name)) for name in Settings.model_fields}
        given = settings.model_fields_set & MEASURED
        file = None if settings.settings is None else read_settings_file(settings.settings)
        return cls(
            settings,
            values={name: value for name, value in values.items() if name in given and value is not None},
            tables={name: {key: _plain(value) for key, value in settings.table_of(name).items()}
                    for name in settings.models_with_tables},
            unmeasured={} if file is None else _unmeasured(file.values, file.path.parent),
        )  # fmt: skip

    def fixed(self, model: str | None = None) -> frozenset[str]:
        """Return the settings that are given for a model, or for all."""
        if model is None:
            return frozenset(self.values)
        own = read_model_file(self.settings.local_repository, model)
        return frozenset({*self.values, *self.tables.get(model, {}), *(() if own is None else own.values)})

    def for_server(self, choice: Choice, models: Sequence[str]) -> str:
        """Return the settings file of a server that serves these models alone."""
        entries = [entry for name in models for entry in self._entries(name)]
        cache = self.settings.repository_cache
        values: Values = {
            "repository": str(self.settings.repository_anywhere),
            **({} if cache is None else {"repository_cache": str(cache.absolute())}),
            **self.values,
            "model": entries,
            **choice.common,
        }
        return render(values, {name: table for name, table in self._tables(choice).items() if name in models})

    def for_user(self, choice: Choice, *, comment: Sequence[str]) -> str:
        """Return the settings file to serve with: what was given, be it by options and variables, and the choice.

        Addresses, keys and certificates are there where they were in the settings file.
        """
        return render({**self.unmeasured, **self.values, **choice.common}, self._tables(choice), comment=comment)

    def _entries(self, name: str) -> list[str]:
        """Return how a model and its versions are named in the settings."""
        return [each for each in self.settings.model if each.partition(":")[0] == name] or [name]

    def _tables(self, choice: Choice) -> Mapping[str, Mapping[str, Any]]:
        names = dict.fromkeys((*self.tables, *choice.models))
        found = {name: {**self.tables.get(name, {}), **choice.models.get(name, {})} for name in names}
        return {name: table for name, table in found.items() if table}


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables that are settings."""
    return {name: value for name, value in environment.items() if not name.upper().startswith(ENV_PREFIX)}


def _plain(value: Any) -> Any:
    """Return a setting's value as a file has it; paths begin at the root, for the file may lie anywhere."""
    return str(value.resolve()) if isinstance(value, Path) else value


def _unmeasured(values: Mapping[str, Any], folder: Path) -> Values:
    """Return what a file in `folder` says that is not measured, with paths from the root."""
    found: Values = {}
    for name, value in values.items():
        if name not in MEASURED:
            annotation = Settings.model_fields[name].annotation
            is_path = Path in (annotation, *get_args(annotation))
            found[name] = str((folder / value).resolve()) if is_path else value
    return found
