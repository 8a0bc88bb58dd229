"""`POST /v1/features`: any outputs of the model, as JSON, a NumPy archive or raw bytes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.calls.inference import Inferred
from service.calls.large import in_thread_if_large
from service.calls.tensors import Tensor, as_raw, narrowed
from service.calls.upload import Upload
from service.engine.types import Answer
from service.errors import BadImages, InvalidParameter
from service.http.answers.negotiation import negotiate
from service.http.answers.schemas import FeaturesResponse, ImageFeatures
from service.http.answers.tensors import as_base64, as_json, as_npz
from service.http.context import context_of
from service.http.direct import DirectRoute
from service.http.inference import infer
from service.http.openapi import components as openapi
from service.http.parameters import FeaturesParameters
from service.http.responses import JSON, MakeAnswer, ModelAnswer, json_answer
from service.http.service import Service, ServiceDependency
from service.model.manifest import EMBEDDING, Manifest, unknown_outputs
from service.model.postprocess import l2_normalized
from service.serving.served import Served
from service.telemetry.stages import Stages

NPZ = "application/x-npz"
RAW = "application/octet-stream"
router = APIRouter(route_class=DirectRoute)


@router.post(
    "/v1/features",
    operation_id="features",
    summary="Extract features",
    tags=["inference"],
    response_class=Response,
    responses={200: openapi.FEATURES_ANSWER, **openapi.INFERENCE_PROBLEMS},
    openapi_extra=openapi.IMAGES_BODY,
)
async def features(
    request: Request, service: ServiceDependency, parameters: Annotated[FeaturesParameters, Query()]
) -> Response:
    """Answer with the outputs asked for, in the form that Accept asks for.

    `application/json`: one result an image. `application/x-npz`: one array an output, batch first.
    `application/octet-stream`: the little-endian bytes of exactly one output, batch first, its shape in
    `X-Tensor-Shape`. With `on_error=skip` the last two hold the good images alone, and say which those are: the
    archive in an array `index`, the raw form in `X-Image-Index`; they answer 422 where no image is good.
    """
    form = negotiate(context_of(request).headers.get("accept"), (JSON, NPZ, RAW))
    if form == JSON:
        return await features_in_json(request, service, parameters)
    served, outputs, inferred = await _infer(request, service, parameters, form)
    if not inferred.answers:
        raise BadImages(inferred.faults)
    return await in_thread_if_large(
        _size_bytes(inferred),
        lambda: _binary(context_of(request).stages, served, inferred, outputs, parameters, form),
    )


async def features_in_json(
    request: Request,
    service: Service,
    parameters: FeaturesParameters,
    *,
    images: Sequence[Upload] | None = None,
    make_answer: MakeAnswer[ImageFeatures] = FeaturesResponse,
) -> Response:
    """Answer with the features of a request's images: those in its body, or `images` where that was read already."""
    served, outputs, inferred = await _infer(request, service, parameters, JSON, images)
    render = as_base64 if parameters.encoding == "base64" else as_json

    def result(image: Upload) -> ImageFeatures:
        tensors = _finished(inferred.answers[image.index], outputs, parameters)
        rendered = {name: render(tensor) for name, tensor in tensors.items()}
        return ImageFeatures(image.index, image.filename, rendered)

    return await json_answer(request, served, inferred, result, make_answer, size_bytes=_size_bytes(inferred))


async def _infer(
    request: Request,
    service: Service,
    parameters: FeaturesParameters,
    form: str,
    images: Sequence[Upload] | None = None,
) -> tuple[Served, tuple[str, ...], Inferred[Upload]]:
    """Return what answers, the outputs asked for, each once, and what became of the images."""
    outputs = tuple(dict.fromkeys(parameters.outputs))
    served = service.resolve(context_of(request), *parameters.model_and_version)
    _check_outputs(served.manifest, outputs, parameters, form)
    inferred = await infer(
        request,
        service,
        served,
        parameters,
        outputs=frozenset(outputs),
        preprocessing=served.preprocessing_at(parameters.size),
        images=images,
    )
    return served, outputs, inferred


def _size_bytes(inferred: Inferred[Upload]) -> int:
    return sum(array.nbytes for answer in inferred.answers.values() for array in answer.outputs.values())


def _check_outputs(manifest: Manifest, outputs: tuple[str, ...], parameters: FeaturesParameters, form: str) -> None:
    if lacking := unknown_outputs(outputs, manifest.output_names):
        raise InvalidParameter(f"outputs: {lacking}.")
    if parameters.normalize and outputs != (EMBEDDING,):
        raise InvalidParameter(f"normalize: only possible where outputs is {EMBEDDING} alone.")
    if form == RAW and len(outputs) != 1:
        raise InvalidParameter(f"outputs: {RAW} carries exactly one output; {NPZ} carries several.")


def _finished(answer: Answer, outputs: tuple[str, ...], parameters: FeaturesParameters) -> dict[str, Tensor]:
    """Return the outputs of one image as they are asked for; raises InvalidParameter where float16 is too narrow."""
    arrays = {name: answer.outputs[name] for name in outputs}
    if parameters.normalize:
        arrays = {name: l2_normalized(array) for name, array in arrays.items()}
    return {name: narrowed(array, parameters.dtype) for name, array in arrays.items()}


def _binary(
    stages: Stages,
    served: Served,
    inferred: Inferred[Upload],
    outputs: tuple[str, ...],
    parameters: FeaturesParameters,
    form: str,
) -> Response:
    """Return an archive of several outputs, or the bytes of one; the images that have answers are the batch."""
    began_s = time.monotonic()
    tensors = [_finished(answer, outputs, parameters) for answer in inferred.answers.values()]
    batches = {name: np.stack([named[name] for named in tensors]) for name in outputs}
    good, skips = list(inferred.answers), parameters.on_error == "skip"
    headers = {}
    if form == NPZ:
        index = {"index": np.asarray(good, dtype="<i8")} if skips else {}
        body = as_npz({**batches, **index})
    else:
        (batch,) = batches.values()
        body = as_raw(batch)
        headers = {"X-Tensor-Shape": ",".join(map(str, batch.shape)), "X-Tensor-Dtype": str(batch.dtype)}
        if skips:
            headers["X-Image-Index"] = ",".join(map(str, good))
    stages.postprocessed(began_s)
    return ModelAnswer(body, media_type=form, served=served, stages=stages, headers=headers)
