"""What KServe's client makes of a server; run by its own interpreter, it prints one JSON object.

Arguments: the server's address, the model, and a file of the pixels of a batch, as NumPy saves them, beside one of an
image.
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


def request(model: str, tensor: np.ndarray, datatype: str, *, binary: bool) -> InferRequest:
    image = InferInput("image", list(tensor.shape), datatype)
    image.set_data_from_numpy(tensor, binary_data=binary)
    outputs = [RequestedOutput(name, parameters={"binary_data": binary}) for name in ("logits", "embedding")]
    return InferRequest(model_name=model, infer_inputs=[image], request_id="kserve-1", request_outputs=outputs)


async def talk(url: str, model: str, pixels: np.ndarray, file: bytes) -> dict[str, Any]:
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        said: dict[str, Any] = {
            "version": version("kserve"),
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model_ready": await client.is_model_ready(url, model),
        }
        requests = {
            "json": request(model, pixels, "UINT8", binary=False),
            "binary": request(model, pixels, "UINT8", binary=True),
            "fp32": request(model, pixels.astype(np.float32), "FP32", binary=True),
            "file": request(model, np.array([file], np.object_), "BYTES", binary=True),
        }
        for name, asked in requests.items():
            answer = await client.infer(url, asked, model_name=model)
            said[name] = {
                "id": answer.id,
                "model": answer.model_name,  # the client does not keep the version
                "outputs": {output.name: output.as_numpy().tolist() for output in answer.outputs},
            }
        try:
            await client.infer(url, requests["json"], model_name="other")
        except httpx.HTTPStatusError as error:
            said["error"] = [error.response.status_code, str(error)]
    return said


if __name__ == "__main__":
    url, model, pixels_path, file_path = sys.argv[1:]
    print(json.dumps(asyncio.run(talk(url, model, np.load(pixels_path), Path(file_path).read_bytes()))))  # noqa: T201
