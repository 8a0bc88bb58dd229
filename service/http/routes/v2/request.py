"""Reading a request of the Open Inference Protocol: what its headers say, its JSON, and the tensors behind that.

`plan_request` decides what the headers alone decide; `RequestPlan.read` reads within the limits of every inference
call. A request whose parsing takes time is parsed in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.types import Receive

from service.calls.inference import ImageSource
from service.calls.large import THREAD_FROM_BYTES
from service.errors import MalformedRequest, UnsupportedMediaType
from service.http.bodies.json_text import parsed_json
from service.http.bodies.uploads import Ending, Limits, check_length, read_whole
from service.http.context import context_of
from service.http.routes.v2.coding import CODINGS, IDENTITY, decompressed, request_coding
from service.http.routes.v2.json_images import images_from_json
from service.http.service import Service
from service.protocol.call import Call, Taken, Wanted, parameter
from service.protocol.images import BYTES, INPUT, expects_files, images_from_binary
from service.protocol.schemas import InferInput, InferRequest
from service.serving.served import Served

HEADER_LENGTH = "Inference-Header-Content-Length"
MEDIA_TYPES = ("application/json", "application/octet-stream")


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """How a body will be read, as its headers tell."""

    limits: Limits
    taken: Taken
    coding: str
    header_length: int | None
    """Bytes of JSON before the tensors; 0 where there is no JSON, None where there is nothing else."""
    files_expected: bool

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
        behind = memoryview(body)[json_bytes:]
        return self.taken.call(parsed_json(InferRequest, body[:json_bytes]), lambda tensor: _images(tensor, behind))

    def _raw(self, body: bytes) -> Call:
        """Return the call of a body that is one image's pixels, or its file where the headers say so."""
        shape = [1] if self.files_expected else [1, *self.taken.image_limits.own_shape]
        tensor = InferInput(name=INPUT, shape=shape, datatype=BYTES if self.files_expected else "UINT8")
        data = len(body).to_bytes(4, "little") + body if self.files_expected else body
        images = images_from_binary(tensor, memoryview(data))
        return Call(None, images, [Wanted(name, binary=True) for name in self.taken.outputs_by_default])


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
    return RequestPlan(
        limits=limits,
        taken=Taken.by(served),
        coding=request_coding(headers.get("content-encoding")),
        header_length=_header_length(headers.get(HEADER_LENGTH.lower())),
        files_expected=expects_files(headers),
    )


def _header_length(header: str | None) -> int | None:
    if header is None:
        return None
    if not (header.isascii() and header.isdecimal() and len(header) < 16):
        raise MalformedRequest(f"{HEADER_LENGTH} is a number of bytes, not {header!r}.")
    return int(header)


def _images(tensor: InferInput, behind: memoryview) -> Sequence[ImageSource]:
    """Return the images of a checked tensor, whose values are in the JSON or behind it; raises MalformedRequest."""
    where = f"The input {INPUT!r}"
    parameters = tensor.parameters or {}
    size_bytes = parameter(parameters, "binary_data_size", int, where)
    if (size_bytes or 0) != len(behind):
        raise MalformedRequest(f"{where} says that {size_bytes or 0} bytes are behind the JSON; {len(behind)} are.")
    if size_bytes is None:
        return images_from_json(tensor)
    if tensor.data is not None:
        raise MalformedRequest(f"{where} has both 'data' and 'binary_data_size'.")
    return images_from_binary(tensor, behind)
