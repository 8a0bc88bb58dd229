"""Every setting of the service as one frozen object, built once from the command line and the environment.

A field `max_images` is the option `--max-images`, the variable `DAT_MAX_IMAGES` and the key `max_images` of a settings
file; an option wins over a variable, a variable over the file, the file over the default. The fields below are the only
list there is: the command line's options, the table for the documentation and the error messages are all made from
them. A variable that starts with `DAT_` and names no field is an error, as is a file's key that names none, and a value
outside its domain, and all are named.

What is said of one model goes before what is said of all: `Settings.of_model` lays over them the model's own file, and
over that the table for it in the settings file.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import SettingsError
from service.images.limits import DecodeLimits
from service.remote.address import RemoteAddress
from service.remote.user_cache import user_cache
from service.settings_cloud import platform_values
from service.settings_fields import ALL_MODELS, OWN_PLACES, Fields, parted
from service.settings_file import MODELS_TABLE, SETTINGS_FOLDER, SettingsFile, read_model_file, read_settings_file

ENV_PREFIX = "DAT_"
CLIENT_API_KEY = "DAT_CLIENT_API_KEY"
"""Variable with the key that the commands show to a server; no setting of the service."""
CPU_BUCKETS = (1, 2, 4, 8)
GPU_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
OF_ONE_MODEL = (
    "version_policy", "device", "devices", "instances", "threads", "strict_device", "fused", "cuda_graphs",
    "self_check", "shrink_arena_above", "provider_options", "batch_buckets", "max_delay_ms", "exif_orientation",
    "resize", "explain", "top_k", "v2_outputs", "class_metrics",
)  # fmt: skip
"""Fields that may be set for one model alone."""
_REPEATED = frozenset({"model"})
"""Options that may be given several times."""
_METAVARS = {"settings": "FILE"}
_SECRET_FIELDS = ("api_keys", "tls_key_password", "repository")
"""Their values, in which secrets may be, are not repeated where they are wrong."""


class Settings(Fields, BaseSettings):
    """The service's settings; build it with `load_settings`, which turns every failure into a SettingsError."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    _tables: Mapping[str, Mapping[str, Any]] = PrivateAttr(default_factory=dict)
    """What the settings file says of single models: checked values by field, by model."""
    _of: str | None = PrivateAttr(default=None)
    """The model that these are the settings of."""

    @model_validator(mode="after")
    def _one_version_of_one_model(self) -> Settings:
        if self.model_version is None:
            return self
        given = f"{option_of('model_version')} is of one model, and {option_of('model')}"
        if len(self.model) > 1 or ALL_MODELS in self.model:
            raise ValueError(f"{given} names several: name each as NAME:VERSION")
        if self.model and parted(self.model[0])[1]:
            raise ValueError(f"{given} has its version already: {self.model[0]}")
        if not self.model and self.model_control:
            raise ValueError(f"{given} names none, where others may be loaded: name it as NAME:VERSION")
        return self

    @model_validator(mode="after")
    def _control_comes_first(self) -> Settings:
        if self.watch_repository and not self.model_control:
            raise ValueError(f"{option_of('watch_repository')} is given without {option_of('model_control')}")
        return self

    @model_validator(mode="after")
    def _sample_comes_first(self) -> Settings:
        rest = [name for name in ("sample_images", "sample_names") if getattr(self, name)]
        if rest and self.sample_requests is None:
            raise ValueError(f"{option_of(rest[0])} is given without {option_of('sample_requests')}")
        return self

    @model_validator(mode="after")
    def _certificate_comes_first(self) -> Settings:
        rest = [name for name in ("tls_key", "tls_key_password", "tls_ca_certificates") if getattr(self, name)]
        if rest and self.tls_certificate is None:
            raise ValueError(f"{option_of(rest[0])} is given without {option_of('tls_certificate')}")
        return self

    @model_validator(mode="after")
    def _full_request_fits_queue(self) -> Settings:
        if self.max_images > self.slots_of_a_worker:
            shared = f" shared by {self.workers} workers" if self.workers > 1 else ""
            raise ValueError(
                f"max_images ({self.max_images}) is more than max_queued_images ({self.max_queued_images}){shared}: "
                "such a request could never be admitted"
            )
        return self

    def buckets_for(self, device: str) -> tuple[int, ...]:
        """Return the batch sizes to run with on a device: CPU_BUCKETS for `cpu`, GPU_BUCKETS for any other."""
        return self.batch_buckets or (CPU_BUCKETS if device == "cpu" else GPU_BUCKETS)

    def of_model(self, name: str) -> Settings:
        """Return what holds for one model: the table for it, over its own file, over what holds for all.

        The model's own file is read anew each time, for it comes and changes with the model. Raises SettingsError that
        names the file and the key where something is wrong with it.
        """
        if self._of == name:
            return self
        own = read_model_file(self.local_repository, name)
        of_own = {} if own is None else _checked_table(own.values, place=f"{own.path}: ")
        return self._with(of_own, self._tables.get(name, {}), of=name)

    def with_options(self, options: Mapping[str, Any]) -> Settings:
        """Return these with command-line options over them: of a command that asks one model, they speak of that."""
        given = {name: value for name, value in options.items() if name in OF_ONE_MODEL}
        return self._with(given, of=self._of)

    def _with(self, *layers: Mapping[str, Any], of: str | None) -> Settings:
        """Return these with other values over them, the last first."""
        if not any(layers):
            settings = self.model_copy()
            settings._of = of
            return settings
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for layer in layers:
            if "device" in layer and "devices" not in layer:
                values["devices"] = ()
            values.update(layer)
        try:
            settings = type(self)(**values)
        except ValidationError as error:
            raise SettingsError("; ".join(_sentence(problem, values) for problem in error.errors())) from error
        settings._tables, settings._of = self._tables, of  # private attributes stay open where fields are frozen
        return settings

    @property
    def models_with_tables(self) -> tuple[str, ...]:
        """Models that the settings file has tables for."""
        return tuple(self._tables)

    def table_of(self, name: str) -> Mapping[str, Any]:
        """Return what the settings file says of one model alone: checked values by field."""
        return self._tables.get(name, {})

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models that are named, each once, in their order; `all` is not among them."""
        names = dict.fromkeys(parted(model)[0] for model in self.model if model != ALL_MODELS)
        return tuple(names)

    @property
    def serves_all(self) -> bool:
        """Whether every model of the repository is to be served, besides those that are named."""
        return ALL_MODELS in self.model

    def named_versions(self, name: str) -> tuple[int, ...]:
        """Return the versions of a model that are asked for by number, ascending; none where its policy chooses."""
        if self.model_version is not None and self.model_names in ((), (name,)):
            return (self.model_version,)
        return tuple(sorted(version for each, version in map(parted, self.model) if each == name and version))

    def digest_of(self, name: str, version: int) -> str | None:
        """Return the sha256 that the manifest of a version must have; None where any will do."""
        for model in self.model:
            if parted(model) == (name, version):
                return model.partition("@sha256:")[2] or None
        return None

    @property
    def kept_repository(self) -> Path:
        """Where copies are kept of a repository elsewhere; raises SettingsError where there is no such place."""
        cache = self.repository_cache or user_cache()
        if cache is None:
            raise SettingsError(f"name a {option_of('repository_cache')}: this user has no directory of its own")
        return cache / RemoteAddress(str(self.repository)).folder_name

    @property
    def local_repository(self) -> Path:
        """Where the models' own settings lie: in the repository, or in what is kept here of one elsewhere."""
        return self.repository if isinstance(self.repository, Path) else self.kept_repository / SETTINGS_FOLDER

    @property
    def repository_anywhere(self) -> Path | RemoteAddress:
        """The repository as any process finds it, wherever that was started."""
        return self.repository.absolute() if isinstance(self.repository, Path) else self.repository

    @property
    def latest_versions(self) -> int:
        """How many of a model's highest versions the version policy serves."""
        return parted(self.version_policy)[1] or 1

    @property
    def decode_limits(self) -> DecodeLimits:
        """What one image may be and cost."""
        return DecodeLimits(self.max_image_pixels, self.max_image_scan_pixels, self.max_image_segments)

    @property
    def has_processes(self) -> bool:
        """Whether the engines are processes of their own, for all models or for one that has a table."""
        return self.workers > 1 or any(
            bool(each.get("devices")) or each.get("instances", 1) > 1
            for each in ({"devices": self.devices, "instances": self.instances}, *self._tables.values())
        )

    @property
    def slots_of_a_worker(self) -> int:
        """Images that one worker may admit."""
        return self.max_queued_images // self.workers

    @property
    def decode_thread_count(self) -> int:
        """Threads of one worker's decoding pool."""
        return self.decode_threads or max((os.cpu_count() or 1) // self.workers, 1)


def option_of(field: str) -> str:
    """Return the command line's name of a field."""
    return "--" + field.replace("_", "-")


def variable_of(field: str) -> str:
    """Return the environment's name of a field."""
    return ENV_PREFIX + field.upper()


def add_options(parser: argparse.ArgumentParser, *, only: Collection[str] | None = None) -> None:
    """Add one option a field (of those named in `only`); options not given leave no trace in the parsed namespace.

    Raises ValueError where `only` names what is no field.
    """
    unknown = set(only or ()) - Settings.model_fields.keys()
    if unknown:
        raise ValueError(f"no settings: {', '.join(sorted(unknown))}")
    for name, field in Settings.model_fields.items():
        if only is not None and name not in only:
            continue
        action: Any = argparse.BooleanOptionalAction if field.annotation is bool else "store"
        if name in _REPEATED:
            action = "append"
        extra: dict[str, Any] = {} if field.annotation is bool else {"metavar": _metavar(name)}
        parser.add_argument(
            option_of(name), dest=name, action=action, default=argparse.SUPPRESS, help=_help(field), **extra
        )


def _metavar(name: str) -> str:
    return _METAVARS.get(name, name.rsplit("_", 1)[-1].upper())


def load_settings(
    options: Mapping[str, Any] | None = None, *, environment: Mapping[str, str] | None = None
) -> Settings:
    """Build the settings from command-line `options` by field name, the process's environment, and a settings file.

    `environment` is only read for unknown variables, and is the process's own unless a test gives another.
    Raises SettingsError that names every unknown variable or key, or every bad value by where it was given.
    """
    options = dict(options or {})
    known = {variable_of(name) for name in Settings.model_fields} | {CLIENT_API_KEY}
    variables = {name.upper(): name for name in (os.environ if environment is None else environment)}
    unknown = sorted(name for key, name in variables.items() if key.startswith(ENV_PREFIX) and key not in known)
    if unknown:
        raise SettingsError(f"unknown variable{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}")
    set_variables = {name.upper(): value for name, value in os.environ.items() if value}
    path = options.get("settings") or set_variables.get(variable_of("settings"))
    file = None if path is None else read_settings_file(Path(path))
    options = {**_of_cloud(options, set_variables, file), **options}
    of_file: dict[str, Any] = {}
    if file is not None:
        said = set(options) | {name for name in Settings.model_fields if variable_of(name) in set_variables}
        if "device" in said:
            said.add("devices")
        of_file = {name: value for name, value in _checked_file(file).items() if name not in said}
    try:
        settings = Settings(**of_file, **options)
    except ValidationError as error:
        raise SettingsError("; ".join(_sentence(problem, options) for problem in error.errors())) from error
    if file is not None:
        tables = {
            name: _checked_table(table, place=f"{file.path}: {MODELS_TABLE}.{name}.")
            for name, table in file.tables.items()
        }
        settings._tables = tables
    return settings


def _of_cloud(options: Mapping[str, Any], variables: Mapping[str, str], file: SettingsFile | None) -> Mapping[str, Any]:
    """Return what the platform that is asked for says itself, which goes before variables and file."""
    of_file = None if file is None else file.values.get("cloud")
    cloud = options.get("cloud", variables.get(variable_of("cloud"), of_file))
    return platform_values(cloud, os.environ, own_places=OWN_PLACES)


def _checked_file(file: SettingsFile) -> dict[str, Any]:
    """Return what a file says of all models, its paths from where it lies; raises SettingsError for each bad key."""
    allowed = Settings.model_fields.keys() - {"settings"}
    checked = _checked(file.values, allowed=allowed, place=f"{file.path}: ")
    return {name: file.path.parent / value if isinstance(value, Path) else value for name, value in checked.items()}


def _checked_table(values: Mapping[str, Any], *, place: str) -> dict[str, Any]:
    """Return what is said of one model; raises SettingsError for each bad key."""
    return _checked(values, allowed=OF_ONE_MODEL, place=place)


def _checked(values: Mapping[str, Any], *, allowed: Collection[str], place: str) -> dict[str, Any]:
    """Return a file's values as the fields have them; raises SettingsError that names each bad key by its place."""
    problems = [f"{place}{name}: {_why_not(name)}" for name in values if name not in allowed]
    known = {name: value for name, value in values.items() if name in allowed}
    for name, value in known.items():
        # Where a number is wanted, pydantic would take it for 0 or 1.
        if isinstance(value, bool) and Settings.model_fields[name].annotation is not bool:
            problems.append(f"{place}{name}: it is neither true nor false (given {value})")
    try:
        fields = Fields(**known)
    except ValidationError as error:
        problems += [f"{place}{problem['loc'][0]}: {_reason(problem)}" for problem in error.errors()]
    if problems:
        raise SettingsError("; ".join(dict.fromkeys(problems)))
    return {name: getattr(fields, name) for name in known}


def _why_not(name: str) -> str:
    if name in Settings.model_fields and name != "settings":
        return f"this cannot be set for one model; what can is {', '.join(OF_ONE_MODEL)}"
    return "there is no such setting in a file"


def _sentence(problem: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    if not problem["loc"]:
        return _reason(problem)
    field = str(problem["loc"][0])
    return f"{option_of(field) if field in options else variable_of(field)}: {_reason(problem)}"


def _reason(problem: Mapping[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    place: Sequence[Any] = problem["loc"]
    return message if not place or place[0] in _SECRET_FIELDS else f"{message} (given {problem['input']!r})"


def markdown_table() -> str:
    """Render the settings as a Markdown table: option, variable, default, meaning."""
    rows = ["| Option | Variable | Default | Meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{option_of(name)}` | `{variable_of(name)}` | {_default(field)} | {_description(field)} |")
    return "\n".join(rows) + "\n"


def _description(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _default(field: FieldInfo) -> str:
    if field.default in (None, (), {}, ""):
        return ""
    if isinstance(field.default, tuple):
        return f"`{','.join(map(str, field.default))}`"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _help(field: FieldInfo) -> str:
    default = _default(field).strip("`")
    text = _description(field).replace("%", "%%")
    return f"{text} (default: {default})" if default else text
