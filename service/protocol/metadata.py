"""What the server and its models are, as the protocol's clients ask.

Triton's image client wants a model with one input and one output, a vector, with the input's layout and the largest
batch in the configuration; its perf_analyzer makes its requests from the metadata and the configuration alone. Hence
both name only the outputs that a request gets by default, and a header turns the described input to image files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service import VERSION
from service.calls.parts import Parts
from service.model.manifest import Manifest, OutputRecord
from service.model.sizes import sizes_of
from service.protocol.call import outputs_by_default
from service.protocol.images import BYTES, INPUT, expects_files
from service.protocol.schemas import ModelConfiguration, ModelMetadata, ServerMetadata, TensorMetadata
from service.serving.served import Served
from service.settings import Settings

NAME = "dat-serve"
EXTENSIONS = (
    "classification",
    "schedule_policy",
    "model_configuration",
    "model_repository",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
PLATFORM = "onnxruntime_onnx"


def server_metadata() -> ServerMetadata:
    """Return the server's name, version and extensions."""
    return ServerMetadata(name=NAME, version=VERSION, extensions=list(EXTENSIONS))


def model_metadata(parts: Parts, served: Served, headers: Mapping[str, str]) -> ModelMetadata:
    """Return a model's versions, its input as the headers want it, and the outputs that a request gets by default."""
    versions, files = _versions(parts, served), expects_files(headers)
    return metadata_of(served.manifest, served.settings, versions=versions, files=files)


def model_configuration(parts: Parts, served: Served, headers: Mapping[str, str]) -> ModelConfiguration:
    """Return the configuration that a Triton server would need to serve the model so."""
    versions, files = _versions(parts, served), expects_files(headers)
    return configuration_of(served.manifest, served.settings, versions=versions, files=files)


def _versions(parts: Parts, served: Served) -> list[int]:
    """Return every version of a model that takes work, the one asked for too, which may just have been replaced."""
    return sorted({served.version, *(each.version for each in parts.models.served if each.name == served.name)})


def metadata_of(manifest: Manifest, settings: Settings, *, versions: Sequence[int], files: bool) -> ModelMetadata:
    """Return the metadata of one of a model's versions, whose input is described as pixels, or as files."""
    pixels = [-1, *_image_shape(manifest, settings)]
    return ModelMetadata(
        name=manifest.name,
        versions=[str(version) for version in versions],
        platform=PLATFORM,
        inputs=[TensorMetadata(name=INPUT, datatype=BYTES if files else "UINT8", shape=[-1, 1] if files else pixels)],
        outputs=[
            TensorMetadata(name=record.name, datatype="FP32", shape=[-1, *_shape(record)])
            for record in outputs_by_default(manifest, settings)
        ],
    )


def configuration_of(
    manifest: Manifest, settings: Settings, *, versions: Sequence[int], files: bool
) -> ModelConfiguration:
    """Return one version's configuration, with the names and values of Triton's model_config.proto."""
    described: dict[str, Any] = {"data_type": "TYPE_STRING", "format": "FORMAT_NONE", "dims": [1]}
    if not files:
        size = _image_shape(manifest, settings)
        described = {"data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": size}
    return {
        "name": manifest.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": list(versions)}},
        "max_batch_size": settings.max_images,
        "input": [
            {
                "name": INPUT,
                **described,
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": False,
            }
        ],
        "output": [
            {
                "name": record.name,
                "data_type": "TYPE_FP32",
                "dims": _shape(record),
                "label_filename": manifest.labels if record.classes else "",
                "is_shape_tensor": False,
            }
            for record in outputs_by_default(manifest, settings)
        ],
        "dynamic_batching": {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": round(settings.max_delay_ms * 1000),
            "preserve_ordering": False,
            "priority_levels": 2,
            "default_priority_level": 1,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": settings.timeout_ms * 1000,
                "allow_timeout_override": True,
                "max_queue_size": settings.max_queued_images,
            },
        },
        "default_model_filename": "model.onnx",
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": False},
    }


def _image_shape(manifest: Manifest, settings: Settings) -> list[int]:
    """Return the shape of an image's pixels, -1 for what varies."""
    sizes = sizes_of(manifest, settings)
    return [-1, -1, 3] if sizes.is_free else [*sizes.own, 3]


def _shape(record: OutputRecord) -> list[int]:
    """Return an output's shape without the batch axis, -1 for what varies."""
    return [-1 if side is None else side for side in record.shape]
