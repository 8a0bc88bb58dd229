"""The door to what keeps models served: whoever asks knows nothing of processes and threads behind it."""

from __future__ import annotations

from typing import Protocol

from service.serving.served import ServedModels


class ModelControl(Protocol):
    """Loads and unloads models; belongs to one event loop. What was begun goes on if whoever asked for it goes."""

    async def load(self, name: str) -> None:
        """Serve the versions of a model that its version policy wants, of those in the repository now.

        Returns when they take work, and those that are not wanted any more take none. A version that is served already
        and whose files have not changed stays as it is. Raises UnknownModel where the repository has no such model, and
        LoadFailed, with the reason, where a version cannot be served: then all that was served still is.
        """
        ...

    async def unload(self, name: str) -> None:
        """Serve a model no more; returns when it takes no work and its memory is given back. Raises UnknownModel."""
        ...


class Hosting(Protocol):
    """Keeps the models of one application served, from its start to its end; belongs to its event loop."""

    @property
    def models(self) -> ServedModels:
        """What may be asked now."""
        ...

    @property
    def control(self) -> ModelControl | None:
        """What loads and unloads models; None where the settings do not allow that."""
        ...

    async def start(self) -> None:
        """Begin to load what is to be served from the start, and return at once."""
        ...

    async def wait_ready(self) -> None:
        """Return when all of that takes work; raises StartupError where some of it never will."""
        ...

    async def stop(self, timeout_s: float) -> None:
        """Fail whatever still waits, and let go of every engine."""
        ...
