"""Requests of the inference protocol, made by hand where a client would not make them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tests.service import tiny_model
from tests.service.pictures import pixels

PATH = f"/v2/models/{tiny_model.NAME}/infer"
SHAPE = [1, tiny_model.SIZE, tiny_model.SIZE, 3]
PIXELS = pixels(tiny_model.SIZE, tiny_model.SIZE)
LOGITS = tiny_model.reference(PIXELS[None])["logits"]


def tensor(**changes: Any) -> dict[str, Any]:
    """One image's pixels as an input, whose values are behind the JSON unless `changes` have `data`."""
    described = {"name": "image", "shape": SHAPE, "datatype": "UINT8", **changes}
    if "data" not in changes:
        described.setdefault("parameters", {"binary_data_size": PIXELS.nbytes})
    return described


def document(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs or [tensor()]), **more}


def binary(asked: Any, behind: bytes = PIXELS.tobytes(), *, length: object = None, **headers: str) -> dict[str, Any]:
    """The arguments of a post whose JSON is followed by bytes."""
    text = json.dumps(asked).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        "content": text + behind,
        "headers": {"Inference-Header-Content-Length": str(len(text) if length is None else length), **named},
    }


def logits_of(response: Any) -> np.ndarray:
    """The logits of an answer in JSON."""
    assert response.status_code == 200, response.text
    (output,) = response.json()["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])
