"""The service on a Ray cluster: `serve run deploy.ray_serve:build repository=/models model=dat_demo`.

Ray's proxies take the place of the HTTP server, and each replica is what `python -m service` is with one worker: the
same application, with an engine as a thread of it for each model. Everything behind the socket is the service's own:
admission and its 429s, batching, deadlines, cancellation, API keys, metrics. Ray decides how many replicas there are
and where, sends each request to one, and replaces those that end or whose engines are not well.

Several models are several applications, each at a route of its own, whose replicas Ray counts and places by what is
asked of each; or models of one application, where a few small ones share replicas and are chosen by `model=`. What is
served changes by deploying: all replicas of an application serve the same, which a load in one of them would end.

Invariants: a replica takes requests once its models are loaded and warm, and not before; Ray's limit of requests a
replica lies above the service's own, so that the service's refusals are what clients meet; what the proxies answer by
themselves, `deploy.ray_proxy` puts into the service's form.
"""

from __future__ import annotations

import asyncio
import math
import os
from typing import Any

# Read by Ray when it is imported, and by the nodes that it starts: `serve run` without a cluster starts one. Nodes that
# run already have been told, or not, where they were started.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_REPORT_URL", "")  # where Ray would say that it has been told to report nothing
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "deploy.ray_proxy:middlewares")

import ray
from fastapi import FastAPI
from ray import serve

from deploy.ray_metrics import ReplicaMetrics
from deploy.ray_options import deployment_options, read_arguments, within
from service.http.app import create_app
from service.processes.trial import try_candidate
from service.serving.in_process import InProcessHosting
from service.serving.repository import ModelRepository
from service.settings import Settings
from service.telemetry.logs import configure_logging
from service.telemetry.tracing import require_tracing


def build(arguments: dict[str, Any]) -> serve.Application:
    """Return the application to deploy; `serve run` and `serve deploy` call this.

    `arguments` are fields of `Placement`, and settings by their field names, which win over the DAT_ variables of the
    process that deploys. All replicas get the settings that are read here. Raises SettingsError that names what is
    wrong.
    """
    placement, settings = read_arguments(arguments)
    return serve.deployment(**deployment_options(placement, settings))(serve.ingress()(Replica)).bind(settings)


class Replica:
    """One replica; Ray wraps it, calls it with each request as ASGI, and runs the application's lifespan around it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; called once, on the event loop that it will live on. Raises StartupError."""
        context = serve.get_replica_context()
        settings = within(self._settings, cores=_assigned_cores())
        configure_logging(level=settings.log_level, form=settings.log_format, process=context.replica_id.unique_id)
        require_tracing(settings)
        repository = ModelRepository(settings)
        candidates = await asyncio.to_thread(repository.at_start)
        self._metrics = ReplicaMetrics()
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started = started
        app = create_app(
            settings,
            InProcessHosting(settings, candidates, repository, metrics=self._metrics, prove=try_candidate),
            metrics=self._metrics,
            on_ready=lambda: started.set_result(None),
            on_failed_start=started.set_exception,
        )
        self._service = app.state.service
        return app

    async def check_health(self) -> None:
        """Wait until all models are loaded, and raise while one's engine is not well: Ray then replaces the replica.

        Ray asks for the first time before it sends any request, which is how none comes too early.
        """
        await asyncio.shield(self._started)
        self._service.check_ready()

    async def own_metrics(self) -> tuple[str, str]:
        """Return this replica's name and metrics, for the replica that was asked for all; see `ReplicaMetrics`."""
        return await asyncio.to_thread(self._metrics.render_own)


def _assigned_cores() -> int:
    """Return how many threads this replica may use: the cores that Ray has set aside for it, rounded up."""
    cores: float = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    return max(math.ceil(cores), 1)
