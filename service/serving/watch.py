"""The repository watched: models whose files are new or have changed are loaded, once they are whole.

The repository is looked at every few seconds. What a look finds is acted on when the next one finds the same: a
directory that is being copied changes from one to the other, or lacks something. So a version is loaded neither early
nor, meanwhile, called broken; one that cannot be loaded is tried again when its files have changed, and not before.

What is taken away stays served, as long as nothing else is there to serve in its place: a volume that was lost, or an
empty mount, looks as if all had been deleted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.errors import RepositoryError, ServiceError
from service.model.holdings import Holdings, Stamp, Survey, holdings_of
from service.model.selection import wanted_versions
from service.serving.reading import in_daemon_thread
from service.serving.states import ModelState, VersionStatus
from service.settings import Settings

_log = logging.getLogger(__name__)

INCOMPLETE_S = 60.0
"""How long files may be missing, and nothing change, before that counts as broken."""


class Watched(Protocol):
    """Knows how every version is."""

    @property
    def statuses(self) -> Sequence[VersionStatus]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look finds of a model."""

    wanted: tuple[int, ...]
    stamp: Stamp
    trouble: str = ""
    """Why it cannot be said which versions are wanted."""
    missing: str = ""
    """What the files of a wanted version lack."""


@dataclass(slots=True)
class _Seen:
    look: _Look
    since_s: float
    is_done: bool = False
    """Whether there is nothing to do until the look is another."""


class RepositoryWatch:
    """Calls `load(name)` for models that are to be served otherwise than before; belongs to one event loop.

    What is served already is to stay as it is in `load`: it is called once for each model that is there at first.
    """

    def __init__(
        self,
        settings: Settings,
        models: Watched,
        load: Callable[[str], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._holdings = holdings_of(settings)
        self._models = models
        self._load = load
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._trouble = ""

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.watch_interval_ms / 1000)
            try:
                await self.look()
            except Exception:  # a look that fails as nobody expected must not be the last
                _log.exception("a look at the repository has failed")

    async def look(self) -> None:
        """Look once, and return when what has to be loaded now is loaded, or has failed to be."""
        try:
            looks = await in_daemon_thread(_look_at, self._settings, self._holdings)
        except RepositoryError as error:
            self._say_once(str(error))
            return
        self._trouble = ""
        for name in self._seen.keys() | looks.keys():
            if not self._is_watched(name):
                self._seen.pop(name, None)
            elif name in looks:
                await self._weigh(name, looks[name])
            elif self._seen[name].look.wanted:
                self._seen[name] = _Seen(_Look((), ()), self._clock(), is_done=True)
                _warn(name, "its files are gone from the repository; what was loaded stays served")

    def _is_watched(self, name: str) -> bool:
        """Tell whether a model is served, or is to be as soon as it is there; one that was unloaded is left alone."""
        states = {status.state for status in self._models.statuses if status.name == name}
        if states:
            return bool(states - {ModelState.DRAINING, ModelState.UNLOADED})
        return self._settings.serves_all or name in self._settings.model_names

    async def _weigh(self, name: str, look: _Look) -> None:
        """Load a model whose files are others than before and have come to rest."""
        seen = self._seen.get(name)
        now_s = self._clock()
        if seen is None or seen.look != look:
            self._seen[name] = _Seen(look, now_s)
            return
        if seen.is_done or (look.missing and now_s - seen.since_s < INCOMPLETE_S):
            return
        seen.is_done = True
        if look.trouble:
            _warn(name, look.trouble)
            return
        try:
            await self._load(name)
        except ServiceError as error:
            _warn(name, str(error))

    def _say_once(self, trouble: str) -> None:
        if trouble != self._trouble:
            _log.warning("the repository cannot be watched", extra={"fields": {"reason": trouble}})
        self._trouble = trouble


def _warn(name: str, reason: str) -> None:
    _log.warning("model not loaded from the watched repository", extra={"fields": {"model": name, "reason": reason}})


def _look_at(settings: Settings, holdings: Holdings) -> dict[str, _Look]:
    """Return what there is of each model; raises RepositoryError where the repository cannot be read."""
    survey = holdings.survey()
    return {name: _look_at_model(settings, survey, name) for name in survey.models}


def _look_at_model(settings: Settings, survey: Survey, name: str) -> _Look:
    available = survey.models[name]
    try:
        wanted = wanted_versions(settings.of_model(name), name, available)
    except ServiceError as error:
        return _Look(available, survey.stamp(name, ()), trouble=str(error))
    missing = (survey.missing(name, version) for version in wanted)
    return _Look(wanted, survey.stamp(name, wanted), missing=next(filter(None, missing), ""))
