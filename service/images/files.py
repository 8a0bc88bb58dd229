"""Reading one image file, without taking in what is too large."""

from __future__ import annotations

from pathlib import Path

from service.errors import ImageFault


def read_image(path: str, max_bytes: int) -> bytes | ImageFault:
    """Return a file's bytes, or why they cannot be had; a larger file than `max_bytes` is not read."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        return ImageFault("unreadable", reason_of(error))
    return too_large("file", max_bytes) if len(data) > max_bytes else data


def too_large(what: str, max_bytes: int) -> ImageFault:
    """Return the fault of an image that has more bytes than are taken."""
    return ImageFault("too_large", f"The {what} is larger than {max_bytes} bytes, which --max-body-bytes can raise.")


def reason_of(error: OSError) -> str:
    """Return what the system says of it, as a sentence."""
    return f"{error.strerror or error}."
