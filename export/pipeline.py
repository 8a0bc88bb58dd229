"""The export from beginning to end: load, trace, write, verify, put in place.

Invariant: a directory appears in the repository only after its graph has been compared with the torch model in every
output and the service's own reader has accepted it.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from export.calibration import Calibration, judge, photos, samples, service_preprocessing
from export.explain import explain_graph, explain_record, verify_explain
from export.fused import BATCH_SIZES as FUSED_BATCH_SIZES
from export.fused import fused_graph, fused_record, verify_fused
from export.graph import export_graph
from export.islands import islands
from export.job import ExportJob, check_job
from export.labels import bundled_labels, labels_from_file, labels_table, numbered_labels
from export.manifest import manifest_of, resized
from export.operator_library import check_library, operator_library
from export.precision import half
from export.progress import Progress
from export.quantization import quantize
from export.skip_norm import fuse_skip_norms
from export.source import LoadedModel, from_file, from_seed
from export.steps import Step, in_order
from export.verify import BATCH_SIZES, Difference, check_shapes, differences_table, verify
from service.model.directory import Label, open_model
from service.model.explain_record import ExplainRecord
from service.model.manifest import (
    EXPLAIN_FILE,
    FUSED_FILE,
    LABELS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    FusedRecord,
    QuantizationRecord,
)
from service.model.publish import check_free, new_version, next_version


def run(job: ExportJob, progress: Progress) -> Path:
    """Do the export and return the new model directory.

    Raises ExportError, and the errors of models and service.model.directory, each a sentence for the user.
    """
    check_job(job)
    if job.fused:
        check_library()
    version = job.version if job.version is not None else next_version(job.repository, job.model_name)
    check_free(job.repository, job.model_name, version)
    with progress.step(f"loading {job.variant.name}"):
        loaded = _load(job)
    for note in loaded.notes:
        progress.note(note)
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
        explain = _explain(job, loaded, directory / EXPLAIN_FILE, progress)
        fused = _fused(job, loaded, directory / FUSED_FILE, progress) if job.fused else None
        manifest = manifest_of(job, version, loaded, graph, differences, directory, quantization, explain, fused)
        (directory / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        check_shapes(open_model(directory), _verified_sizes(job))
    return job.repository / job.model_name / str(version)


def _form(job: ExportJob) -> str:
    form = f"target {job.target.name}, opset {job.graph_opset}, sampling {job.strategy.name}, {job.precision}"
    return f"{form}, steps {', '.join(in_order(job.steps))}" if job.steps else form


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
        steps=job.steps,
    )
    if job.precision == "fp16":
        graph = half(graph, islands(half_weights=Step.HALF_WEIGHTS in job.steps))
    if Step.SKIP_NORM in job.steps:
        graph = fuse_skip_norms(graph)
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


def _explain(job: ExportJob, loaded: LoadedModel, path: Path, progress: Progress) -> ExplainRecord | None:
    """Write and verify the graph of where the model looks; None where it is left out, or nothing is sampled."""
    if not job.explain:
        progress.note("without explain.onnx, as asked: the service will not say where the model looks")
        return None
    layers = len(loaded.model.deformable_layers)
    if not layers:
        progress.note("without explain.onnx: no layer of this model samples")
        return None
    with progress.step(f"exporting the graph of where {layers} layers look (fp32)"):
        graph = explain_graph(job, loaded.model)
        onnx.save(graph, path)
    with progress.step(f"verifying it against torch at batch {', '.join(map(str, BATCH_SIZES))}"):
        differences = verify_explain(path, loaded.model, job.normalisation, image_sizes=_verified_sizes(job))
    record = explain_record(loaded.model, job.input_size, differences)
    worst = max(layer.position_difference for layer in record.layers)
    worst_attention = max(layer.attention_difference for layer in record.layers)
    progress.note(f"  largest difference of a position {worst:.3e}, of an attention {worst_attention:.3e}")
    return record


def _fused(job: ExportJob, loaded: LoadedModel, path: Path, progress: Progress) -> FusedRecord:
    """Write and verify the graph of the operators of the domain `dat`, and return what the manifest says of it."""
    with operator_library() as library:
        with progress.step("exporting the fused graph"):
            graph = fused_graph(loaded.model, job.normalisation, strategy=job.strategy, opset=job.graph_opset)
            job.target.check(graph, fused=True)
            onnx.save(graph, path)
        with progress.step(f"verifying it against torch at batch {', '.join(map(str, FUSED_BATCH_SIZES))}"):
            differences = verify_fused(path, library, loaded.model, job.normalisation)
    progress.note(differences_table(differences))
    return fused_record(graph, differences)


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
        calibration = photos(job.calibration, service_preprocessing(resize, job.input_size))
    if calibration.left_out:
        progress.note(f"left out of {job.calibration}: {calibration.left_out}")
    return calibration


def _load(job: ExportJob) -> LoadedModel:
    image_size = None if job.dynamic_size else job.input_size
    if job.weights is not None:
        return from_file(job.weights, job.variant.config, image_size=image_size, window=job.window, key=job.weights_key)
    assert job.seed is not None  # check_job
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
    """Return the image sizes to compare at: the job's, and for a dynamic graph the smallest, larger and oblong ones."""
    if not job.dynamic_size:
        return (job.input_size,)
    height, width = job.input_size
    smallest, step = job.variant.config.min_side, job.variant.config.size_multiple
    return (height, width), (smallest, smallest), (height + step, smallest), (smallest, width + 3 * step)
