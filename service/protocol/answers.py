"""The outputs of an answer, before they are written in one coding or another."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.calls.context import RequestContext
from service.calls.inference import infer_images
from service.calls.parts import Parts
from service.calls.tensors import Tensor, as_raw, check_finite, narrowed
from service.engine.types import Priority
from service.model.directory import Label, ModelDirectory
from service.model.postprocess import top_k
from service.protocol.call import Call, Wanted
from service.serving.served import Served

Outputs = Mapping[str, Sequence[NDArray[np.float32]]]
"""By the output's name, one array an image."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One output that was asked for: tensors, one an image, or under `classification` their texts in one list."""

    name: str
    datatype: Literal["FP32", "FP16", "BYTES"]
    shape: list[int]
    tensors: Sequence[Tensor]
    texts: Sequence[str]

    def as_bytes(self) -> bytes:
        """Return the values as the protocol has them in binary."""
        return as_bytes_tensor(self.texts) if self.datatype == "BYTES" else b"".join(map(as_raw, self.tensors))


async def infer_call(
    context: RequestContext, parts: Parts, served: Served, call: Call, *, priority: Priority = Priority.INTERACTIVE
) -> Outputs:
    """Decode and infer the images of a call to `served`; `priority` holds where the call itself says none.

    Raises what `calls.inference.infer_images` raises.
    """
    if call.timeout_s is not None:
        context.answer_within(call.timeout_s * 1000)
    inferred = await infer_images(
        context,
        parts.decode_pool,
        served,
        call.images,
        outputs=frozenset(wanted.name for wanted in call.wanted),
        priority=priority if call.priority is None else call.priority,
        preprocessing=served.preprocessing_at(call.size),
    )
    answers = [inferred.answers[image.index] for image in call.images]
    return {wanted.name: [answer.outputs[wanted.name] for answer in answers] for wanted in call.wanted}


def size_bytes(outputs: Outputs) -> int:
    """Return how many bytes of values there are to write."""
    return sum(array.nbytes for images in outputs.values() for array in images)


def answered(wanted: Wanted, images: Sequence[NDArray[np.float32]], model: ModelDirectory) -> Answered:
    """Return one output as it was asked for.

    Raises InferenceFailed where what is to be text is not finite, and InvalidParameter where FP16 cannot hold it.
    """
    if wanted.classes is not None:
        labels = model.labels if model.manifest.output(wanted.name).classes else ()
        best = [classification(values, wanted.classes, labels) for values in images]
        texts = [text for of_image in best for text in of_image]
        return Answered(wanted.name, "BYTES", [len(best), len(best[0])], (), texts)
    tensors = [narrowed(values, "float16" if wanted.datatype == "FP16" else "float32") for values in images]
    return Answered(wanted.name, wanted.datatype, [len(tensors), *tensors[0].shape], tensors, ())


def classification(values: NDArray[np.float32], k: int, labels: Sequence[Label]) -> list[str]:
    """Return the `k` highest of values (classes,) as `value:index:label`, highest first, without labels if none."""
    check_finite(values)
    return [f"{value:f}:{index}{f':{labels[index].name}' if labels else ''}" for index, value in top_k(values, k)]


def as_bytes_tensor(values: Sequence[str]) -> bytes:
    """Return the elements of a BYTES tensor, each behind its length."""
    return b"".join(struct.pack("<I", len(data)) + data for data in (value.encode() for value in values))
