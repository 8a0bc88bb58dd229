"""The model repository as the registry sees it: which versions are to be served, each with its settings."""

from __future__ import annotations

from collections.abc import Sequence

from service.errors import UnknownModel
from service.model.holdings import holdings_of
from service.model.selection import open_version, select_models, wanted_versions
from service.model.suitability import check_settings
from service.serving.registry import Candidate
from service.settings import Settings


class ModelRepository:
    """The repository that the settings name; see `registry.Repository`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._holdings = holdings_of(settings)

    def at_start(self) -> list[Candidate]:
        """Read and check what is to be served from the start, the default model first; raises StartupError."""
        candidates = [Candidate(model, settings) for model, settings in select_models(self._settings, self._holdings)]
        for candidate in candidates:
            check_settings(candidate.model.manifest, candidate.settings)
        return candidates

    def listed(self) -> dict[str, tuple[int, ...]]:
        """Return the versions of every model that is there; raises RepositoryError."""
        return dict(self._holdings.survey().models)

    def wanted(self, name: str) -> Sequence[int]:
        """Return the versions of a model that are to be served; raises UnknownModel, or StartupError."""
        found = self._holdings.survey().models
        if name not in found:
            raise UnknownModel(f"The repository holds no model {name!r}; it holds: {', '.join(found) or 'none'}.")
        return wanted_versions(self._settings.of_model(name), name, found[name])

    def open(self, name: str, version: int) -> Candidate:
        """Read and check a version, with the settings that are the model's at present; raises StartupError."""
        survey = self._holdings.survey()  # first, for it has the model's own settings come with it
        settings = self._settings.of_model(name)
        model = open_version(survey, settings, name, version)
        check_settings(model.manifest, settings)
        return Candidate(model, settings)
