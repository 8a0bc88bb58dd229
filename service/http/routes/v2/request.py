"""Reading a request of the Open Inference Protocol: what its headers say, its JSON, and the tensors behind that.

`plan_request` decides what the headers alone decide; `RequestPlan.read` reads within the limits of every inference
call. A request whose parsing takes time is parsed in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.types import Receive

from service.engine.types import Priority
from service.errors import MalformedRequest, UnsupportedMediaType
from service.http.bodies.json_text import parsed_json
from service.http.bodies.uploads import Ending, Limits, check_length, read_whole
from service.http.context import context_of
from service.http.inference import ImageSource
from service.http.responses import THREAD_FROM_BYTES
from service.http.routes.v2.coding import CODINGS, IDENTITY, decompressed, request_coding
from service.http.routes.v2.images import (
    BYTES,
    INPUT,
    ImageLimits,
    check_input,
    images_from_binary,
    images_from_json,
)
from service.http.routes.v2.schemas import InferInput, InferRequest, ProtocolParameters, RequestedOutput
from service.http.service import Service
from service.model.manifest import Manifest, OutputRecord, unknown_outputs
from service.serving.served import Served
from service.settings import Settings

HEADER_LENGTH = "Inference-Header-Content-Length"
IMAGE_DATATYPE = "X-Image-Datatype"
"""`BYTES` where a caller that cannot say so elsewhere sends image files."""
MEDIA_TYPES = ("application/json", "application/octet-stream")
PRIORITIES = {0: Priority.INTERACTIVE, 1: Priority.INTERACTIVE, 2: Priority.BULK}
_UNSUPPORTED_PARAMETERS = ("sequence_id", "shared_memory_region")

KindT = TypeVar("KindT", int, bool)
_LONGEST_US = 2**53
"""Of whole numbers, which in JSON may have any length, the largest below which a float tells all apart."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output to answer, and how."""

    name: str
    binary: bool
    classes: int | None = None
    """How many of the highest values to answer in place of all."""
    datatype: Literal["FP32", "FP16"] = "FP32"


@dataclass(frozen=True, slots=True)
class Call:
    """What a request asks for; `timeout_s` and `priority` where its parameters say."""

    id: str | None
    images: Sequence[ImageSource]
    wanted: Sequence[Wanted]
    timeout_s: float | None = None
    priority: Priority | None = None
    size: str | None = None
    """The size that the images are to be preprocessed for, or that they have where they are pixels."""


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """How a body will be read, as its headers tell."""

    limits: Limits
    image_limits: ImageLimits
    coding: str
    header_length: int | None
    """Bytes of JSON before the tensors; 0 where there is no JSON, None where there is nothing else."""
    files_expected: bool
    outputs: Mapping[str, OutputRecord]
    """Every output that can be asked for, by its name."""
    outputs_by_default: Sequence[str]

    async def read(self, receive: Receive, work: Ending) -> Call:
        """Read the body, at most as large as the limit before and after it is decompressed, and understand it.

        Raises MalformedRequest, TooLarge, or Cancelled where the client went away; `work` as for `read_whole`.
        """
        body = await read_whole(receive, work, self.limits)
        if self.coding != IDENTITY:
            body = await asyncio.to_thread(decompressed, body, self.coding, max_bytes=self.limits.max_bytes)
        json_bytes = len(body) if self.header_length is None else self.header_length
        return self._parse(body) if json_bytes < THREAD_FROM_BYTES else await asyncio.to_thread(self._parse, body)

    def _parse(self, body: bytes) -> Call:
        if self.header_length == 0:
            return self._raw(body)
        json_bytes = len(body) if self.header_length is None else self.header_length
        if json_bytes > len(body):
            raise MalformedRequest(f"{HEADER_LENGTH} is {json_bytes}, but the body has {len(body)} bytes.")
        asked = parsed_json(InferRequest, body[:json_bytes])
        parameters = asked.parameters or {}
        _refuse_unsupported(parameters, "The request")
        if len(asked.inputs) != 1:
            raise MalformedRequest(f"The request has {len(asked.inputs)} inputs; it takes one, {INPUT!r}.")
        check_input(asked.inputs[0], self.image_limits)
        timeout_us = _parameter(parameters, "timeout", int, "The request")
        return Call(
            id=asked.id,
            images=self._images(asked.inputs[0], memoryview(body)[json_bytes:]),
            wanted=self._wanted(asked.outputs, parameters),
            timeout_s=min(timeout_us, _LONGEST_US) / 1e6 if timeout_us else None,
            size=self._size(asked.inputs[0], parameters),
            priority=_priority(_parameter(parameters, "priority", int, "The request")),
        )

    def _raw(self, body: bytes) -> Call:
        """Return the call of a body that is one image's pixels, or its file where the headers say so."""
        shape = [1] if self.files_expected else [1, *self.image_limits.own_shape]
        tensor = InferInput(name=INPUT, shape=shape, datatype=BYTES if self.files_expected else "UINT8")
        data = len(body).to_bytes(4, "little") + body if self.files_expected else body
        images = images_from_binary(tensor, memoryview(data))
        return Call(None, images, [Wanted(name, binary=True) for name in self.outputs_by_default])

    def _images(self, tensor: InferInput, behind: memoryview) -> Sequence[ImageSource]:
        where = f"The input {INPUT!r}"
        parameters = tensor.parameters or {}
        _refuse_unsupported(parameters, where)
        size_bytes = _parameter(parameters, "binary_data_size", int, where)
        if (size_bytes or 0) != len(behind):
            raise MalformedRequest(f"{where} says that {size_bytes or 0} bytes are behind the JSON; {len(behind)} are.")
        if size_bytes is None:
            return images_from_json(tensor)
        if tensor.data is not None:
            raise MalformedRequest(f"{where} has both 'data' and 'binary_data_size'.")
        return images_from_binary(tensor, behind)

    def _size(self, tensor: InferInput, parameters: ProtocolParameters) -> str | None:
        """Return the size asked for of a checked tensor's files, or that of its pixels where it is not the model's own.

        Raises MalformedRequest.
        """
        size: Any = parameters.get("size")
        if tensor.datatype == BYTES:
            if size is not None and not isinstance(size, str):
                raise MalformedRequest("The request: 'size' is text, such as 384 or 480x640.")
            return size
        if size is not None:
            raise MalformedRequest("The request: 'size' is of files; pixels have the size that they are sent in.")
        _, height, width, _ = tensor.shape
        return None if (height, width) == self.image_limits.sizes.own else f"{height}x{width}"

    def _wanted(self, asked: Sequence[RequestedOutput] | None, parameters: ProtocolParameters) -> list[Wanted]:
        binary = _parameter(parameters, "binary_data_output", bool, "The request") or False
        if not asked:
            return [Wanted(name, binary) for name in self.outputs_by_default]
        names = [output.name for output in asked]
        if lacking := unknown_outputs(names, self.outputs):
            raise MalformedRequest(f"outputs: {lacking}.")
        if len(set(names)) < len(names):
            raise MalformedRequest("An output is asked for more than once.")
        return [_wanted(output, self.outputs[output.name], binary) for output in asked]


def plan_request(request: Request, service: Service, served: Served) -> RequestPlan:
    """Return how to read the body of a request to `served`, by the headers alone.

    Raises UnsupportedMediaType, MalformedRequest or TooLarge.
    """
    headers = context_of(request).headers
    content_type, _ = parse_options_header(headers.get("content-type"))
    media_type = content_type.decode("latin-1")
    if media_type and media_type not in MEDIA_TYPES:  # Triton's client names none
        raise UnsupportedMediaType(
            f"{media_type!r} is not taken; send {' or '.join(MEDIA_TYPES)}.", accept_encoding=", ".join(CODINGS)
        )
    limits = service.body_limits
    check_length(headers, limits)
    manifest = served.manifest
    return RequestPlan(
        limits=limits,
        image_limits=ImageLimits(served.sizes, limits.max_images),
        coding=request_coding(headers.get("content-encoding")),
        header_length=_header_length(headers.get(HEADER_LENGTH.lower())),
        files_expected=expects_files(request),
        outputs={record.name: record for record in manifest.outputs},
        outputs_by_default=[record.name for record in outputs_by_default(manifest, served.settings)],
    )


def outputs_by_default(manifest: Manifest, settings: Settings) -> Sequence[OutputRecord]:
    """Return the outputs that the metadata names and a request gets that names none: those of the settings, or all."""
    return [manifest.output(name) for name in settings.v2_outputs] or manifest.outputs


def expects_files(request: Request) -> bool:
    """Return whether a header says that `image` is to hold files; raises MalformedRequest for any other type."""
    datatype = context_of(request).headers.get(IMAGE_DATATYPE.lower(), "UINT8")
    if datatype not in ("UINT8", BYTES):
        raise MalformedRequest(f"{IMAGE_DATATYPE} is UINT8 or {BYTES}, not {datatype!r}.")
    return datatype == BYTES


def _header_length(header: str | None) -> int | None:
    if header is None:
        return None
    if not (header.isascii() and header.isdecimal() and len(header) < 16):
        raise MalformedRequest(f"{HEADER_LENGTH} is a number of bytes, not {header!r}.")
    return int(header)


def _wanted(output: RequestedOutput, record: OutputRecord, binary_by_default: bool) -> Wanted:
    where = f"The output {output.name!r}"
    parameters = output.parameters or {}
    _refuse_unsupported(parameters, where)
    binary = _parameter(parameters, "binary_data", bool, where)
    classes = _parameter(parameters, "classification", int, where) or None
    if classes is not None and record.kind != "vector":
        raise MalformedRequest(f"{where} is no vector; there is no classification by it.")
    datatype = parameters.get("datatype", "FP32")
    if datatype not in ("FP32", "FP16"):
        raise MalformedRequest(f"{where}: 'datatype' is FP32 or FP16, not {datatype!r}.")
    return Wanted(output.name, binary_by_default if binary is None else binary, classes, datatype)


def _parameter(parameters: ProtocolParameters, name: str, kind: type[KindT], where: str) -> KindT | None:
    """Return a parameter, None where there is none; raises MalformedRequest unless it is a bool or counts something."""
    value: Any = parameters.get(name)
    if value is None:
        return None
    if type(value) is not kind or value < 0:
        raise MalformedRequest(
            f"{where}: {name!r} is {'true or false' if kind is bool else 'a whole number from 0 on'}."
        )
    return value


def _priority(level: int | None) -> Priority | None:
    if level is None:
        return None
    if level not in PRIORITIES:
        raise MalformedRequest(f"The request: 'priority' is 0, 1 or 2, not {level}.")
    return PRIORITIES[level]


def _refuse_unsupported(parameters: ProtocolParameters, where: str) -> None:
    for name in _UNSUPPORTED_PARAMETERS:
        if parameters.get(name):
            raise MalformedRequest(f"{where}: {name!r} is of an extension that this server does not have.")
