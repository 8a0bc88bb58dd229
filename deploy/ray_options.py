"""What is asked of the service on Ray, and what that makes of Ray's options; Ray itself is not needed to say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import SettingsError
from service.settings import Settings, load_settings, option_of

NAME = "dat"
"""Of the deployment, in Ray's status, logs and metrics."""
OTHER_REQUESTS = 64
"""Requests beyond the queue's that a replica takes from Ray: probes, metrics, and those that it is about to refuse."""
HEALTH_CHECK_PERIOD_S = 2.0
"""Ray replaces a replica after three failed checks."""
DRAIN_CHECK_PERIOD_S = 0.5
ENGINE_END_S = 5.0
"""Beyond the drain time, for the engine's end."""
RETRY_AFTER_S = 1.0
"""What Ray says to those who find its own queue full."""
_NOT_ON_RAY = {
    "workers": "which has its own replicas",
    "devices": "which gives each replica its own",
    "instances": "which has its own replicas",
    "tls_certificate": "whose http_options have it",
    "model_control": "whose replicas would not stay alike: deploy the change",
    "watch_repository": "whose replicas would not stay alike: deploy the change",
}
"""Settings of what Ray does in the service's place."""


class Placement(BaseModel):
    """How many replicas there are, and what each takes of a node; the arguments that are no settings of the service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] | None = None
    """Requests in flight a replica at which Ray adds no more and takes none away; two of the largest batches."""
    upscale_delay_s: Annotated[float, Field(ge=0)] = 10.0
    """How long there must be too many requests before Ray adds replicas."""
    downscale_delay_s: Annotated[float, Field(ge=0)] = 300.0
    """How long there must be too few before Ray takes replicas away."""
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


def read_arguments(arguments: Mapping[str, Any]) -> tuple[Placement, Settings]:
    """Return what `arguments` and the environment say; raises SettingsError.

    The device `auto` becomes CUDA where replicas are given GPUs, and else the CPU.
    """
    placed = {name: value for name, value in arguments.items() if name in Placement.model_fields}
    options = {name: value for name, value in arguments.items() if name not in Placement.model_fields}
    unknown = sorted(options.keys() - Settings.model_fields.keys())
    if unknown:
        raise SettingsError(f"unknown argument{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}")
    settings = load_settings(options)
    for each in _all_of(settings):
        for name, why in _NOT_ON_RAY.items():
            if getattr(each, name) != Settings.model_fields[name].default:
                raise SettingsError(f"{option_of(name)} is not for Ray, {why}")
        if ":" in each.device:
            raise SettingsError(f"{option_of('device')}: Ray gives each replica its own GPU; name no number")
    try:
        placement = Placement.model_validate(placed)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise SettingsError("; ".join(problem.removeprefix(": Value error, ") for problem in problems)) from error
    if settings.device == "auto":  # a GPU that Ray has set nobody aside for would be shared without anyone's knowing
        settings = settings.model_copy(update={"device": "cuda" if placement.num_gpus else "cpu"})
    return placement, settings


def _all_of(settings: Settings) -> list[Settings]:
    """Return the settings of all models, and those of each model that the settings' file has a table for."""
    return [settings, *map(settings.of_model, settings.models_with_tables)]


def deployment_options(placement: Placement, settings: Settings) -> dict[str, Any]:
    """Return Ray's options of the deployment."""
    each_of = _all_of(settings)
    on_gpu = any(each.device not in ("cpu", "auto") for each in each_of)
    largest_batch = max(each.buckets_for(each.device)[-1] for each in each_of)
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
            "upscale_delay_s": placement.upscale_delay_s,
            "downscale_delay_s": placement.downscale_delay_s,
        },
        "max_ongoing_requests": settings.max_queued_images + OTHER_REQUESTS,
        "max_queued_requests": settings.max_queued_images,
        "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_AFTER_S},
        "graceful_shutdown_wait_loop_s": DRAIN_CHECK_PERIOD_S,
        "graceful_shutdown_timeout_s": settings.drain_timeout_ms / 1000 + ENGINE_END_S,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": settings.heartbeat_timeout_ms / 1000,
        "logging_config": {"enable_access_log": False},  # the service has its own
    }
    if placement.max_replicas_per_node is not None:
        options["max_replicas_per_node"] = placement.max_replicas_per_node
    return options


def within(settings: Settings, *, cores: int) -> Settings:
    """Return the settings with the threads that they leave open set to the replica's part of the node."""
    return settings.model_copy(
        update={"threads": settings.threads or cores, "decode_threads": settings.decode_threads or cores}
    )
