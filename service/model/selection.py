"""Which versions of which models the settings want, of those that a repository holds.

A model's versions are those that are named or, where none is, the highest ones, as many as its version policy says.
The highest of them answers where a request names none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.errors import RepositoryError, SettingsError
from service.model.directory import ModelDirectory, check_any, check_held
from service.model.holdings import Holdings, Survey, holdings_of
from service.settings import Settings, option_of


def wanted_versions(settings: Settings, name: str, available: Sequence[int]) -> tuple[int, ...]:
    """Return the versions of a model to serve, ascending, of those `available`, ascending too.

    `settings` are those of the model. Raises RepositoryError where a version that is named is not available.
    """
    named = settings.named_versions(name)
    for version in named:
        check_held(settings.repository, {name: available}, name, version)
    return named or tuple(available[-settings.latest_versions :])


def select_models(settings: Settings, holdings: Holdings | None = None) -> list[tuple[ModelDirectory, Settings]]:
    """Open every version to serve from the start, each with the settings of its model.

    `holdings` is the repository of the settings, where somebody has it already.

    The models come in the order of the settings, those of `all` that are not named by their names, and the versions
    ascending. Raises RepositoryError, or SettingsError of a model's own settings, that names the first one at fault.
    """
    survey = _held(settings, holdings)
    names = _names(settings, survey.models)
    if not settings.model_control:
        _check_tables(settings, names)
    return [
        (open_version(survey, of_model, name, version), of_model)
        for name, of_model in ((name, settings.of_model(name)) for name in names)
        for version in wanted_versions(of_model, name, survey.models[name])
    ]


def open_version(survey: Survey, settings: Settings, name: str, version: int) -> ModelDirectory:
    """Open a version, by the digest that the settings give for it if they do; raises RepositoryError."""
    return survey.open(name, version, manifest_sha256=settings.digest_of(name, version))


def only_model(settings: Settings) -> tuple[ModelDirectory, Settings]:
    """Open the one model that the settings choose, in its highest version that they want, with its settings.

    For what asks one model: a command, or a replica beside others. Raises RepositoryError, or SettingsError where the
    settings choose several.
    """
    survey = _held(settings)
    name = _only_name(settings, survey.models)
    of_model = settings.of_model(name)
    version = wanted_versions(of_model, name, survey.models[name])[-1]
    return open_version(survey, of_model, name, version), of_model


def settings_of_only_model(settings: Settings) -> Settings:
    """Return the settings of the one model that they choose, without opening it; raises as `only_model` does."""
    return settings.of_model(_only_name(settings, _held(settings).models))


def _held(settings: Settings, holdings: Holdings | None = None) -> Survey:
    """Return what the repository holds, or what is kept of one that is not reached; RepositoryError for nothing."""
    survey = (holdings or holdings_of(settings)).survey(or_kept=True)
    check_any(settings.repository, survey.models)
    return survey


def _only_name(settings: Settings, found: Mapping[str, Sequence[int]]) -> str:
    if len(settings.model) > 1 or settings.serves_all:
        raise SettingsError(
            f"{option_of('model')}: one model is wanted here, NAME or NAME:VERSION (given {','.join(settings.model)!r})"
        )
    return _names(settings, found)[0]


def _names(settings: Settings, found: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the models to serve from the start, the default one first; raises RepositoryError."""
    for name in settings.model_names:
        check_held(settings.repository, found, name)
    if not settings.model and len(found) > 1:
        raise RepositoryError(
            f"{settings.repository} holds several models, choose one of: {', '.join(found)}; "
            f"or {option_of('model')} all"
        )
    others = found if settings.serves_all or not settings.model else ()
    return list(dict.fromkeys((*settings.model_names, *others)))


def _check_tables(settings: Settings, names: Sequence[str]) -> None:
    """Raise SettingsError where the settings file has a table for a model that is not among those served."""
    others = [name for name in settings.models_with_tables if name not in names]
    if others:
        raise SettingsError(
            f"{settings.settings}: models.{others[0]}: this model is not served; served: {', '.join(names)}"
        )
