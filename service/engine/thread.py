"""The thread that drives an `EngineCore` in this process.

Invariants: only this thread touches the core; it sleeps while nothing is due and is woken, never polling; however it
ends, `on_end` is called.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeAlias

from service.engine.core import EngineCore
from service.engine.named_thread import NamedThread
from service.engine.types import Completion

_log = logging.getLogger(__name__)


Command: TypeAlias = Callable[[EngineCore], None]
"""What the core is to do before its next step: take work, or take it back."""


class EngineThread:
    """Loads the model, then drives the core: sleeps while nothing is due, and reports through callbacks.

    The callbacks are called in the engine's thread: `on_ready` once, `on_completions` after each step that ended
    images, `on_end` last and always, with the exception that ended the thread, if one did.
    """

    def __init__(
        self,
        make_core: Callable[[], EngineCore],
        *,
        clock: Callable[[], float],
        on_ready: Callable[[], None],
        on_completions: Callable[[list[Completion]], None],
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        self._make_core = make_core
        self._clock = clock
        self._on_ready = on_ready
        self._on_completions = on_completions
        self._on_end = on_end
        self._wake = threading.Condition()
        self._inbox: list[Command] = []
        self._ending = False
        # A daemon, so that a run that never returns cannot keep the process from ending.
        self._thread = NamedThread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def send(self, command: Command) -> None:
        """Have the core do something before its next step; any thread."""
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    def end(self) -> None:
        """Ask the thread to end after its present step, with what waits left undone."""
        with self._wake:
            self._ending = True
            self._wake.notify()

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def _main(self) -> None:
        cause: BaseException | None = None
        try:
            core = self._make_core()
            core.warm_up()
            self._on_ready()
            self._drive(core)
        except BaseException as error:  # whatever it is, those who wait must hear that nobody works for them any more
            _log.exception("the engine's thread has failed")
            cause = error.with_traceback(None)  # its frames hold the core, and so the model's memory
        finally:
            self._on_end(cause)

    def _drive(self, core: EngineCore) -> None:
        while (commands := self._next_commands(core)) is not None:
            for command in commands:
                command(core)
            completions = core.step(lambda: self._take_in(core))
            if completions:
                self._on_completions(completions)

    def _take_in(self, core: EngineCore) -> None:
        """Have the core do what was sent while the device was another engine's."""
        with self._wake:
            commands, self._inbox = self._inbox, []
        for command in commands:
            command(core)

    def _next_commands(self, core: EngineCore) -> list[Command] | None:
        """Wait until there are commands, or the core has something due, and take them; None to end."""
        with self._wake:
            while not (self._inbox or self._ending):
                due_s = core.ready_at_s
                wait_s = None if due_s is None else due_s - self._clock()
                if wait_s is not None and wait_s <= 0:
                    break
                self._wake.wait(wait_s)
            commands, self._inbox = self._inbox, []
            return None if self._ending else commands
