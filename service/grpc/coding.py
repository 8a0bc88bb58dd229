"""The protocol's messages as what they mean, and back: the requests and answers of inference, and all the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict

from service.calls.inference import ImageSource
from service.errors import MalformedRequest
from service.grpc.messages import ModelInferResponse, of_protocol
from service.model.directory import ModelDirectory
from service.protocol.answers import Answered, Outputs, answered
from service.protocol.call import Call, Taken
from service.protocol.images import BYTES, INPUT, images_from_binary, pixel_images, uploads
from service.protocol.schemas import InferInput, InferRequest, ModelConfiguration, ProtocolParameters, RequestedOutput

_CONTENTS = {"UINT8": ("uint_contents", np.uint32), "FP32": ("fp32_contents", np.float32)}
"""By the type of pixels, the field of their values, and what these are there."""


def call_of(request: Any, taken: Taken) -> Call:
    """Return what a ModelInferRequest asks for; raises MalformedRequest or TooLarge.

    Outputs are answered as bytes, unless the request's `binary_data_output` is false.
    """
    inputs = [
        InferInput(name=each.name, shape=list(each.shape), datatype=each.datatype, parameters=parameters_of(each))
        for each in request.inputs
    ]
    outputs = [RequestedOutput(name=each.name, parameters=parameters_of(each)) for each in request.outputs]
    asked = InferRequest.model_construct(
        id=request.id or None, parameters=parameters_of(request), inputs=inputs, outputs=outputs or None
    )
    call = taken.call(asked, lambda tensor: _images(tensor, request), binary_by_default=True)
    if len({wanted.binary for wanted in call.wanted}) > 1:
        raise MalformedRequest("The outputs are all answered as bytes, or none: 'binary_data' cannot differ.")
    for wanted in call.wanted:
        if not wanted.binary and wanted.datatype == "FP16" and wanted.classes is None:
            raise MalformedRequest(f"The output {wanted.name!r}: FP16 is answered as bytes alone.")
    return call


def parameters_of(message: Any) -> ProtocolParameters:
    """Return a message's parameters by their names."""
    values: ProtocolParameters = {}
    for name, parameter in message.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[name] = None if choice is None else getattr(parameter, choice)
    return values


def _images(tensor: InferInput, request: Any) -> Sequence[ImageSource]:
    """Return the images of a checked tensor, whose values are raw or typed; raises MalformedRequest."""
    has_contents = request.inputs[0].HasField("contents")
    if request.raw_input_contents:
        if len(request.raw_input_contents) != 1 or has_contents:
            raise MalformedRequest(
                f"The values of {INPUT!r} are the one element of raw_input_contents, or in its contents; not both."
            )
        return images_from_binary(tensor, memoryview(request.raw_input_contents[0]))
    if not has_contents:
        raise MalformedRequest(f"The input {INPUT!r} has no values: neither raw_input_contents nor contents.")
    contents = request.inputs[0].contents
    if tensor.datatype == BYTES:
        files = contents.bytes_contents
        _check_count("bytes_contents", len(files), tensor.shape[0], contents)
        return uploads(list(files))
    if tensor.datatype not in _CONTENTS:
        raise MalformedRequest(
            f"The values of {tensor.datatype} {INPUT!r} go into raw_input_contents: no field has them."
        )
    field, dtype = _CONTENTS[tensor.datatype]
    values = getattr(contents, field)
    _check_count(field, len(values), math.prod(tensor.shape), contents)
    return pixel_images(np.fromiter(values, dtype, len(values)).reshape(tensor.shape))


def _check_count(field: str, count: int, expected: int, contents: Any) -> None:
    others = [each.name for each, _ in contents.ListFields() if each.name != field]
    if others:
        raise MalformedRequest(f"The values of {INPUT!r} belong into {field}, and there are {', '.join(others)}.")
    if count != expected:
        raise MalformedRequest(f"There are {count} values in {field} of {INPUT!r}; its shape has {expected}.")


def response_of(call: Call, outputs: Outputs, model: ModelDirectory) -> Any:
    """Return the ModelInferResponse to a call; raises as `protocol.answers.answered`."""
    response = ModelInferResponse(
        id=call.id or "", model_name=model.manifest.name, model_version=str(model.manifest.version)
    )
    for wanted in call.wanted:
        answer = answered(wanted, outputs[wanted.name], model)
        output = response.outputs.add(name=answer.name, datatype=answer.datatype, shape=answer.shape)
        if wanted.binary:
            response.raw_output_contents.append(answer.as_bytes())
        else:
            _fill(output.contents, answer)
    return response


def _fill(contents: Any, answer: Answered) -> None:
    if answer.datatype == BYTES:
        contents.bytes_contents.extend(text.encode() for text in answer.texts)
        return
    for tensor in answer.tensors:
        contents.fp32_contents.extend(tensor.ravel().tolist())


def as_message(name: str, values: Mapping[str, Any] | ModelConfiguration) -> Any:
    """Return a message of the protocol with values by its fields' names."""
    return ParseDict(values, of_protocol(name)())
