"""Reading what OpenAI's clients send to `/v1/embeddings`, with images where they have text.

The images are under `input`, or one is in the `messages` of a chat, as vLLM has it. A key that is in neither's
interface is an error, as at OpenAI: it would be a typing error otherwise. A key that is null counts as left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.calls.upload import Upload
from service.errors import MalformedRequest
from service.http.bodies.image_text import ImageInput, check_structure, image_from, images_from
from service.http.bodies.json_text import parsed_json

_FORM = 'A body is {"input": ["<a data: URL or base64>", ...], "model": "NAME"}.'


class EmbeddingsRequest(BaseModel):
    """What is to be embedded, as OpenAI's clients ask for it."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    input: ImageInput
    """An image, or a list of images: base64 or `data:` URLs, by themselves, as `{"image": ...}`, or as the part of a
    chat message `{"type": "image_url", "image_url": {"url": ...}}`. In its place, `messages` of a chat with one image
    are taken."""
    model: str | None = None
    """The model to ask, as `NAME` or `NAME:VERSION`. By default the server's default model, and of a model its default
    version."""
    encoding_format: Literal["float", "base64"] | None = None
    """`float`, the default: lists of numbers. `base64`: their bytes, as little-endian float32."""
    dimensions: Annotated[int, Field(gt=0)] | None = None
    """Taken where it is the size that the model's embeddings have; none is shortened."""
    user: str | None = None
    """Passed over."""
    modality: Literal["image"] | None = None
    """What `input` holds, which is images alone."""
    normalize: bool | None = None
    """Scale each embedding to length 1, the default; `false` gives it as `/v1/features` does."""


class _ReadRequest(EmbeddingsRequest):
    """The same as it is read: what holds images is looked at by hand, whose errors name the place."""

    input: Any = None
    messages: Any = None


@dataclass(frozen=True, slots=True)
class EmbeddingsCall:
    """What a request asks for."""

    images: list[Upload]
    model: str | None
    dimensions: int | None
    as_base64: bool
    normalize: bool


def read_embeddings(body: bytes, max_images: int) -> EmbeddingsCall:
    """Return what a body asks for; raises MalformedRequest that names the place, or TooLarge."""
    check_structure(body, max_images)
    asked = parsed_json(_ReadRequest, body, form=_FORM)
    if (asked.input is None) == (asked.messages is None):
        both = "both 'input' and 'messages'" if asked.messages is not None else "no 'input'"
        raise MalformedRequest(f"The JSON has {both}. {_FORM}")
    if asked.messages is None:
        files = images_from(asked.input, "input", max_images)
    else:
        files = [_image_of_chat(asked.messages)]
    return EmbeddingsCall(
        images=[Upload(index, None, data) for index, data in enumerate(files)],
        model=asked.model,
        dimensions=asked.dimensions,
        as_base64=asked.encoding_format == "base64",
        normalize=asked.normalize is not False,
    )


def _image_of_chat(messages: Any) -> bytes:
    """Return the one image of a chat, which gives one embedding as a whole; raises MalformedRequest."""
    found: list[bytes] = []
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        place = f"messages[{number}].content"
        parts = content if isinstance(content, list) else [content]
        found += [image_from(part, f"{place}[{index}]") for index, part in enumerate(parts)]
    if len(found) != 1:
        raise MalformedRequest(
            f"messages hold {len(found)} images, and a chat is embedded as a whole: it has one. "
            "For several images send them as a list, 'input'."
        )
    return found[0]
