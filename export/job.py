"""What is to be exported, and what of it can be refused before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from export.errors import ExportError
from export.graph import Normalisation
from export.sampling import Strategy, select_strategy
from export.steps import STEPS, Step, in_order, min_opset, parse_steps
from export.targets import Target, find_target
from models.variants import Variant
from service.model.manifest import MAX_TEMPERATURE, MIN_TEMPERATURE

MAX_SIDE: Final = 2048
"""The largest side of a dynamic size: the longest that the published pipelines let an image have."""
PRECISIONS: Final = ("fp32", "fp16", "int8")
"""Precisions that can be exported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """What to export and where to put it.

    Exactly one of `weights`, a file, and `seed`, for random weights, is given. `image_size` is height and width, by
    default the variant's own; with `dynamic_size` it is the size that the service will send. `target` is by default
    what the machine has; it decides the sampling strategy and the opset where they are left open.
    """

    variant: Variant
    repository: Path
    weights: Path | None = None
    weights_key: str | None = None
    """Where in the file the weights lie, such as `state_dict_ema`; None for wherever they fit."""
    seed: int | None = None
    name: str | None = None
    version: int | None = None
    precision: str = "fp32"
    image_size: tuple[int, int] | None = None
    window: int | None = None
    labels: Path | None = None
    target: Target = field(default_factory=lambda: find_target(None))
    sampling: str | None = None
    opset: int | None = None
    graph_steps: str | None = None
    """Names of graph steps with commas between, or `all`; None for the target's."""
    dynamic_size: bool = False
    temperature: float | None = None
    """What the service divides logits by before softmax, as `python -m service calibrate` finds it."""
    calibration: Path | None = None
    """A folder of photos for int8."""
    explain: bool = True
    """Whether to write `explain.onnx` beside the model, for answers to where it looked."""
    fused: bool = False
    """Whether to write `fused.onnx` beside the model, the same by operators of the domain `dat`."""

    @property
    def model_name(self) -> str:
        """The model's name in the repository."""
        return self.name or self.variant.name

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images that the service will send."""
        return self.image_size or (self.variant.input_size, self.variant.input_size)

    @property
    def graph_opset(self) -> int:
        """The opset asked for, or the target's, or the first that has the operators of the graph's steps."""
        return self.opset if self.opset is not None else max(self.target.opset, min_opset(self.steps))

    @property
    def steps(self) -> frozenset[Step]:
        """The graph's steps; ExportError where there are no such ones."""
        if self.graph_steps is None:
            return self.target.default_steps
        return parse_steps(self.graph_steps, self.precision)

    @property
    def strategy(self) -> Strategy:
        """The sampling strategy asked for, or the target's; ExportError where there is none for the opset."""
        return select_strategy(self.sampling if self.sampling is not None else self.target.sampling, self.graph_opset)

    @property
    def normalisation(self) -> Normalisation:
        """What the graph does to pixels first."""
        return Normalisation(self.variant.mean, self.variant.std)


def check_job(job: ExportJob) -> None:
    """Raise ExportError for what can be refused before anything is loaded."""
    _ = job.strategy  # raises where there is none
    job.target.check_opset(job.graph_opset)
    job.target.check_steps(job.steps)
    for step in in_order(job.steps):
        if job.graph_opset < STEPS[step].min_opset:
            raise ExportError(f"graph step {step} takes opset {STEPS[step].min_opset}, not {job.graph_opset}")
    if job.precision not in PRECISIONS:
        raise ExportError(f"precision {job.precision} is not available; available: {', '.join(PRECISIONS)}")
    if job.precision == "int8" and job.target.name != "cpu":
        raise ExportError(f"int8 is for CPUs, and the target is {job.target.name}; give --target cpu")
    if (job.weights is None) == (job.seed is None):
        raise ExportError("give either a weight file or a seed for random weights")
    if job.weights_key is not None and job.weights is None:
        raise ExportError("--weights-key is about a weight file: give it with --weights")
    if job.temperature is not None and not MIN_TEMPERATURE <= job.temperature <= MAX_TEMPERATURE:
        raise ExportError(
            f"--temperature {job.temperature:g} is not from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}; "
            "`python -m service calibrate` finds it"
        )
    if job.calibration is not None and job.precision != "int8":
        raise ExportError(f"--calibration is for --precision int8 alone, not {job.precision}")
    config = job.variant.config
    if job.dynamic_size and not config.can_be_dynamic:
        raise ExportError(
            f"{job.variant.name} cannot have a dynamic size: only second-generation models can, since the windows and "
            "position tables of the first belong to one size; leave --dynamic-size out and choose --image-size"
        )
    if job.fused:
        _check_fused(job)
    if job.window is not None and not any({"L", "S"} & set(stage.layers) for stage in config.stages):
        raise ExportError(f"{job.variant.name} has no window attention that --window-size could apply to")
    if job.dynamic_size:
        config.check_size(job.input_size)
        if max(job.input_size) > MAX_SIDE:
            raise ExportError(f"sides of a dynamic size are at most {MAX_SIDE}, which {max(job.input_size)} is above")


def _check_fused(job: ExportJob) -> None:
    """Raise ExportError unless there are kernels for what a fused graph of this job would hold."""
    if not job.target.has_own_operators:
        raise ExportError(
            f"--fused is for --target cuda: the operators of a fused graph have no kernels for {job.target.name}"
        )
    if job.precision != "fp16":
        raise ExportError(f"--fused is for --precision fp16, which its kernels compute in, not {job.precision}")
    if job.dynamic_size:
        raise ExportError("--fused is for one size, since its kernels are compiled for sizes; leave --dynamic-size out")
    config, own = job.variant.config, (job.variant.input_size, job.variant.input_size)
    if job.input_size != own or config.at_size(job.input_size, job.window) != config.at_size(own):
        raise ExportError(
            f"--fused is for {job.variant.name} at its own size, {own[0]}x{own[1]}, which the kernels are compiled "
            "for; leave --image-size and --window-size out"
        )
