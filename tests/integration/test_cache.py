"""Kept answers in services as they run: in several workers, and of versions that come and go."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import PATIENCE_S, Process, service_process
from tests.service import tiny_model
from tests.service.pictures import photo

PHOTOS = [photo("JPEG", seed=seed) for seed in range(3)]


def client_of(process: Process) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{process.port}", timeout=PATIENCE_S)


def classified(client: httpx.Client, image: bytes, query: str = "") -> Mapping[str, Any]:
    response = client.post(f"/v1/classify{query}", content=image, headers={"Content-Type": "image/jpeg"})
    assert response.status_code == 200, response.text
    answer: Mapping[str, Any] = response.json()
    return answer


def cache_metrics(client: httpx.Client) -> dict[str, float]:
    """What the cache's metrics say, of all versions together; lookups by their outcome."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name.startswith("dat_cache_") and not sample.name.endswith("_created"):
                name = sample.labels.get("outcome", sample.name)
                found[name] = found.get(name, 0) + sample.value
    return found


def test_a_version_that_is_unloaded_or_replaced_leaves_with_its_answers(tmp_path: Path) -> None:
    tiny_model.write(tmp_path, name="a", version=1)
    tiny_model.write(tmp_path, name="b", version=1)
    options = ("--threads", "1", "--model", "all", "--model-control", "--cache-images", "10")
    with service_process(tmp_path, *options) as process, client_of(process) as client:
        of_a, of_b = (classified(client, PHOTOS[0], f"?model={name}") for name in "ab")
        assert classified(client, PHOTOS[0], "?model=a")["results"] == of_a["results"]
        found = cache_metrics(client)
        assert (found["hit"], found["miss"], found["dat_cache_images"]) == (1, 2, 2)

        assert client.post("/v2/repository/models/b/unload", json={}).status_code == 200
        found = cache_metrics(client)
        assert found["dat_cache_images"] == 1
        assert client.post("/v2/repository/models/b/load", json={}).status_code == 200
        assert classified(client, PHOTOS[0], "?model=b")["results"] == of_b["results"]
        assert cache_metrics(client)["dat_cache_images"] == 2

        shutil.rmtree(tmp_path / "a" / "1")  # other weights under the same number
        tiny_model.write(tmp_path, name="a", version=1, seed=8)
        assert client.post("/v2/repository/models/a/load", json={}).status_code == 200
        assert classified(client, PHOTOS[0], "?model=a")["results"] != of_a["results"]
        found = cache_metrics(client)
        assert found["dat_cache_images"] == 2
        assert found["dat_cache_evictions_total"] == 0


def test_workers_keep_answers_each_for_itself_and_count_them_together(repository: Path) -> None:
    options = ("--threads", "1", "--workers", "2", "--cache-images", "2")
    with service_process(repository, *options) as process:
        first: list[Mapping[str, Any]] = []
        for _ in range(4):  # a connection is one worker's, and which is for the kernel to say
            with client_of(process) as client:
                answers = [classified(client, image) for image in PHOTOS[:2]]
                first = first or answers
                for before, answer in zip(first, answers, strict=True):
                    assert answer["results"] == before["results"]
                again = [classified(client, image) for image in PHOTOS[:2]]
                assert [each["timings_ms"]["inference"] for each in again] == [0, 0]
        with client_of(process) as client:
            found = cache_metrics(client)
            assert found["hit"] + found["miss"] == 16
            assert found["miss"] == found["dat_cache_images"]
            assert found["miss"] in (2, 4)
            classified(client, PHOTOS[2])
            assert cache_metrics(client)["dat_cache_evictions_total"] in (
                0,
                1,
            )  # a worker that was not asked before has room
