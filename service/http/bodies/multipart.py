"""`multipart/form-data` whose parts are image files, parsed as it arrives and kept in memory.

python-multipart does the parsing; this collects what it finds. A field is called what clients call it: `image`,
`images`, `file` or `files`, also as one of several, `image[]` or `image[0]`. A part needs no file name. Fields of
another name, a body without its closing boundary, and more images than a request may carry are refused as soon as
they are seen. A file field that was left empty, as browsers send it, is no image.

The parser wants the first boundary at once. What RFC 2046 lets stand before it, the preamble, is therefore given to it
as the content of a part, which is begun before the body and forgotten at its end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import (
    DEFAULT_MAX_HEADER_COUNT,
    DEFAULT_MAX_HEADER_SIZE,
    MultipartParser,
    parse_options_header,
)

from service.calls.base64_text import from_base64
from service.errors import MalformedRequest, TooLarge

_FIELD = re.compile(r"(?:image|file)s?(?:\[[0-9]*\])?")
_FIELDS_TAKEN = "Files are sent as fields named image, images, file or files, also with [] or [0] behind"
_BASE64 = b"base64"
_AS_IT_IS = (b"", b"binary", b"8bit", b"7bit")


@dataclass(slots=True)
class ImagePart:
    """One part: the file's name as the caller gave it, if any, and its bytes, in base64 where its head says so."""

    filename: str | None
    is_base64: bool = False
    data: bytearray = field(default_factory=bytearray)

    @property
    def is_unfilled(self) -> bool:
        """Whether this is what a browser sends for a file field that nobody filled."""
        return self.filename == "" and not self.data

    def file(self, place: str) -> bytes | bytearray:
        """Return the bytes of the file; raises MalformedRequest that names the place."""
        return from_base64(self.data, place) if self.is_base64 else self.data


class MultipartImages:
    """Collects the images of one body; feed it with `write`, then call `finish`."""

    def __init__(self, boundary: bytes, *, max_images: int) -> None:
        self._boundary = boundary
        self._max_images = max_images
        self._parts: list[ImagePart] = []
        self._unfilled = 0
        self._part: ImagePart | None = None
        """The part whose content arrives; None in the preamble."""
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._received_bytes = 0
        self._begun = self._complete = False
        try:
            self._parser = MultipartParser(boundary)
            self._parser.write(b"--%b\r\n\r\n\r\n" % boundary)  # begins the preamble, as of a part without a head
        except FormParserError as error:
            raise MalformedRequest(f"The multipart boundary cannot be used: {error}.") from error
        self._parser.callbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._extend_header_name,
            "on_header_value": self._extend_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._open_part,
            "on_part_data": self._extend_part,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def write(self, chunk: bytes) -> None:
        """Take more of the body; raises MalformedRequest or TooLarge."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            position = self._received_bytes + getattr(error, "offset", 0)
            raise MalformedRequest(
                f"The body is not well-formed multipart/form-data at byte {position}. Behind a boundary's line stand "
                f"lines of 'Name: value' and an empty one. Each ends in CRLF; none is folded; there are at most "
                f"{DEFAULT_MAX_HEADER_COUNT}, of at most {DEFAULT_MAX_HEADER_SIZE} bytes."
            ) from error
        self._received_bytes += len(chunk)

    def finish(self) -> list[ImagePart]:
        """Return the images; raises MalformedRequest where the body ended too early or held none."""
        if not self._complete:
            if not self._begun:
                line = f"--{self._boundary.decode('latin-1')}"
                raise MalformedRequest(
                    f"The multipart body has no line {line!r}, which its Content-Type gives as the boundary, or its "
                    "lines do not end in CRLF."
                )
            raise MalformedRequest("The multipart body ends before its closing boundary.")
        if not self._parts:
            left = "Its file field was left empty." if self._unfilled else f"{_FIELDS_TAKEN}."
            raise MalformedRequest(f"The multipart body holds no image. {left}")
        return self._parts

    def _begin_part(self) -> None:
        self._begun = True
        self._headers = {}

    def _extend_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _extend_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _open_part(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        kind, options = parse_options_header(disposition)
        if kind != b"form-data" or b"name" not in options:
            raise MalformedRequest("A part of the multipart body has no Content-Disposition: form-data with a name.")
        name = _text(options[b"name"])
        if not _FIELD.fullmatch(name):
            raise MalformedRequest(
                f"The multipart body has a field named {name!r}. {_FIELDS_TAKEN}; parameters go into the query."
            )
        content_type, parameters = parse_options_header(self._headers.get(b"content-type"))
        if content_type.startswith(b"multipart/") and b"boundary" in parameters:  # without, it is a file's wrong label
            raise MalformedRequest(f"The field {name!r} is {_text(content_type)}; send each file as a part of its own.")
        coding = self._headers.get(b"content-transfer-encoding", b"").strip().lower()
        if coding != _BASE64 and coding not in _AS_IT_IS:
            raise MalformedRequest(
                f"The field {name!r} has the Content-Transfer-Encoding {_text(coding)!r}; send its bytes as they are."
            )
        self._part = ImagePart(_filename(disposition, options.get(b"filename")), is_base64=coding == _BASE64)

    def _extend_part(self, data: bytes, start: int, end: int) -> None:
        if self._part is not None:
            self._part.data += memoryview(data)[start:end]

    def _end_part(self) -> None:
        part, self._part = self._part, None
        if part is None:
            return
        if part.is_unfilled:
            self._unfilled += 1
        else:
            self._parts.append(part)
        if len(self._parts) > self._max_images:
            raise TooLarge(f"The request has more than {self._max_images} images.")
        if self._unfilled > self._max_images:
            raise TooLarge(f"The form has more than {self._max_images} file fields that were left empty.")

    def _end(self) -> None:
        self._complete = True


def _filename(disposition: bytes, plain: bytes | None) -> str | None:
    """Return the file's name; that of RFC 5987, `filename*`, where there is one, which some clients send alone."""
    if b"filename*" in disposition:
        message = Message()
        message["Content-Disposition"] = _text(disposition)
        extended: list[tuple[str, Any]] = message.get_params([], "content-disposition")
        for key, value in extended:
            if key == "filename" and isinstance(value, tuple):
                return _decoded(value)
    return None if plain is None else _text(plain)


def _decoded(value: tuple[str | None, str | None, str]) -> str:
    """Return an extended parameter's text; its charset is the caller's word, and may be any codec that Python has."""
    try:
        text = collapse_rfc2231_value(value)
    except UnicodeError:  # of codecs that cannot replace what they do not know
        text = value[2]
    return text.encode("utf-8", "replace").decode("utf-8")  # without surrogates, which no answer can carry


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
