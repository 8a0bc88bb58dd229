"""What the service is told of an exported model: the manifest, made from the job and from what came of it."""

from __future__ import annotations

import datetime
from importlib import metadata
from pathlib import Path

import onnx

from export.graph import CLASS_OUTPUT, INPUT_NAME, STAGE_NAMES
from export.job import MAX_SIDE, ExportJob
from export.source import LoadedModel
from export.steps import in_order
from export.targets import contrib_operators
from export.verify import BATCH_SIZES, PROVIDER, TOLERANCES, Difference
from models.config import DATConfig
from models.variants import Variant
from service.model.directory import sha256_of
from service.model.explain_record import ExplainRecord
from service.model.manifest import (
    FileRecord,
    FusedRecord,
    InputRecord,
    Manifest,
    OutputRecord,
    PreprocessRecord,
    QuantizationRecord,
    VerificationRecord,
)

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")


def manifest_of(
    job: ExportJob,
    version: int,
    loaded: LoadedModel,
    graph: onnx.ModelProto,
    differences: tuple[Difference, ...],
    directory: Path,
    quantization: QuantizationRecord | None,
    explain: ExplainRecord | None,
    fused: FusedRecord | None,
) -> Manifest:
    """Return the manifest of the files in `directory`, whose graph differs from torch's as given."""
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
        graph_steps=tuple(map(str, in_order(job.steps))),
        num_classes=loaded.model.config.num_classes,
        input=_input_record(job),
        preprocess=PreprocessRecord(
            resize_height=resized(job.input_size[0], variant),
            resize_width=resized(job.input_size[1], variant),
            mean=variant.mean,
            std=variant.std,
        ),
        outputs=_output_records(loaded.model.config, graph, differences),
        weights_source=loaded.weights_source,
        weights_sha256=loaded.weights_sha256,
        files={path.name: _file_record(path) for path in sorted(directory.iterdir())},
        verification=VerificationRecord(
            batch_sizes=BATCH_SIZES,
            provider=PROVIDER,
            tolerance=TOLERANCES[job.precision].rms,
            quantization=quantization,
        ),
        temperature=job.temperature,
        explain=explain,
        fused=fused,
        exporter={tool: metadata.version(tool) for tool in _TOOLS},
    )


def _input_record(job: ExportJob) -> InputRecord:
    height, width = job.input_size
    if not job.dynamic_size:
        return InputRecord(name=INPUT_NAME, height=height, width=width)
    config = job.variant.config
    return InputRecord(
        name=INPUT_NAME,
        height=height,
        width=width,
        dynamic_size=True,
        size_multiple=config.size_multiple,
        min_side=config.min_side,
        max_side=MAX_SIDE,
    )


def resized(side: int, variant: Variant) -> int:
    """Return the length that an image's side is resized to before `side` pixels are cropped, as the variant's ratio."""
    return round(side * variant.resize / variant.input_size)


def _file_record(path: Path) -> FileRecord:
    return FileRecord(sha256=sha256_of(path), size_bytes=path.stat().st_size)


def _output_records(
    config: DATConfig, graph: onnx.ModelProto, differences: tuple[Difference, ...]
) -> tuple[OutputRecord, ...]:
    strides = {name: config.stride(stage) for stage, name in enumerate(STAGE_NAMES)}
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
            kind="map" if each.name in strides else "vector",
            shape=shapes[each.name],
            stride=strides.get(each.name),
            classes=each.name == CLASS_OUTPUT,
            max_abs_difference=each.max_abs,
            reference_std=each.reference_std,
            rms_difference=each.rms,
        )
        for each in differences
    )
