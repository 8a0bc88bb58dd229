"""Reading a JSON body into the model that describes it, with errors that name the place."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from service.errors import MalformedRequest

ModelT = TypeVar("ModelT", bound=BaseModel)


def parsed_json(kind: type[ModelT], text: bytes, *, form: str = "") -> ModelT:
    """Return a JSON document; raises MalformedRequest that names the place of what is wrong, followed by `form`.

    A byte order mark before it is passed over, as RFC 8259 allows. Lists in `kind` that a caller fills are FailFast:
    an error is kept for every wrong element otherwise, and a body has room for millions.
    """
    try:
        return kind.model_validate_json(text.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        if 0 in text[:2] or text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise MalformedRequest("The JSON is in UTF-16 or UTF-32; JSON is sent in UTF-8.") from error
        first = _first_of(error)
        wrong = f"The JSON is wrong at {_place(first['loc'])}: {first['msg']}."
        raise MalformedRequest(f"{wrong} {form}" if form else wrong) from error


def validated(kind: type[ModelT], value: Any, place: str) -> ModelT:
    """Return a part of a document that was parsed before; raises MalformedRequest as `parsed_json`, from its place."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = _first_of(error)
        steps: list[int | str] = []
        for step in first["loc"]:  # among which are names of what a value might have been
            if isinstance(value, dict) and step in value:
                steps.append(step)
                value = value[step]
        raise MalformedRequest(f"The JSON is wrong at {_place(steps, place)}: {first['msg']}.") from error


def _first_of(error: ValidationError) -> ErrorDetails:
    return error.errors(include_url=False, include_input=False, include_context=False)[0]


def _place(steps: Sequence[int | str], below: str = "") -> str:
    """Return the way to a value as JavaScript and Python would write it."""
    path = below + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return path.lstrip(".") or "its top"
