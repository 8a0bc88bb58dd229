"""Reading a request's images from its body, in any of the three forms, under the same limits.

What the headers alone decide is decided by `plan_body` before a byte of the body is read: the content type, a length
over the limit, a content coding. `BodyPlan.read` then counts bytes as they arrive and gives up at the first over the
limit, and within the time allowed. Nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from service.errors import Cancelled, MalformedRequest, ReceiveTimeout, TooLarge, UnsupportedMediaType
from service.imaging import ImageTimings, Preprocessing, decode_into
from service.routes.multipart import MultipartImages
from service.settings import Settings

RAW = "raw"
MULTIPART = "multipart/form-data"
JSON = "application/json"

ImageBytes: TypeAlias = bytes | bytearray


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as it was sent; `filename` only where a multipart part gave one."""

    index: int
    filename: str | None
    data: ImageBytes

    def write(self, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> ImageTimings:
        """Decode the file into the model's input; raises UnusableImage."""
        return decode_into(self.data, pixels, preprocessing)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one body may be."""

    max_bytes: int
    max_images: int
    receive_timeout_s: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits that the settings give."""
        return cls(settings.max_body_bytes, settings.max_images, settings.receive_timeout_ms / 1000)


@dataclass(frozen=True, slots=True)
class BodyPlan:
    """How a body will be read, as its headers tell."""

    form: str
    boundary: bytes
    limits: Limits

    async def read(self, request: Request) -> list[Upload]:
        """Read the body and return its images, at least one, in order.

        Raises MalformedRequest, ReceiveTimeout, TooLarge, or Cancelled where the client went away.
        """
        if self.form == MULTIPART:
            async with receiving(request, self.limits) as chunks:
                return await self._read_multipart(chunks)
        body = await read_whole(request, self.limits)
        if self.form == JSON:
            return await asyncio.to_thread(_from_json, body, self.limits.max_images)
        if not body:
            raise MalformedRequest("The body is empty; it should be an image.")
        return [Upload(0, None, body)]

    async def _read_multipart(self, chunks: AsyncIterator[bytes]) -> list[Upload]:
        images = MultipartImages(self.boundary, max_images=self.limits.max_images)
        async for chunk in chunks:
            images.write(chunk)
        return [Upload(index, part.filename, part.data) for index, part in enumerate(images.finish())]


def plan_body(request: Request, limits: Limits) -> BodyPlan:
    """Return how to read the body; raises UnsupportedMediaType, MalformedRequest or TooLarge by the headers alone."""
    content_type, options = parse_options_header(request.headers.get("content-type"))
    media_type = content_type.decode("latin-1")
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise UnsupportedMediaType(f"The content coding {coding!r} is not taken; send the body as it is.")
    if media_type.startswith("image/") or media_type == "application/octet-stream":
        form = RAW
    elif media_type in (MULTIPART, JSON):
        form = media_type
    else:
        named = repr(media_type) if media_type else "No content type"
        raise UnsupportedMediaType(
            f"{named} is not taken; send image/* or application/octet-stream (one image), {MULTIPART} or {JSON}."
        )
    boundary = options.get(b"boundary", b"")
    if form == MULTIPART and not boundary:
        raise MalformedRequest("The content type multipart/form-data must give its boundary.")
    check_length(request, limits)
    return BodyPlan(form, boundary, limits)


def check_length(request: Request, limits: Limits) -> None:
    """Raise TooLarge where the headers announce a body over the limit."""
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and int(length) > limits.max_bytes:
        raise too_many_bytes(limits.max_bytes)


@contextlib.asynccontextmanager
async def receiving(request: Request, limits: Limits) -> AsyncIterator[AsyncIterator[bytes]]:
    """Give the body's chunks as they arrive, within the limits on bytes and time.

    Raises TooLarge, ReceiveTimeout, or Cancelled where the client goes away.
    """
    try:
        async with asyncio.timeout(limits.receive_timeout_s):
            yield _limited(request, limits.max_bytes)
    except TimeoutError as error:
        raise ReceiveTimeout(f"The body did not arrive within {limits.receive_timeout_s:g} s.") from error
    except ClientDisconnect as error:
        raise Cancelled("The client went away while it sent the body.") from error


async def read_whole(request: Request, limits: Limits) -> bytes:
    """Return the whole body; raises as `receiving`."""
    async with receiving(request, limits) as chunks:
        return b"".join([chunk async for chunk in chunks])


def too_many_bytes(max_bytes: int) -> TooLarge:
    """Return the error for a body over the limit."""
    return TooLarge(f"The body is larger than {max_bytes} bytes.")


async def _limited(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body's chunks; raises TooLarge with the first that passes the limit."""
    received_bytes = 0
    async for chunk in request.stream():
        received_bytes += len(chunk)
        if received_bytes > max_bytes:
            raise too_many_bytes(max_bytes)
        if chunk:
            yield chunk


class JsonImages(BaseModel):
    """Images in JSON, each the base64 of a whole file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    images: list[str]


def _from_json(body: bytes, max_images: int) -> list[Upload]:
    """Return the images of a JSON body; raises MalformedRequest that names the place, or TooLarge."""
    try:
        encoded = JsonImages.model_validate_json(body).images
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        raise MalformedRequest(f"The JSON body is wrong at {place or 'its top'}: {first['msg']}.") from error
    if not encoded:
        raise MalformedRequest("The JSON body holds no images.")
    if len(encoded) > max_images:
        raise TooLarge(f"The request has more than {max_images} images.")
    return [Upload(index, None, from_base64(text, f"images[{index}]")) for index, text in enumerate(encoded)]


def from_base64(text: str, place: str) -> bytes:
    """Return the bytes that base64 text stands for; raises MalformedRequest that names its place."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedRequest(f"{place} is not base64: {error}.") from error
