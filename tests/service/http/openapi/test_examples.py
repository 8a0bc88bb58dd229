"""The examples in the document are answers as they are sent: those of the tiny model have the same keys."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from service.http.app import interface
from service.settings import variable_of
from tests.json_keys import keys
from tests.service import tiny_model
from tests.service.conftest import Served
from tests.service.http.routes.v2.bodies import PATH
from tests.service.pictures import photo

EXAMPLES: dict[str, Any] = {
    operation["operationId"]: content["example"]
    for item in interface()["paths"].values()
    for operation in item.values()
    for content in operation["responses"]["200"].get("content", {}).values()
    if "example" in content
}
MODEL = f"/v2/models/{tiny_model.NAME}"
VERSION = f"{MODEL}/versions/{tiny_model.VERSION}"
IMAGES = {
    "params": {"on_error": "skip"},
    "files": [("image", ("photo.jpg", photo("JPEG", width=64, height=64))), ("image", ("empty.jpg", b""))],
}
TENSOR = {
    "json": {
        "id": "1",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(photo("JPEG")).decode()]}
        ],
        "outputs": [{"name": "logits", "parameters": {"classification": 3}}],
    }
}
INPUT = {"json": {"input": base64.b64encode(photo("JPEG")).decode()}}
REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "classify": ("POST", "/v1/classify", IMAGES),
    "features": ("POST", "/v1/features", IMAGES),
    "embeddings": ("POST", "/v1/embeddings", INPUT),
    "explain": ("POST", "/v1/explain", {**IMAGES, "params": {"on_error": "skip", "query": "32,32"}}),
    "list_models": ("GET", "/v1/models", {}),
    "get_model": ("GET", f"/v1/models/{tiny_model.NAME}", {}),
    "live": ("GET", "/health/live", {}),
    "ready": ("GET", "/health/ready", {}),
    "v2_server_metadata": ("GET", "/v2", {}),
    "v2_live": ("GET", "/v2/health/live", {}),
    "v2_ready": ("GET", "/v2/health/ready", {}),
    "v2_infer": ("POST", PATH, TENSOR),
    "v2_infer_version": ("POST", f"{VERSION}/infer", TENSOR),
    "v2_model_ready": ("GET", f"{MODEL}/ready", {}),
    "v2_model_version_ready": ("GET", f"{VERSION}/ready", {}),
    "v2_model_metadata": ("GET", MODEL, {}),
    "v2_model_version_metadata": ("GET", VERSION, {}),
    "v2_model_config": ("GET", f"{MODEL}/config", {}),
    "v2_model_version_config": ("GET", f"{VERSION}/config", {}),
    "v2_stats": ("GET", "/v2/models/stats", {}),
    "v2_model_stats": ("GET", f"{MODEL}/stats", {}),
    "v2_model_version_stats": ("GET", f"{VERSION}/stats", {}),
    "v2_repository_index": ("POST", "/v2/repository/index", {}),
}
"""A request to each operation, in the order in which they are sent: statistics list runs once there were any."""


async def test_every_example_has_the_keys_of_an_answer(served: Served) -> None:
    assert REQUESTS.keys() | {"metrics"} == EXAMPLES.keys()
    for name, (method, path, body) in REQUESTS.items():
        answer = await served.http.request(method, path, **body)
        assert answer.status_code == 200, (name, answer.text)
        assert keys(EXAMPLES[name]) == keys(answer.json()), name


async def test_example_of_the_metrics_is_of_metrics_that_there_are(served: Served) -> None:
    lines = (await served.http.get("/metrics")).text.splitlines()
    without_values = {line.rpartition(" ")[0] for line in lines}
    assert {line.rpartition(" ")[0] for line in EXAMPLES["metrics"].splitlines()} <= without_values


def test_no_variable_changes_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    before = interface()
    monkeypatch.setenv(variable_of("max_images"), "3")
    monkeypatch.setenv(variable_of("v2_outputs"), "all")
    assert interface() == before
