"""What KServe's client over gRPC makes of a server; run by its own interpreter, it prints one JSON object.

Arguments: the server's address, the model, and a file of the pixels of a batch, as NumPy saves them, beside one of an
image.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest


def request(model: str, tensor: np.ndarray, datatype: str, *, binary: bool) -> InferRequest:
    image = InferInput("image", list(tensor.shape), datatype)
    image.set_data_from_numpy(tensor, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[image], request_id="kserve-1")


async def talk(url: str, model: str, pixels: np.ndarray, file: bytes) -> dict[str, Any]:
    client = InferenceGRPCClient(url)
    said: dict[str, Any] = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model_ready": await client.is_model_ready(model),
        "other_ready": await client.is_model_ready("other"),
    }
    requests = {
        "raw": request(model, pixels, "UINT8", binary=True),
        "typed": request(model, pixels, "UINT8", binary=False),
        "file": request(model, np.array([file], np.object_), "BYTES", binary=True),
    }
    for name, asked in requests.items():
        answer = await client.infer(asked)
        said[name] = answer.outputs[0].as_numpy().tolist()
    try:
        await client.infer(request("other", pixels, "UINT8", binary=True))
    except grpc.RpcError as error:
        said["error"] = [error.code().name, error.details()]
    await client.close()
    return said


if __name__ == "__main__":
    url, model, pixels_path, file_path = sys.argv[1:]
    print(json.dumps(asyncio.run(talk(url, model, np.load(pixels_path), Path(file_path).read_bytes()))))  # noqa: T201
