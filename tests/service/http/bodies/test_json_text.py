"""What is said of JSON that cannot be read, at bounded cost."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from service.errors import MalformedRequest
from service.http.bodies.json_text import parsed_json
from service.http.bodies.uploads import JsonImages
from service.protocol.schemas import InferRequest


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_named(encoding: str) -> None:
    with pytest.raises(MalformedRequest, match="UTF-16 or UTF-32; JSON is sent in UTF-8"):
        parsed_json(JsonImages, '{"images": []}'.encode(encoding))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b'{"images": ["", 5]}', "at images[1]: "),
        (b"[]", "at its top: "),
        (b"", "at its top: Invalid JSON"),
        (b'{"images": ["\xe4"]}', "at its top: Invalid JSON"),
        (b'\xef\xbb\xbf\xef\xbb\xbf{"images": []}', "at its top: Invalid JSON"),
        (b'{"images": NaN}', "at images: "),
    ],
)
def test_place_is_named(text: bytes, place: str) -> None:
    with pytest.raises(MalformedRequest) as raised:
        parsed_json(JsonImages, text)
    assert place in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (JsonImages, b'{"images": [%b]}'),
        (InferRequest, b'{"inputs": [%b]}'),
        (InferRequest, b'{"inputs": [], "outputs": [%b]}'),
        (InferRequest, b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [%b]}]}'),
    ],
    ids=["images", "inputs", "outputs", "shape"],
)
def test_a_list_of_wrong_elements_keeps_one_error_and_not_one_for_each(kind: type[BaseModel], text: bytes) -> None:
    with pytest.raises(ValidationError) as raised:
        kind.model_validate_json(text % b",".join([b"null"] * 1000))
    assert raised.value.error_count() == 1
