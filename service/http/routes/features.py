"""`POST /v1/features`: any outputs of the model, as JSON, a NumPy archive or raw bytes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray
from starlette.responses import Response

from service.errors import BadImages, InvalidParameter
from service.http.answers.negotiation import negotiate
from service.http.answers.tensors import Tensor, as_base64, as_json_text, as_npz, as_raw, narrowed
from service.http.bodies.uploads import Upload
from service.http.direct import DirectRoute
from service.http.inference import Inferred, infer
from service.http.openapi import parts as openapi
from service.http.parameters import FeaturesParameters
from service.http.responses import (
    JSON,
    answer_headers,
    failed_image,
    in_thread_if_large,
    rendered_answer,
    timings_ms,
)
from service.http.service import Service, ServiceDependency
from service.model.directory import Manifest
from service.model.postprocess import l2_normalized

NPZ = "application/x-npz"
RAW = "application/octet-stream"
EMBEDDING = "embedding"

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
    outputs = tuple(dict.fromkeys(parameters.outputs))
    form = negotiate(request.headers.get("accept"), (JSON, NPZ, RAW))
    _check_outputs(service.model.manifest, outputs, parameters, form)
    inferred = await infer(request, service, parameters, outputs=frozenset(outputs))
    if form != JSON and not inferred.answers:
        raise BadImages(inferred.faults)
    size_bytes = sum(array.nbytes for answer in inferred.answers.values() for array in answer.outputs.values())
    return await in_thread_if_large(
        size_bytes, lambda: _response(request, service, inferred, outputs, parameters, form)
    )


def _check_outputs(manifest: Manifest, outputs: tuple[str, ...], parameters: FeaturesParameters, form: str) -> None:
    known = [record.name for record in manifest.outputs]
    unknown = [name for name in outputs if name not in known]
    if unknown:
        raise InvalidParameter(f"outputs: the model has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}.")
    if parameters.normalize and outputs != (EMBEDDING,):
        raise InvalidParameter(f"normalize: only possible where outputs is {EMBEDDING} alone.")
    if form == RAW and len(outputs) != 1:
        raise InvalidParameter(f"outputs: {RAW} carries exactly one output; {NPZ} carries several.")


def _response(
    request: Request,
    service: Service,
    inferred: Inferred[Upload],
    outputs: tuple[str, ...],
    parameters: FeaturesParameters,
    form: str,
) -> Response:
    began_s = time.monotonic()
    tensors = {
        index: {name: _finished(answer.outputs[name], parameters) for name in outputs}
        for index, answer in inferred.answers.items()
    }
    postprocess_s = time.monotonic() - began_s
    timings = timings_ms(request, inferred, postprocess_s=postprocess_s)
    if form == JSON:
        return rendered_answer(request, service, _results(inferred, tensors, parameters.encoding), timings)
    headers = answer_headers(service, timings)
    batches = {name: np.stack([named[name] for named in tensors.values()]) for name in outputs}
    good = list(tensors)
    if form == NPZ:
        index = {"index": np.asarray(good, dtype="<i8")} if parameters.on_error == "skip" else {}
        return Response(as_npz({**batches, **index}), media_type=NPZ, headers=headers)
    (batch,) = batches.values()
    headers["X-Tensor-Shape"] = ",".join(map(str, batch.shape))
    headers["X-Tensor-Dtype"] = str(batch.dtype)
    if parameters.on_error == "skip":
        headers["X-Image-Index"] = ",".join(map(str, good))
    return Response(as_raw(batch), media_type=RAW, headers=headers)


def _finished(output: NDArray[np.float32], parameters: FeaturesParameters) -> Tensor:
    return narrowed(l2_normalized(output) if parameters.normalize else output, parameters.dtype)


def _results(inferred: Inferred[Upload], tensors: dict[int, dict[str, Tensor]], encoding: str) -> Iterator[str]:
    """Yield each image's result as JSON, as `FeaturesResponse` has it.

    The numbers are rendered row by row: one call for the whole would hold the interpreter for seconds where the
    features are large.
    """
    render = as_base64 if encoding == "base64" else as_json_text
    for upload in inferred.images:
        if upload.index in inferred.faults:
            yield failed_image(upload, inferred.faults[upload.index]).model_dump_json()
        else:
            named = ",".join(f'"{name}":{render(tensor)}' for name, tensor in tensors[upload.index].items())
            yield f'{{"index":{upload.index},"filename":{json.dumps(upload.filename)},"features":{{{named}}}}}'
