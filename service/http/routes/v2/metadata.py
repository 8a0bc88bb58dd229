"""What the server and its models are, and whether they are ready, as the protocol's clients ask.

Triton's image client wants a model with one input and one output, a vector, with the input's layout and the largest
batch in the configuration; its perf_analyzer makes its requests from the metadata and the configuration alone. Hence
both name only the outputs that a request gets by default, and a header turns the described input to image files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request

from service.http.authorization import authorized
from service.http.routes.v2 import openapi
from service.http.routes.v2.images import BYTES, INPUT
from service.http.routes.v2.path import NamedModel
from service.http.routes.v2.request import IMAGE_DATATYPE, expects_files, outputs_by_default
from service.http.routes.v2.schemas import (
    Live,
    ModelConfiguration,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    TensorMetadata,
)
from service.http.service import Service, ServiceDependency
from service.model.manifest import Manifest, OutputRecord
from service.model.sizes import sizes_of
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

probes = APIRouter(tags=["inference protocol"])
"""Without a key, as every probe."""
router = APIRouter(tags=["inference protocol"], dependencies=[Depends(authorized)])


@router.get("/v2", operation_id="v2_server_metadata", summary="Describe the server", responses=openapi.READING_ERRORS)
async def server_metadata(request: Request) -> ServerMetadata:
    """Answer with the server's name, version and extensions."""
    return ServerMetadata(name=NAME, version=request.app.version, extensions=list(EXTENSIONS))


@probes.get("/v2/health/live", operation_id="v2_live", summary="Is it alive?", responses=openapi.PLAIN_ERRORS)
async def live() -> Live:
    """Answer, which is all that there is to show."""
    return Live(live=True)


@probes.get("/v2/health/ready", operation_id="v2_ready", summary="Would it answer?", responses=openapi.READINESS_ERRORS)
async def ready(service: ServiceDependency) -> Ready:
    """Answer 200 while a request would be answered, and 503 otherwise."""
    service.check_ready()
    return Ready(ready=True)


@probes.get(
    "/v2/models/{model}/versions/{version}/ready",
    operation_id="v2_model_version_ready",
    summary="Would the version answer?",
    responses=openapi.MODEL_READINESS_ERRORS,
)
@probes.get(
    "/v2/models/{model}/ready",
    operation_id="v2_model_ready",
    summary="Would the model answer?",
    responses=openapi.MODEL_READINESS_ERRORS,
)
async def model_ready(request: Request, model: str, service: ServiceDependency) -> ModelReady:
    """Answer 200 while a request would be answered, 503 with the reason while not, and 404 where there is no such."""
    service.check_model_ready(model, request.path_params.get("version"))
    return ModelReady(name=model, ready=True)


_DESCRIBED: dict[str, Any] = {
    "responses": openapi.READING_ERRORS,
    "openapi_extra": {"parameters": [openapi.parameter_ref(IMAGE_DATATYPE)]},
}


@router.get(
    "/v2/models/{model}/versions/{version}",
    operation_id="v2_model_version_metadata",
    summary="Describe a version",
    **_DESCRIBED,
)
@router.get("/v2/models/{model}", operation_id="v2_model_metadata", summary="Describe a model", **_DESCRIBED)
async def model_metadata(request: Request, service: ServiceDependency, served: NamedModel) -> ModelMetadata:
    """Answer with a model's versions, its input and the outputs that a request gets by default."""
    versions = _versions(service, served)
    return metadata_of(served.manifest, served.settings, versions=versions, files=expects_files(request))


@router.get(
    "/v2/models/{model}/versions/{version}/config",
    operation_id="v2_model_version_config",
    summary="A version's configuration",
    **_DESCRIBED,
)
@router.get(
    "/v2/models/{model}/config", operation_id="v2_model_config", summary="A model's configuration", **_DESCRIBED
)
async def model_config(request: Request, service: ServiceDependency, served: NamedModel) -> ModelConfiguration:
    """Answer with the configuration that a Triton server would need to serve the model so."""
    versions = _versions(service, served)
    return configuration_of(served.manifest, served.settings, versions=versions, files=expects_files(request))


def _versions(service: Service, served: Served) -> list[int]:
    """Return every version of a model that takes work, the one asked for too, which may just have been replaced."""
    return sorted({served.version, *(each.version for each in service.models.served if each.name == served.name)})


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
