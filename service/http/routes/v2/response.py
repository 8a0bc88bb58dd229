"""Writing an answer of the Open Inference Protocol: its JSON, and behind that the tensors asked for as bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from service.http.answers.tensors import Tensor, as_json_bytes, as_raw, check_finite, narrowed
from service.http.routes.v2.request import Call, Wanted
from service.http.routes.v2.schemas import InferOutput, InferResponse
from service.model.directory import Label, ModelDirectory
from service.model.postprocess import top_k


@dataclass(frozen=True, slots=True)
class Rendered:
    """A whole body; `json_bytes` of it are JSON, all of it where None."""

    body: bytes
    json_bytes: int | None


def render(call: Call, outputs: Mapping[str, Sequence[NDArray[np.float32]]], model: ModelDirectory) -> Rendered:
    """Return the answer to a call; `outputs` have one array an image.

    Raises InferenceFailed where what is to be text is not finite, and InvalidParameter where FP16 cannot hold it.
    """
    described, behind = zip(*(_output(wanted, outputs[wanted.name], model) for wanted in call.wanted), strict=True)
    answer: InferResponse = {
        "model_name": model.manifest.name,
        "model_version": str(model.manifest.version),
        "outputs": list(described),
    }
    if call.id is not None:
        answer = {"id": call.id, **answer}
    document = orjson.dumps(answer)
    if not any(wanted.binary for wanted in call.wanted):
        return Rendered(document, None)
    return Rendered(b"".join([document, *behind]), len(document))


def _output(wanted: Wanted, images: Sequence[NDArray[np.float32]], model: ModelDirectory) -> tuple[InferOutput, bytes]:
    """Return one output as the JSON has it, and the bytes behind that."""
    output: InferOutput
    if wanted.classes is not None:
        labels = model.labels if model.manifest.output(wanted.name).classes else ()
        best = [classification(values, wanted.classes, labels) for values in images]
        texts = [text for of_image in best for text in of_image]
        output = {"name": wanted.name, "datatype": "BYTES", "shape": [len(best), len(best[0])]}
        data = as_bytes_tensor(texts) if wanted.binary else orjson.dumps(texts)
    else:
        tensors = [narrowed(values, "float16" if wanted.datatype == "FP16" else "float32") for values in images]
        output = {"name": wanted.name, "datatype": wanted.datatype, "shape": [len(tensors), *tensors[0].shape]}
        data = b"".join(map(as_raw, tensors)) if wanted.binary else _as_flat_list(tensors)
    if wanted.binary:
        output["parameters"] = {"binary_data_size": len(data)}
        return output, data
    output["data"] = orjson.Fragment(data)
    return output, b""


def _as_flat_list(tensors: Sequence[Tensor]) -> bytes:
    """Return the JSON of all numbers in one list; raises InferenceFailed where one is not finite."""
    return b"[%b]" % b",".join(as_json_bytes(tensor.ravel())[1:-1] for tensor in tensors)


def classification(values: NDArray[np.float32], k: int, labels: Sequence[Label]) -> list[str]:
    """Return the `k` highest of values (classes,) as `value:index:label`, highest first, without labels if none."""
    check_finite(values)
    return [f"{value:f}:{index}{f':{labels[index].name}' if labels else ''}" for index, value in top_k(values, k)]


def as_bytes_tensor(values: Sequence[str]) -> bytes:
    """Return the elements of a BYTES tensor, each behind its length."""
    return b"".join(struct.pack("<I", len(data)) + data for data in (value.encode() for value in values))
