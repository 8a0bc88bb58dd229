"""An engine process: the engines of every version that a device serves, each in a thread, and one that obeys.

The main thread does what the supervisor says and answers its pings at once, whatever the engines do. It touches no
worker's memory and runs no model.

Invariants: an engine that breaks ends the process, whose successor loads what is served anew; one that cannot load what
it is to serve ends alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Protocol

from service.engine.control import (
    Attach,
    ControlSocket,
    End,
    Load,
    Loaded,
    NotLoaded,
    Ping,
    Pong,
    Ready,
    Unload,
    Unloaded,
)
from service.engine.linked import LinkedEngine

_log = logging.getLogger(__name__)

_BROKEN = 70
"""Exit status of a process whose engine broke (EX_SOFTWARE)."""


class MakeEngine(Protocol):
    """Makes the engine of a version."""

    def __call__(
        self,
        plan: Any,
        board: int,
        *,
        on_loaded: Callable[[Any], object],
        on_failed: Callable[[str], object],
        on_end: Callable[[BaseException | None], object],
    ) -> LinkedEngine:
        """Return an engine that is not started, by the plan of its version; takes over its board's descriptor.

        `on_loaded` is to be given the facts that the load has shown.
        """
        ...


class EngineProcess:
    """What a device serves; `control` leads to the supervisor, and `leave` ends the process at once."""

    def __init__(
        self, make_engine: MakeEngine, *, control: ControlSocket, leave: Callable[[int], object] = os._exit
    ) -> None:
        self._make_engine = make_engine
        self._leave = leave
        self._control = control
        self._engines: dict[int, LinkedEngine] = {}
        """By the serials of their versions."""

    def run(self) -> int:
        """Obey until `End` comes or the supervisor is gone; returns the process's exit status."""
        self._control.send(Ready())
        while (received := self._control.receive()) is not None:
            message, descriptors = received
            match message:
                case Ping():
                    self._control.send(Pong())
                case Load(serial, plan):
                    self._load(serial, plan, *descriptors)
                case Attach(serial, worker):
                    self._attach(serial, worker, descriptors)
                case Unload(serial):
                    self._unload(serial)
                case End():
                    return 0
        _log.error("the supervisor is gone: the engines end")
        return 0

    def _load(self, serial: int, plan: Any, board: int) -> None:
        control = self._control
        engine = self._make_engine(
            plan,
            board,
            on_loaded=lambda facts: control.send(Loaded(serial, facts)),
            on_failed=lambda sentence: control.send(NotLoaded(serial, sentence)),
            on_end=lambda cause: self._ended(serial, cause),
        )
        self._engines[serial] = engine
        engine.start()

    def _attach(self, serial: int, worker: int, descriptors: list[int]) -> None:
        engine = self._engines.get(serial)
        if engine is None:  # it could not be loaded, as the supervisor has not read yet
            for descriptor in descriptors:
                os.close(descriptor)
            return
        engine.attach(worker, *descriptors)

    def _unload(self, serial: int) -> None:
        engine = self._engines.get(serial)
        if engine is None:
            self._control.send(Unloaded(serial))
        else:
            engine.end()

    def _ended(self, serial: int, cause: BaseException | None) -> None:
        """Forget an engine; called in its thread, as its last act."""
        if cause is not None:
            logging.shutdown()
            self._leave(_BROKEN)  # not the thread's end alone: what it had in hand would be nobody's
            return
        self._engines.pop(serial, None)
        self._control.send(Unloaded(serial))
