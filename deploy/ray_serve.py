"""The service on a Ray cluster: `serve run deploy.ray_serve:build repository=/models model=dat_demo`.

Ray's proxies take the place of the HTTP server, and each replica is what `python -m service` is with one worker: the
same application, with the engine as a thread of it. Everything behind the socket is the service's own: admission and
its 429s, batching, deadlines, cancellation, API keys, metrics. Ray decides how many replicas there are and where, sends
each request to one, and replaces those that end or whose engine is not well.

Invariants: a replica takes requests once its model is loaded and warm, and not before; Ray's limit of requests a
replica lies above the service's own, so that the service's refusals are what clients meet; what the proxies answer by
themselves, `deploy.ray_proxy` puts into the service's form.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping
from typing import Annotated, Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported, which would report to its makers

import ray  # type: ignore[import-not-found]  # it has an environment of its own
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ray import serve  # type: ignore[import-not-found]

from deploy.ray_metrics import ReplicaMetrics
from service.app import create_app
from service.engine.session import resolve_device
from service.errors import SettingsError
from service.in_process import in_process_engine
from service.logs import configure_logging
from service.repository import select_model
from service.settings import Settings, load_settings, option_of
from service.stages import require_tracing

NAME = "dat"
"""Of the deployment, in Ray's status, logs and metrics."""
OTHER_REQUESTS = 64
"""Requests beyond the queue's that a replica takes from Ray: probes, metrics, and those that it is about to refuse."""
HEALTH_CHECK_PERIOD_S = 2.0
"""Ray replaces a replica after three failed checks."""
DRAIN_CHECK_PERIOD_S = 0.5
LAST_ANSWERS_S = 5.0
"""Beyond the drain time, for the engine's end."""
RETRY_AFTER_S = 1.0
"""What Ray says to those who find its own queue full."""
_NOT_ON_RAY = ("workers", "devices", "tls_certificate")
"""Settings of what Ray does in the service's place."""


class Placement(BaseModel):
    """How many replicas there are, and what each takes of a node; the arguments that are no settings of the service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] | None = None
    """Requests in flight a replica at which Ray adds no more and takes none away; two of the largest batches."""
    max_replicas_per_node: Annotated[int, Field(ge=1)] | None = None
    num_cpus: Annotated[float, Field(gt=0)] | None = None
    """Cores of a replica, which are also its threads where the settings leave them open."""
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs of a replica: 1 where the settings name a GPU as the device, else none."""

    @model_validator(mode="after")
    def _ascending(self) -> Placement:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is more than max_replicas ({self.max_replicas})")
        return self


def build(arguments: dict[str, Any]) -> serve.Application:
    """Return the application to deploy; `serve run` and `serve deploy` call this.

    `arguments` are fields of `Placement`, and settings by their field names, which win over the DAT_ variables of the
    process that deploys. All replicas get the settings that are read here. Raises SettingsError that names what is
    wrong.
    """
    placement, settings = read_arguments(arguments)
    return serve.deployment(**deployment_options(placement, settings))(serve.ingress()(Replica)).bind(settings)


def read_arguments(arguments: Mapping[str, Any]) -> tuple[Placement, Settings]:
    """Return what `arguments` and the environment say; raises SettingsError."""
    placed = {name: value for name, value in arguments.items() if name in Placement.model_fields}
    options = {name: value for name, value in arguments.items() if name not in Placement.model_fields}
    unknown = sorted(options.keys() - Settings.model_fields.keys())
    if unknown:
        raise SettingsError(f"unknown argument{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}")
    settings = load_settings(options)
    for name in _NOT_ON_RAY:
        if getattr(settings, name) != Settings.model_fields[name].default:
            raise SettingsError(f"{option_of(name)} is not for Ray, which has its own replicas, devices and TLS")
    if ":" in settings.device:
        raise SettingsError(f"{option_of('device')}: Ray gives each replica its own GPU; name no number")
    try:
        return Placement.model_validate(placed), settings
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise SettingsError("; ".join(problem.removeprefix(": Value error, ") for problem in problems)) from error


def deployment_options(placement: Placement, settings: Settings) -> dict[str, Any]:
    """Return Ray's options of the deployment."""
    on_gpu = settings.device.startswith(("cuda", "tensorrt")) or bool(placement.num_gpus)
    largest_batch = settings.buckets_for("cuda" if on_gpu else "cpu")[-1]
    options: dict[str, Any] = {
        "name": NAME,
        "ray_actor_options": {
            "num_cpus": placement.num_cpus or max(settings.threads, settings.decode_threads, 1),
            "num_gpus": placement.num_gpus if placement.num_gpus is not None else int(on_gpu),
        },
        "autoscaling_config": {
            "min_replicas": placement.min_replicas,
            "max_replicas": placement.max_replicas,
            "target_ongoing_requests": placement.target_ongoing_requests or 2 * largest_batch,
        },
        "max_ongoing_requests": settings.max_queued_images + OTHER_REQUESTS,
        "max_queued_requests": settings.max_queued_images,
        "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_AFTER_S},
        "graceful_shutdown_wait_loop_s": DRAIN_CHECK_PERIOD_S,
        "graceful_shutdown_timeout_s": settings.drain_timeout_ms / 1000 + LAST_ANSWERS_S,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": settings.heartbeat_timeout_ms / 1000,
        "logging_config": {"enable_access_log": False},  # the service has its own
    }
    if placement.max_replicas_per_node is not None:
        options["max_replicas_per_node"] = placement.max_replicas_per_node
    return options


class Replica:
    """One replica; Ray wraps it, calls it with each request as ASGI, and runs the application's lifespan around it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; called once, on the event loop that it will live on. Raises StartupError."""
        context = serve.get_replica_context()
        settings = _within(self._settings, cores=_assigned_cores())
        configure_logging(level=settings.log_level, form=settings.log_format, process=context.replica_id.unique_id)
        require_tracing(settings)
        model = select_model(settings.repository, name=settings.model, version=settings.model_version)
        device = resolve_device(settings.device)
        self._metrics = ReplicaMetrics(buckets=settings.buckets_for(device))
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started = started
        app = create_app(
            settings,
            model,
            in_process_engine(settings, model, device=device, observer=self._metrics),
            metrics=self._metrics,
            on_ready=lambda: started.set_result(None),
            on_failed_start=started.set_exception,
        )
        self._service = app.state.service
        return app

    async def check_health(self) -> None:
        """Wait until the model is loaded, and raise while the engine is not well: Ray then replaces the replica.

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


def _within(settings: Settings, *, cores: int) -> Settings:
    """Return the settings with the threads that they leave open set to the replica's part of the node."""
    return settings.model_copy(
        update={"threads": settings.threads or cores, "decode_threads": settings.decode_threads or cores}
    )
