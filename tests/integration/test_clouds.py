"""A service as the platforms of clouds start, ask and end it."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import service_process
from tests.service.pictures import photo

PHOTO = photo("JPEG")


def test_vertex_ai_is_answered_by_every_worker_at_its_paths(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    health = "/v1/endpoints/12/deployedModels/34"
    monkeypatch.setenv("AIP_HEALTH_ROUTE", health)
    monkeypatch.setenv("AIP_PREDICT_ROUTE", f"{health}:predict")
    with service_process(repository, "--cloud", "vertex", "--workers", "2") as process:
        url = f"http://127.0.0.1:{process.port}"
        body = {"instances": [{"b64": base64.b64encode(PHOTO).decode()}], "parameters": {"top_k": 1}}
        for _ in range(6):  # a connection each
            assert httpx.get(f"{url}{health}").status_code == 200
            answer = httpx.post(f"{url}{health}:predict", json=body)
            assert len(answer.json()["predictions"][0]["predictions"]) == 1
        process.popen.terminate()
        assert process.end() == 0


def test_sagemaker_is_answered_and_its_end_is_orderly(repository: Path) -> None:
    with service_process(repository, "--cloud", "sagemaker") as process:
        url = f"http://127.0.0.1:{process.port}"
        assert httpx.get(f"{url}/ping").status_code == 200
        headers = {"Content-Type": "application/x-image", "X-Amzn-SageMaker-Custom-Attributes": "top_k=1"}
        answer = httpx.post(f"{url}/invocations", content=PHOTO, headers=headers)
        assert len(answer.json()["results"][0]["predictions"]) == 1
        process.popen.terminate()
        assert process.end() == 0
