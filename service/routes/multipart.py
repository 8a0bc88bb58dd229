"""`multipart/form-data` with parts named `image`, parsed as it arrives and kept in memory.

python-multipart does the parsing; this collects what it finds. A part needs no file name: `image` is an image with or
without one. Parts of another name, a body without its closing boundary, and more images than a request may carry are
refused as soon as they are seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import MalformedRequest, TooLarge

PART_NAME = "image"


@dataclass(slots=True)
class ImagePart:
    """One part: the file's name as the caller gave it, if any, and its bytes."""

    filename: str | None
    data: bytearray = field(default_factory=bytearray)


class MultipartImages:
    """Collects the images of one body; feed it with `write`, then call `finish`."""

    def __init__(self, boundary: bytes, *, max_images: int) -> None:
        self._max_images = max_images
        self._parts: list[ImagePart] = []
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._extend_header_name,
                    "on_header_value": self._extend_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open_part,
                    "on_part_data": self._extend_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise MalformedRequest(f"The multipart boundary cannot be used: {error}.") from error

    def write(self, chunk: bytes) -> None:
        """Take more of the body; raises MalformedRequest or TooLarge."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedRequest(f"The body is not well-formed multipart/form-data: {error}.") from error

    def finish(self) -> list[ImagePart]:
        """Return the images; raises MalformedRequest where the body ended too early or held none."""
        if not self._complete:
            raise MalformedRequest("The multipart body ends before its closing boundary.")
        if not self._parts:
            raise MalformedRequest(f"The multipart body has no part named {PART_NAME!r}.")
        return self._parts

    def _begin_part(self) -> None:
        self._disposition = b""

    def _extend_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _extend_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _open_part(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise MalformedRequest("A part of the multipart body has no Content-Disposition with a name.")
        name = options[b"name"].decode("utf-8", "replace")
        if name != PART_NAME:
            raise MalformedRequest(f"The multipart body has a part named {name!r}; parts are named {PART_NAME!r}.")
        if len(self._parts) == self._max_images:
            raise TooLarge(f"The request has more than {self._max_images} images.")
        filename = options.get(b"filename")
        self._parts.append(ImagePart(None if filename is None else filename.decode("utf-8", "replace")))

    def _extend_part(self, data: bytes, start: int, end: int) -> None:
        self._parts[-1].data += memoryview(data)[start:end]

    def _end(self) -> None:
        self._complete = True
