"""What an engine process is: the model on one device, run for all workers.

Nothing of HTTP is imported here: an engine that was lost is back the sooner.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from service.engine.board import engine_name
from service.engine.control import ControlSocket
from service.engine.process import EngineProcess
from service.model.loading import load_session
from service.processes.plan import Plan


def run_engine(control: ControlSocket, descriptors: Sequence[int], plan: Plan, number: int) -> int:
    """Be engine `number`; `descriptors` holds the board."""
    plan.configure_logging(engine_name(number))
    (board,) = descriptors
    settings, engines = plan.settings, len(plan.devices)
    # Engines on the CPU share the cores out among them, unless a number was asked for.
    threads = settings.threads or (max((os.cpu_count() or 1) // engines, 1) if engines > 1 else 0)
    engine = EngineProcess(
        partial(load_session, plan.model, device=plan.devices[number], settings=settings, threads=threads),
        control=control,
        row=plan.board(board).engines[number],
        geometry=plan.geometry,
        max_delay_s=settings.max_delay_ms / 1000,
        observer=plan.metrics(),
    )
    return engine.run()
