"""The export from beginning to end: load, trace, write, verify, put in place.

Invariant: a directory appears in the repository only after its graph has been compared with the torch model in every
output and the service's own reader has accepted it.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final

import onnx

from export.calibration import Calibration, judge, photos, samples, service_preprocessing
from export.errors import ExportError
from export.graph import INPUT_NAME, SIZE_MULTIPLE, Normalisation, export_graph
from export.labels import bundled_labels, labels_from_file, labels_table, numbered_labels
from export.precision import half
from export.progress import Progress
from export.publish import check_free, new_version, next_version
from export.quantization import quantize
from export.sampling import Strategy, select_strategy
from export.source import LoadedModel, from_file, from_seed
from export.targets import Target, contrib_operators, find_target
from export.verify import BATCH_SIZES, PROVIDER, TOLERANCES, Difference, differences_table, verify
from models.variants import Variant
from service.repository import (
    LABELS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    FileRecord,
    InputRecord,
    Label,
    Manifest,
    OutputRecord,
    PreprocessRecord,
    QuantizationRecord,
    VerificationRecord,
    open_model,
    sha256_of,
)

PRECISIONS: Final = ("fp32", "fp16", "int8")
"""Precisions that can be exported."""

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")


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
    dynamic_size: bool = False
    calibration: Path | None = None
    """A folder of photos for int8."""

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
        """The opset asked for, or the target's."""
        return self.opset if self.opset is not None else self.target.opset

    @property
    def strategy(self) -> Strategy:
        """The sampling strategy asked for, or the target's; ExportError where there is none for the opset."""
        return select_strategy(self.sampling if self.sampling is not None else self.target.sampling, self.graph_opset)

    @property
    def normalisation(self) -> Normalisation:
        """What the graph does to pixels first."""
        return Normalisation(self.variant.mean, self.variant.std)


def run(job: ExportJob, progress: Progress) -> Path:
    """Do the export and return the new model directory.

    Raises ExportError, and the errors of models and service.repository, each a sentence for the user.
    """
    _check_job(job)
    version = job.version if job.version is not None else next_version(job.repository, job.model_name)
    check_free(job.repository, job.model_name, version)
    with progress.step(f"loading {job.variant.name}"):
        loaded = _load(job)
    labels = _labels(job, loaded.model.config.num_classes, progress)
    with progress.step(f"exporting the graph ({_form(job)})"):
        graph = _graph(job, loaded)
    with new_version(job.repository, job.model_name, version) as directory:
        with progress.step("writing the model"):
            onnx.save(graph, directory / MODEL_FILE)
            (directory / LABELS_FILE).write_text(labels_table(labels), encoding="utf-8")
        with progress.step(f"verifying against torch at batch {', '.join(map(str, BATCH_SIZES))}"):
            differences = verify(
                directory / MODEL_FILE,
                loaded.model,
                job.normalisation,
                image_sizes=_verified_sizes(job),
                precision="fp16" if job.precision == "fp16" else "fp32",
            )
        progress.note(differences_table(differences))
        quantization = None
        if job.precision == "int8":
            graph, quantization, differences = _quantize(job, loaded, graph, directory / MODEL_FILE, progress)
        manifest = _manifest(job, version, loaded, graph, differences, directory, quantization)
        (directory / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        open_model(directory)
    return job.repository / job.model_name / str(version)


def _form(job: ExportJob) -> str:
    return f"target {job.target.name}, opset {job.graph_opset}, sampling {job.strategy.name}, {job.precision}"


def _graph(job: ExportJob, loaded: LoadedModel) -> onnx.ModelProto:
    """Return the graph in the form that the job's target takes, in fp16 or fp32; int8 is made of the latter.

    What is tuned for the CPU has no place in the other precisions: integer products are found as MatMul nodes, and
    float16 is for GPUs.
    """
    graph = export_graph(
        loaded.model,
        job.normalisation,
        strategy=job.strategy,
        opset=job.graph_opset,
        example_size=job.input_size,
        tuned_for_cpu=job.target.tuned_for_cpu and job.precision == "fp32",
    )
    if job.precision == "fp16":
        graph = half(graph)
    job.target.check(graph)
    return graph


def _quantize(
    job: ExportJob, loaded: LoadedModel, graph: onnx.ModelProto, path: Path, progress: Progress
) -> tuple[onnx.ModelProto, QuantizationRecord, tuple[Difference, ...]]:
    """Write the verified graph anew in int8, and return it with what that changed."""
    calibration = _calibration(job, progress)
    with progress.step(f"quantising to int8 with {len(calibration.images)} of {calibration.source}"):
        graph = quantize(graph, calibration.images)
        onnx.save(graph, path)
    with progress.step(f"judging int8 by the other {len(calibration.held_out)}"):
        error = judge(path, loaded.model, job.normalisation, calibration.held_out)
    progress.note(f"  {error}")
    record = QuantizationRecord(
        calibration=calibration.source,
        calibration_images=len(calibration.images),
        held_out_images=len(calibration.held_out),
        logits_error=error.logits_error,
        top1_agreement=error.top1_agreement,
    )
    return graph, record, error.differences


def _calibration(job: ExportJob, progress: Progress) -> Calibration:
    if job.calibration is None:
        progress.note(
            "int8 without photos: ranges come from seeded sample images; give photos of your own with --calibration, "
            "and check the accuracy with others"
        )
        return samples(job.input_size)
    height, width = job.input_size
    resize = resized(height, job.variant), resized(width, job.variant)
    with progress.step(f"reading the photos in {job.calibration}"):
        return photos(job.calibration, service_preprocessing(resize, job.input_size))


def _check_job(job: ExportJob) -> None:
    """Raise ExportError for what can be refused before anything is loaded."""
    _ = job.strategy  # raises where there is none
    job.target.check_opset(job.graph_opset)
    if job.precision not in PRECISIONS:
        raise ExportError(f"precision {job.precision} is not available; available: {', '.join(PRECISIONS)}")
    if job.precision == "int8" and job.target.name != "cpu":
        raise ExportError(f"int8 is for CPUs, and the target is {job.target.name}; give --target cpu")
    if (job.weights is None) == (job.seed is None):
        raise ExportError("give either a weight file or a seed for random weights")
    if job.calibration is not None and job.precision != "int8":
        raise ExportError(f"--calibration is for --precision int8 alone, not {job.precision}")
    config = job.variant.config
    if job.dynamic_size and not config.can_be_dynamic:
        raise ExportError(
            f"{job.variant.name} cannot have a dynamic size: only second-generation models can, since the windows and "
            "position tables of the first belong to one size; leave --dynamic-size out and choose --image-size"
        )
    if job.window is not None and not any({"L", "S"} & set(stage.layers) for stage in config.stages):
        raise ExportError(f"{job.variant.name} has no window attention that --window-size could apply to")
    if job.dynamic_size:
        config.check_size(job.input_size)
        if min(job.input_size) < config.min_dynamic_side:
            raise ExportError(
                f"{_size(job.input_size)} is too small for a dynamic size of {job.variant.name}: "
                f"sides must be at least {config.min_dynamic_side}"
            )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _load(job: ExportJob) -> LoadedModel:
    image_size = None if job.dynamic_size else job.input_size
    if job.weights is not None:
        return from_file(job.weights, job.variant.config, image_size=image_size, window=job.window)
    assert job.seed is not None  # _check_job
    return from_seed(job.seed, job.variant.config, image_size=image_size, window=job.window)


def _labels(job: ExportJob, num_classes: int, progress: Progress) -> tuple[Label, ...]:
    if job.labels is not None:
        return labels_from_file(job.labels, num_classes)
    labels = bundled_labels(job.variant.name, num_classes)
    if labels is None:
        progress.note(f"no names are known for {num_classes} classes: numbering them; --labels gives them names")
        labels = numbered_labels(num_classes)
    return labels


def _verified_sizes(job: ExportJob) -> tuple[tuple[int, int], ...]:
    """Return the image sizes to compare at: the job's, and for a dynamic graph smaller, larger and oblong ones."""
    if not job.dynamic_size:
        return (job.input_size,)
    height, width = job.input_size
    smallest = job.variant.config.min_dynamic_side
    return (height, width), (smallest, smallest), (height + SIZE_MULTIPLE, smallest), (smallest, width + SIZE_MULTIPLE)


def _manifest(
    job: ExportJob,
    version: int,
    loaded: LoadedModel,
    graph: onnx.ModelProto,
    differences: tuple[Difference, ...],
    directory: Path,
    quantization: QuantizationRecord | None,
) -> Manifest:
    height, width = job.input_size
    variant = job.variant
    return Manifest(
        name=job.model_name,
        version=version,
        variant=variant.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        precision=job.precision,
        opset=job.graph_opset,
        sampling=job.strategy.name,
        target=job.target.name,
        contrib_operators=contrib_operators(graph),
        num_classes=loaded.model.config.num_classes,
        input=InputRecord(
            name=INPUT_NAME,
            height=height,
            width=width,
            dynamic_size=job.dynamic_size,
            size_multiple=SIZE_MULTIPLE,
        ),
        preprocess=PreprocessRecord(
            resize_height=resized(height, variant),
            resize_width=resized(width, variant),
            mean=variant.mean,
            std=variant.std,
        ),
        outputs=_output_records(graph, differences),
        weights_source=loaded.weights_source,
        weights_sha256=loaded.weights_sha256,
        files={name: _file_record(directory / name) for name in (MODEL_FILE, LABELS_FILE)},
        verification=VerificationRecord(
            batch_sizes=BATCH_SIZES,
            provider=PROVIDER,
            tolerance=TOLERANCES[job.precision].rms,
            quantization=quantization,
        ),
        exporter={tool: metadata.version(tool) for tool in _TOOLS},
    )


def resized(side: int, variant: Variant) -> int:
    """Return the length that an image's side is resized to before `side` pixels are cropped, as the variant's ratio."""
    return round(side * variant.resize / variant.input_size)


def _file_record(path: Path) -> FileRecord:
    return FileRecord(sha256=sha256_of(path), size_bytes=path.stat().st_size)


def _output_records(graph: onnx.ModelProto, differences: tuple[Difference, ...]) -> tuple[OutputRecord, ...]:
    shapes = {
        output.name: tuple(
            dimension.dim_value if dimension.HasField("dim_value") else None
            for dimension in output.type.tensor_type.shape.dim[1:]
        )
        for output in graph.graph.output
    }
    return tuple(
        OutputRecord(
            name=each.name,
            shape=shapes[each.name],
            max_abs_difference=each.max_abs,
            reference_std=each.reference_std,
            rms_difference=each.rms,
        )
        for each in differences
    )
