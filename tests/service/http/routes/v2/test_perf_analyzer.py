"""What Triton's perf_analyzer reads before and while it loads a server, by the types that it reads it as.

It takes a number for what it calls GetUint64 on, and ends where one is missing or of another type.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.service.conftest import Served
from tests.service.http.routes.v2.bodies import PATH, binary, tensor
from tests.service.pictures import photo

DTYPE_SIZES = {"UINT8": 1}
DURATIONS = ("success", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


def is_count(value: object) -> bool:
    return type(value) is int and value >= 0


async def described(served: Served, headers: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    metadata = (await served.http.get("/v2/models/tiny", headers=headers)).json()
    config = (await served.http.get("/v2/models/tiny/config", headers=headers)).json()
    return metadata, config


@pytest.mark.parametrize("datatype", ["UINT8", "BYTES"])
async def test_requests_made_from_the_description_alone_are_answered(served: Served, datatype: str) -> None:
    headers = {"X-Image-Datatype": datatype}
    metadata, config = await described(served, headers)
    assert isinstance(config["name"], str)
    assert config["platform"] != "ensemble"
    assert is_count(config["max_batch_size"])
    assert config["model_transaction_policy"]["decoupled"] is False
    assert config["response_cache"]["enable"] is False
    assert "dynamic_batching" in config
    assert "sequence_batching" not in config
    names = {entry["name"] for entry in metadata["inputs"]}
    assert {entry["name"] for entry in config["input"]} == names
    assert {entry["name"] for entry in config["output"]} == {entry["name"] for entry in metadata["outputs"]}
    for entry in (*config["input"], *config["output"]):
        assert entry["is_shape_tensor"] is False
    assert [entry["optional"] for entry in config["input"]] == [False]

    (described_input,) = metadata["inputs"]
    shape = described_input["shape"][1:]  # the first is the batch's, where max_batch_size is above 0
    assert all(type(side) is int and side > 0 for side in shape)
    if datatype == "BYTES":
        element = photo("JPEG")
        values = len(element).to_bytes(4, "little") + element
    else:
        size = int(np.prod(shape)) * DTYPE_SIZES[described_input["datatype"]]
        values = np.random.default_rng(0).bytes(size)
    batch = 2
    asked = {
        "inputs": [
            tensor(
                shape=[batch, *shape],
                datatype=described_input["datatype"],
                parameters={"binary_data_size": batch * len(values)},
            )
        ],
        "outputs": [{"name": entry["name"], "parameters": {"binary_data": True}} for entry in metadata["outputs"]],
        "parameters": {"triton_enable_empty_final_response": True},
    }
    response = await served.http.post(PATH, **binary(asked, values * batch, X_Image_Datatype=datatype))
    assert response.status_code == 200, response.text


async def test_statistics_are_whole_numbers_where_it_wants_them(served: Served) -> None:
    assert "statistics" in (await served.http.get("/v2")).json()["extensions"]
    for _ in range(2):  # before the first request, and after it
        for path in ("/v2/models/stats", "/v2/models/tiny/stats", "/v2/models/tiny/versions/3/stats"):
            (found,) = (await served.http.get(path)).json()["model_stats"]
            assert (found["name"], found["version"]) == ("tiny", "3")
            assert is_count(found["inference_count"])
            assert is_count(found["execution_count"])
            for name in DURATIONS:
                assert is_count(found["inference_stats"][name]["count"])
                assert is_count(found["inference_stats"][name]["ns"])
        assert (await served.http.post(PATH, **binary({"inputs": [tensor()]}))).status_code == 200
