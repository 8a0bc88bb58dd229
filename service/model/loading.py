"""The engine of a service that is one process: a thread of it, made as the settings say."""

from __future__ import annotations

from service.engine.core import EngineObserver
from service.engine.in_process import InProcessEngine
from service.model.directory import ModelDirectory
from service.processes.plan import explain_outputs, load_session
from service.settings import Settings


def in_process_engine(
    settings: Settings, model: ModelDirectory, *, device: str, observer: EngineObserver
) -> InProcessEngine:
    """Return an engine, not started, that will load `model` on `device`, a resolved one."""
    return InProcessEngine(
        lambda: load_session(model, device, settings),
        buckets=settings.buckets_for(device),
        explain_outputs=[name for name, _ in explain_outputs(model, settings)],
        max_queued_images=settings.max_queued_images,
        max_wait_s=settings.max_wait_ms / 1000,
        max_delay_s=settings.max_delay_ms / 1000,
        hang_after_s=settings.hang_timeout_ms / 1000,
        observer=observer,
    )
