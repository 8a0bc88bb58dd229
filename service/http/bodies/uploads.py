"""Reading a request's images from its body, in any of the three forms, under the same limits.

What the headers alone decide is decided by `plan_body` before a byte of the body is read: the content type, a length
over the limit, a content coding. `BodyPlan.read` then counts bytes as they arrive and gives up at the first over the
limit, and within the time allowed. Nothing is written to disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, FailFast
from python_multipart.multipart import parse_options_header
from starlette.types import Receive

from service.calls.base64_text import from_base64
from service.calls.upload import Upload
from service.errors import (
    Cancelled,
    MalformedRequest,
    ReceiveTimeout,
    ServiceError,
    TooLarge,
    UnsupportedMediaType,
)
from service.http.bodies.json_text import parsed_json
from service.http.bodies.multipart import ImagePart, MultipartImages
from service.settings import Settings

RAW = "raw"
MULTIPART = "multipart/form-data"
JSON = "application/json"

RAW_TYPES = ("application/octet-stream", "binary/octet-stream", "application/x-image")
"""Types that any file may have: S3 gives the second to objects that were stored without one, and the third is what the
image algorithms of SageMaker have their callers send."""
_TYPES_TAKEN = f"send image/* or {RAW_TYPES[0]} (one image), {MULTIPART} or {JSON}"
_CURL_TYPE = "application/x-www-form-urlencoded"
_JSON_FORM = 'A body in JSON is {"images": ["<base64 of a file>", ...]}; parameters go into the query.'
_IMAGES_KEY = b'"images"'


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


class Ending(Protocol):
    """What a request's work is to this module: something that can be ended early, for a reason."""

    def end(self, reason: ServiceError) -> None:
        """Cancel the task that works, and have `reason` raised in the cancellation's place."""
        ...


@dataclass(frozen=True, slots=True)
class BodyPlan:
    """How a body will be read, as its headers tell."""

    form: str
    boundary: bytes
    limits: Limits

    async def read(self, receive: Receive, work: Ending) -> list[Upload]:
        """Read the body and return its images, at least one, in order.

        Raises MalformedRequest, TooLarge, or Cancelled where the client went away; `work` is ended with ReceiveTimeout
        where it takes too long.
        """
        max_images = self.limits.max_images
        if self.form == MULTIPART:
            images = MultipartImages(self.boundary, max_images=max_images)
            await receive_body(receive, work, self.limits, images.write)
            parts = images.finish()
            if any(part.is_base64 for part in parts):
                return await asyncio.to_thread(_from_parts, parts)
            return _from_parts(parts)
        body = await read_whole(receive, work, self.limits)
        if self.form == JSON:
            return await asyncio.to_thread(_from_json, body, max_images)
        if not body:
            raise MalformedRequest("The body is empty; it should be an image.")
        return [Upload(0, None, body)]


def plan_body(headers: Mapping[str, str], limits: Limits) -> BodyPlan:
    """Return how to read the body; raises UnsupportedMediaType, MalformedRequest or TooLarge by the headers alone."""
    content_type, options = parse_options_header(headers.get("content-type"))
    media_type = content_type.decode("latin-1")
    check_coding(headers)
    if media_type.startswith("image/") or media_type in RAW_TYPES:
        form = RAW
    elif media_type in (MULTIPART, JSON):
        form = media_type
    elif not media_type:
        raise UnsupportedMediaType(f"There is no Content-Type; {_TYPES_TAKEN}.")
    elif media_type == _CURL_TYPE:
        raise UnsupportedMediaType(
            f"{media_type!r} is not taken; {_TYPES_TAKEN}. "
            f"curl's --data-binary needs -H 'Content-Type: {RAW_TYPES[0]}' beside it."
        )
    else:
        raise UnsupportedMediaType(f"{media_type!r} is not taken; {_TYPES_TAKEN}.")
    boundary = options.get(b"boundary", b"")
    if form == MULTIPART and not boundary:
        raise MalformedRequest("The content type multipart/form-data must give its boundary.")
    check_length(headers, limits)
    return BodyPlan(form, boundary, limits)


def check_json_headers(headers: Mapping[str, str], limits: Limits) -> None:
    """Raise UnsupportedMediaType or TooLarge where a body is, by its headers alone, no JSON within the limits."""
    check_coding(headers)
    media_type = media_type_of(headers)
    if media_type != JSON:
        given = f"{media_type!r} is not taken" if media_type else "There is no Content-Type"
        raise UnsupportedMediaType(f"{given}; send {JSON}.")
    check_length(headers, limits)


def media_type_of(headers: Mapping[str, str]) -> str:
    """Return the media type of a body, in lower case and without its parameters; empty where none is given."""
    content_type, _ = parse_options_header(headers.get("content-type"))
    return content_type.decode("latin-1")


def check_coding(headers: Mapping[str, str]) -> None:
    """Raise UnsupportedMediaType where the headers say that the body is compressed."""
    coding = headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise UnsupportedMediaType(f"The content coding {coding!r} is not taken; send the body as it is.")


def check_length(headers: Mapping[str, str], limits: Limits) -> None:
    """Raise TooLarge where the headers announce a body over the limit."""
    length = headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and int(length) > limits.max_bytes:
        raise too_many_bytes(limits.max_bytes)


async def read_whole(receive: Receive, work: Ending, limits: Limits) -> bytes:
    """Return the whole body; ends as `receive_body`."""
    parts: list[bytes] = []
    await receive_body(receive, work, limits, parts.append)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def receive_body(receive: Receive, work: Ending, limits: Limits, take: Callable[[bytes], object]) -> None:
    """Give a body's chunks to `take` as they arrive, within the limits on bytes and time.

    Raises what `take` raises, TooLarge with the first chunk that passes the limit, or Cancelled where the client goes
    away. `work` is ended with ReceiveTimeout where the time is over, which costs a tenth of what a timeout of asyncio's
    does.
    """
    late = ReceiveTimeout(f"The body did not arrive within {limits.receive_timeout_s:g} s.")
    timer = asyncio.get_running_loop().call_later(limits.receive_timeout_s, work.end, late)
    try:
        received_bytes, is_whole = 0, False
        while not is_whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Cancelled("The client went away while it sent the body.")
            chunk = message.get("body", b"")
            received_bytes += len(chunk)
            if received_bytes > limits.max_bytes:
                raise too_many_bytes(limits.max_bytes)
            if chunk:
                take(chunk)
            is_whole = not message.get("more_body", False)
    finally:
        timer.cancel()


def too_many_bytes(max_bytes: int) -> TooLarge:
    """Return the error for a body over the limit."""
    return TooLarge(f"The body is larger than {max_bytes} bytes.")


def _from_parts(parts: Sequence[ImagePart]) -> list[Upload]:
    return [Upload(index, part.filename, part.file(f"Image {index}")) for index, part in enumerate(parts)]


class JsonImages(BaseModel):
    """Images in JSON, each the base64 of a whole file."""

    model_config = ConfigDict(extra="allow", strict=True)  # what is extra is refused as a whole, not key by key

    images: Annotated[list[str], FailFast()] = []


def _from_json(body: bytes, max_images: int) -> list[Upload]:
    """Return the images of a JSON body; raises MalformedRequest that names the place, or TooLarge."""
    parsed = parsed_json(JsonImages, body, form=_JSON_FORM)
    encoded = parsed.images
    if parsed.model_extra:
        raise MalformedRequest(f"The JSON has a key {next(iter(parsed.model_extra))!r}. {_JSON_FORM}")
    if not encoded:
        raise MalformedRequest(f"The JSON body holds no images. {_JSON_FORM}")
    if len(encoded) > max_images:
        raise TooLarge(f"The request has more than {max_images} images.")
    if body.count(_IMAGES_KEY) > 1 + encoded.count("images"):  # a parser keeps the last
        raise MalformedRequest(f"The JSON has the key 'images' more than once. {_JSON_FORM}")
    return [Upload(index, None, from_base64(text, f"images[{index}]")) for index, text in enumerate(encoded)]
