"""Images in JSON, in each of the forms in which clients write one.

A string is base64 or a `data:` URL. An object has the image under `image` or `b64`, or is the part of a chat message
that OpenAI's clients call `image_url`. Nothing is fetched: the URL holds the image itself.

Some callers of an image's place mean text, since other servers of the same interface embed that: they are told what
this one takes. Text without blanks and punctuation is base64 too, so that a short string of no image counts as text;
what is longer, or was said to be an image, is left to the decoder, which knows what is wrong with it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

from service.calls.base64_text import from_base64
from service.calls.upload import PREFIX_BYTES, encodes_an_image
from service.errors import MalformedRequest, TooLarge
from service.http.bodies.json_text import validated
from service.images.formats import begins_like_an_image

FORM = 'One image or a list of them, each as base64 or a data: URL, by itself or as {"image": ...}.'
_SHORT_CHARACTERS = 64
"""Less than this is no image file that does not begin like one."""
_LOCATED = re.compile(r"\s*(data:|[a-z][a-z0-9+.-]{0,31}://)", re.IGNORECASE)
_KEYS = ("image", "b64", "content", "image_url")
_MARKS = (b"{", b"[", b",")
_PARTS = 256
_PARTS_OF_AN_IMAGE = 16


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class ImageUrl(_Part):
    """The address of an image, which holds the image itself."""

    url: str
    """A `data:` URL, or base64."""
    detail: str | None = None
    """Passed over: a model has one size, or the query says which."""


class Base64Object(_Part):
    """Base64 that says that it is."""

    b64: str
    """Base64 of a file."""


ImageText = TypeAliasType("ImageText", Annotated[str, Field(description="Base64 or a `data:` URL of a file.")])
ImageValue = TypeAliasType(
    "ImageValue", Annotated[ImageText | Base64Object, Field(description="A file as text, or as an object.")]
)
ImageAddress = TypeAliasType(
    "ImageAddress", Annotated[ImageText | ImageUrl, Field(description="A `data:` URL, as the part of a chat has it.")]
)


class ImageObject(_Part):
    """An image as an object: it has exactly one of `image`, `b64`, `content` and `image_url`."""

    type: Literal["image", "image_url"] | None = None
    """Says no more than the others do."""
    image: ImageValue | None = None
    """Base64 or a `data:` URL of a file."""
    b64: str | None = None
    """The same."""
    content: str | None = None
    """The same."""
    image_url: ImageAddress | None = None
    """A `data:` URL, as the part of a chat message has it."""


ImageItem = TypeAliasType("ImageItem", Annotated[ImageText | ImageObject, Field(description="One image.")])
ImageInput = TypeAliasType(
    "ImageInput",
    Annotated[ImageText | ImageObject | Annotated[list[ImageItem], Field(min_length=1)], Field(description=FORM)],
)


def check_structure(body: bytes, max_images: int) -> None:
    """Raise TooLarge where a JSON body has more parts than `max_images` images can have, before it is parsed.

    What is parsed takes memory by its parts, some hundred bytes for each, however short they are written. Base64 has
    none of the characters that divide JSON, so that to count them tells parts from images.
    """
    if sum(body.count(mark) for mark in _MARKS) > _PARTS + max_images * _PARTS_OF_AN_IMAGE:
        raise TooLarge(f"The JSON has more parts than a request with {max_images} images, the most that are taken.")


def images_from(value: Any, place: str, max_images: int) -> list[bytes]:
    """Return the files of one image, or of a list of them, at least one, as parsed JSON has them.

    Raises MalformedRequest that names the place of what is wrong, or TooLarge.
    """
    if not isinstance(value, list):
        return [image_from(value, place)]
    if not value:
        raise MalformedRequest(f"{place} holds no image. {FORM}")
    if len(value) > max_images:
        raise TooLarge(f"The request has more than {max_images} images.")
    return [image_from(item, f"{place}[{index}]") for index, item in enumerate(value)]


def image_from(value: Any, place: str) -> bytes:
    """Return the bytes of an image, as parsed JSON has it; raises MalformedRequest that names what is wrong where."""
    if isinstance(value, str):
        return _from_bare(value, place)
    if not isinstance(value, dict):
        raise _no_image(place)
    if isinstance(value.get("text"), str):
        raise _no_image(f"{place}.text")
    return _from_object(validated(ImageObject, value, place), place)


def _from_object(item: ImageObject, place: str) -> bytes:
    given = [key for key in _KEYS if getattr(item, key) is not None]
    if len(given) != 1:
        raise MalformedRequest(f"{place} has {' and '.join(given) or 'none'} of {', '.join(_KEYS)}; it wants one.")
    (key,) = given
    image, place = getattr(item, key), f"{place}.{key}"
    if isinstance(image, ImageUrl):
        image, place = image.url, f"{place}.url"
    elif isinstance(image, Base64Object):
        image, place = image.b64, f"{place}.b64"
    return from_base64(image, place)


def _from_bare(text: str, place: str) -> bytes:
    if _LOCATED.match(text):
        return from_base64(text, place)
    try:
        data = from_base64(text, place)
    except MalformedRequest:
        if encodes_an_image(text[:PREFIX_BYTES].encode("utf-8", "replace")):
            raise
        raise _no_image(place) from None
    if len(text) < _SHORT_CHARACTERS and not begins_like_an_image(data):
        raise _no_image(place)
    return data


def _no_image(place: str) -> MalformedRequest:
    return MalformedRequest(
        f"{place} is text, or no image. The model is a vision model, which takes images alone: send each as base64 or "
        "as a data: URL."
    )
