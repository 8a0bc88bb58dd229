"""What a request asks: one version of a model with all that answers for it, and the table in which it is found.

A request is resolved once, at its start, and keeps its version to its end: a version that is being replaced finishes
what it has taken. Everything here belongs to one event loop.

Invariants: `resolve` gives only versions that take work; a version that has left the table is not given to anybody any
more, and is let go of when the last request that keeps it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.engine.client import EngineClient
from service.errors import InvalidParameter, NotReady, UnknownModel
from service.images.preprocessing import Preprocessing
from service.model.classes import Classes
from service.model.directory import ModelDirectory
from service.model.explain_record import ExplainRecord
from service.model.manifest import Manifest
from service.model.sizes import InputSizes, explain_sizes_of, sizes_of
from service.serving.answer_cache import VersionCache
from service.serving.states import ModelState, VersionStatus
from service.settings import Settings
from service.telemetry.model_metrics import ModelMetrics


@dataclass(slots=True, eq=False)
class Served:
    """One loaded version of a model; `settings` are the service's, with what is set for this model alone."""

    model: ModelDirectory
    settings: Settings
    engine: EngineClient
    preprocessing: Preprocessing
    metrics: ModelMetrics
    cache: VersionCache | None = None
    """Its answers that are kept; None where the settings want none to be."""
    _classes: Classes | None = None
    _requests: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._unused.set()

    @property
    def manifest(self) -> Manifest:
        """What the exporter says of it."""
        return self.model.manifest

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.manifest.name

    @property
    def version(self) -> int:
        """Its version."""
        return self.model.manifest.version

    @property
    def classes(self) -> Classes:
        """Its classes by what they are called; made when first asked for."""
        if self._classes is None:
            self._classes = Classes(self.model.labels)
        return self._classes

    @property
    def explain(self) -> ExplainRecord | None:
        """What it can say of where it looked; None where it cannot, or the settings do not want it to."""
        return self.model.manifest.explain if self.settings.explain else None

    @property
    def sizes(self) -> InputSizes:
        """The sizes of input that it is served at."""
        return sizes_of(self.manifest, self.settings)

    @property
    def explain_sizes(self) -> InputSizes:
        """Those at which it says where it looked."""
        return explain_sizes_of(self.manifest, self.settings)

    def preprocessing_at(self, size: str | None, *, explains: bool = False) -> Preprocessing:
        """Return what is done to images for the size of input that a request asks for, None for its own.

        Raises InvalidParameter for what is no size, or one that it is not served at, or does not explain.
        """
        if size is None:
            return self.preprocessing
        try:
            preprocessing = self.preprocessing.at(size)
        except ValueError as error:
            raise InvalidParameter(f"size: {error}.") from error
        if refusal := (self.explain_sizes if explains else self.sizes).refusal(preprocessing.crop):
            height, width = preprocessing.crop
            raise InvalidParameter(f"size: {refusal}; {height}x{width} is none of them.")
        return preprocessing

    def check_ready(self) -> None:
        """Raise NotReady while its engine hangs, fails on every batch or is dead."""
        self.engine.check_ready()

    def keep(self) -> None:
        """Note that a request has begun that will ask it."""
        self._requests += 1
        self._unused.clear()

    def leave(self) -> None:
        """Note that such a request has ended; once for each `keep`."""
        self._requests -= 1
        if self._requests == 0:
            self._unused.set()

    def let_go(self) -> None:
        """Hold the engine no more, which has been stopped, nor any answers that are kept.

        A request that has ended may be remembered for long.
        """
        del self.engine
        if self.cache is not None:
            self.cache.close()

    async def wait_unused(self) -> None:
        """Return when no request keeps it."""
        await self._unused.wait()


class ServedModels:
    """Which versions take work, which of them answers where none is named, and how all others are."""

    def __init__(self, *, default: str) -> None:
        self.default = default
        """The model that is asked where a request names none."""
        self._statuses: tuple[VersionStatus, ...] = ()
        self._served: dict[tuple[str, int], Served] = {}
        self._defaults: dict[str, Served] = {}

    @property
    def statuses(self) -> Sequence[VersionStatus]:
        """Every version that was ever asked for, by name and version; the default model's first."""
        return self._statuses

    @property
    def served(self) -> Sequence[Served]:
        """Every version that takes work."""
        return tuple(self._served.values())

    def publish(self, statuses: Sequence[VersionStatus], served: Sequence[Served]) -> None:
        """Put others in place of all that was there, in one step."""
        self._statuses = tuple(
            sorted(statuses, key=lambda status: (status.name != self.default, status.name, status.version))
        )
        self._served = {(each.name, each.version): each for each in served}
        self._defaults = {
            status.name: self._served[status.name, status.version]
            for status in statuses
            if status.is_default and (status.name, status.version) in self._served
        }

    def statuses_of(self, name: str) -> Sequence[VersionStatus]:
        """Return how a model's versions are; raises UnknownModel where it has none."""
        found = [status for status in self._statuses if status.name == name]
        if not found:
            raise UnknownModel(f"There is no model {name!r} here; {self._known()}.")
        return found

    def resolve(self, name: str | None = None, version: str | None = None) -> Served:
        """Return what answers for a model, the default one where none is named, in a version or its default version.

        Raises UnknownModel where there is no such model or version or it is not loaded, and NotReady where it is on its
        way.
        """
        name = self.default if name is None else name
        served = self._defaults.get(name) if version is None else self._served.get((name, _number(version)))
        if served is not None:
            return served
        found = self.statuses_of(name)
        if version is not None:
            found = [status for status in found if status.version == _number(version)]
            if not found:
                listed = ", ".join(str(each.version) for each in self._served.values() if each.name == name)
                raise UnknownModel(f"There is no version {version!r} of {name!r} here; {listed or 'none'} is served.")
        # One that is ready, and is not here yet, is on its way to this process: it has taken the place of another.
        if any(status.state in (ModelState.LOADING, ModelState.READY) for status in found):
            raise NotReady(f"The model {name!r} is still being loaded.")
        last = found[-1]
        which = f"Version {last.version} of {name!r}"
        if last.state is ModelState.FAILED:
            raise UnknownModel(f"{which} could not be loaded: {last.reason}")
        raise UnknownModel(f"{which} is {last.state.value}.")

    def _known(self) -> str:
        names = dict.fromkeys(each.name for each in self._served.values())
        listed = ", ".join(map(repr, names)) or "none"
        return f"{listed} {'are' if len(names) > 1 else 'is'} served"


def _number(version: str) -> int:
    """Return a version's number, 0 where it is written otherwise than versions are: there is none with that number."""
    return int(version) if version.isascii() and version.isdigit() and version[0] != "0" and len(version) < 10 else 0
