"""Writing an answer of the Open Inference Protocol: its JSON, and behind that the tensors asked for as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from service.calls.tensors import Tensor
from service.http.answers.tensors import as_json_bytes
from service.model.directory import ModelDirectory
from service.protocol.answers import Outputs, answered
from service.protocol.call import Call, Wanted
from service.protocol.schemas import InferOutput, InferResponse


@dataclass(frozen=True, slots=True)
class Rendered:
    """A whole body; `json_bytes` of it are JSON, all of it where None."""

    body: bytes
    json_bytes: int | None


def render(call: Call, outputs: Outputs, model: ModelDirectory) -> Rendered:
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
    answer = answered(wanted, images, model)
    output: InferOutput = {"name": answer.name, "datatype": answer.datatype, "shape": answer.shape}
    if wanted.binary:
        data = answer.as_bytes()
        output["parameters"] = {"binary_data_size": len(data)}
        return output, data
    is_text = answer.datatype == "BYTES"
    output["data"] = orjson.Fragment(orjson.dumps(answer.texts) if is_text else _as_flat_list(answer.tensors))
    return output, b""


def _as_flat_list(tensors: Sequence[Tensor]) -> bytes:
    """Return the JSON of all numbers in one list; raises InferenceFailed where one is not finite."""
    return b"[%b]" % b",".join(as_json_bytes(tensor.ravel())[1:-1] for tensor in tensors)
