"""Writing an answer of the Open Inference Protocol: its JSON, and behind that the tensors asked for as bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InferenceFailed
from service.http.answers.tensors import as_json_text, as_raw, narrowed
from service.http.routes.v2.request import Call, Wanted
from service.model.directory import ModelDirectory
from service.model.postprocess import top_k

CLASSIFIED_OUTPUT = "logits"
"""The output whose values have class names."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A whole body; `json_bytes` of it are JSON, all of it where None."""

    body: bytes
    json_bytes: int | None


@dataclass(frozen=True, slots=True)
class _Tensor:
    datatype: str
    shape: Sequence[int]
    text: str
    data: bytes


def render(call: Call, outputs: Mapping[str, NDArray[np.float32]], model: ModelDirectory) -> Rendered:
    """Return the answer to a call; `outputs` are float32, batch first.

    Raises InferenceFailed where what is to be text is not finite, and InvalidParameter where FP16 cannot hold it.
    """
    described: list[str] = []
    behind: list[bytes] = []
    for wanted in call.wanted:
        array = outputs[wanted.name]
        text, data = _rendered(wanted, array, model, behind=wanted.binary)
        described.append(text)
        behind.append(data)
    names: dict[str, Any] = {"model_name": model.manifest.name, "model_version": str(model.manifest.version)}
    if call.id is not None:
        names = {"id": call.id, **names}
    document = f'{json.dumps(names)[:-1]},"outputs":[{",".join(described)}]}}'.encode()
    if not any(wanted.binary for wanted in call.wanted):
        return Rendered(document, None)
    return Rendered(b"".join([document, *behind]), len(document))


def _rendered(wanted: Wanted, array: NDArray[np.float32], model: ModelDirectory, *, behind: bool) -> tuple[str, bytes]:
    """Return one output's JSON, and the bytes behind it."""
    if wanted.classes is not None:
        labels = [label.name for label in model.labels] if wanted.name == CLASSIFIED_OUTPUT else []
        best = [classification(row, wanted.classes, labels) for row in array]
        shape: Sequence[int] = (len(best), len(best[0]))
        datatype = "BYTES"
        values = [text for row in best for text in row]
        data = as_bytes_tensor(values) if behind else b""
        text = "" if behind else json.dumps(values)
    else:
        tensor = narrowed(array, "float16" if wanted.datatype == "FP16" else "float32")
        shape, datatype = tensor.shape, wanted.datatype
        data = as_raw(tensor) if behind else b""
        text = "" if behind else _flat_text(tensor)
    described: dict[str, Any] = {"name": wanted.name, "datatype": datatype, "shape": list(shape)}
    if behind:
        return json.dumps({**described, "parameters": {"binary_data_size": len(data)}}), data
    return f'{json.dumps(described)[:-1]},"data":{text}}}', b""


def _flat_text(tensor: NDArray[Any]) -> str:
    """Return the JSON of a flat list, made image by image: one call for all would hold the interpreter too long."""
    return f"[{','.join(as_json_text(row.ravel())[1:-1] for row in tensor)}]"


def classification(values: NDArray[np.float32], k: int, labels: Sequence[str]) -> list[str]:
    """Return the `k` highest of values (classes,) as `value:index:label`, highest first, without labels if none."""
    if not np.isfinite(values).all():
        raise InferenceFailed("The model's answer holds values that are not finite numbers.")
    return [f"{value:f}:{index}{f':{labels[index]}' if labels else ''}" for index, value in top_k(values, k)]


def as_bytes_tensor(values: Sequence[str]) -> bytes:
    """Return the elements of a BYTES tensor, each behind its length."""
    return b"".join(struct.pack("<I", len(data)) + data for data in (value.encode() for value in values))
