"""What is said of models in every state, and who is ready when."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.model.directory import ModelDirectory
from service.serving.states import ModelState, Parity, VersionStatus
from tests.service.conftest import GatedSession, Served, serving, until
from tests.service.fixed_hosting import status_of

WHY = "what cuda:0 computes differs from what the CPU does by 0.3, more than 0.01"
OTHERS = (
    VersionStatus("tiny", 2, ModelState.DRAINING, devices=("cpu",)),
    VersionStatus("tiny", 4, ModelState.FAILED, WHY, devices=("cuda:0",), parity=Parity(0.3, 0.01)),
    VersionStatus("broken", 1, ModelState.FAILED, "model.onnx does not match its sha256"),
    VersionStatus("coming", 1, ModelState.LOADING),
    VersionStatus("gone", 1, ModelState.UNLOADED),
)


def publish_all(served: Served) -> None:
    (ready,) = served.hosting.fixed
    served.hosting.models.publish([*OTHERS, status_of(ready)], [ready])


async def test_every_version_is_listed_as_it_is_the_default_models_first(served: Served) -> None:
    publish_all(served)
    listed = (await served.http.get("/v1/models")).json()
    assert listed["default"] == "tiny"
    found = [(each["name"], each["version"], each["state"], each["is_default"]) for each in listed["models"]]
    assert found == [
        ("tiny", 2, "draining", False),
        ("tiny", 3, "ready", True),
        ("tiny", 4, "failed", False),
        ("broken", 1, "failed", False),
        ("coming", 1, "loading", False),
        ("gone", 1, "unloaded", False),
    ]
    failed = listed["models"][2]
    assert failed["reason"] == WHY
    assert (failed["variant"], failed["devices"]) == (None, ["cuda:0"])
    assert failed["parity"] == {"error": 0.3, "tolerance": 0.01}
    assert [each["reason"] for each in listed["models"] if each["state"] != "failed"] == [""] * 4


async def test_version_that_answers_is_described_with_how_all_others_are(served: Served) -> None:
    publish_all(served)
    listed = (await served.http.get("/v1/models")).json()["models"]
    for query in ("", "?version=3"):
        details = (await served.http.get(f"/v1/models/tiny{query}")).json()
        assert (details["version"], details["state"], details["is_default"]) == (3, "ready", True)
        assert (details["devices"], details["graphs"]) == (["cpu"], ["standard"])
        assert (details["parity"], details["reason"]) == (None, "")
        assert details["versions"] == listed[:3]


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("tiny?version=4", 404, WHY),
        ("tiny?version=2", 404, "draining"),
        ("tiny?version=9", 404, "no version '9'"),
        ("tiny?version=x", 404, "no version 'x'"),
        ("broken", 404, "does not match its sha256"),
        ("gone", 404, "unloaded"),
        ("coming", 503, "loaded"),
        ("other", 404, "no model 'other'"),
    ],
)
async def test_model_without_a_version_that_answers_says_why(served: Served, path: str, status: int, says: str) -> None:
    publish_all(served)
    response = await served.http.get(f"/v1/models/{path}")
    assert response.status_code == status
    assert says in response.json()["detail"]


READY: list[tuple[str, int, str]] = [
    ("tiny", 200, ""),
    ("tiny/versions/3", 200, ""),
    ("tiny/versions/4", 503, WHY),
    ("tiny/versions/2", 503, "draining"),
    ("tiny/versions/9", 404, "no version '9'"),
    ("broken", 503, "sha256"),
    ("coming", 503, "loaded"),
    ("coming/versions/1", 503, "loaded"),
    ("gone", 503, "unloaded"),
    ("other", 404, "no model 'other'"),
    ("other/versions/1", 404, "no model 'other'"),
]


@pytest.mark.parametrize(("path", "status", "says"), READY)
async def test_each_model_is_ready_by_itself_and_says_why_where_not(
    served: Served, path: str, status: int, says: str
) -> None:
    publish_all(served)
    response = await served.http.get(f"/v2/models/{path}/ready")
    assert response.status_code == status
    if status == 200:
        assert response.json() == {"name": "tiny", "ready": True}
    else:
        assert says in response.json()["error"]


async def test_server_is_as_ready_as_what_serves_whatever_could_not_be_loaded_later(served: Served) -> None:
    publish_all(served)
    for path in ("/health/ready", "/v2/health/ready"):
        assert (await served.http.get(path)).status_code == 200
    served.engine._die("killed by a test")
    response = await served.http.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["detail"] == "tiny: The engine is dead."
    assert (await served.http.get("/v2/models/tiny/ready")).json() == {"error": "tiny: The engine is dead."}
    entries: list[Any] = (await served.http.post("/v2/repository/index", json={"ready": True})).json()
    assert entries == []


async def test_server_is_not_ready_before_every_model_of_the_start_takes_work(model: ModelDirectory) -> None:
    session = GatedSession()
    session.close()
    async with serving(model, session, wait_ready=False) as served:
        (loading,) = served.hosting.fixed
        served.hosting.models.publish([status_of(loading)], [loading])  # one that takes work while another does not
        assert (await served.http.get("/health/ready")).status_code == 503
        session.gate.set()
        await until(lambda: served.app.state.service.started.is_set())
        assert (await served.http.get("/health/ready")).status_code == 200


async def test_server_that_unloaded_everything_is_ready_and_answers_404(served: Served) -> None:
    (ready,) = served.hosting.fixed
    served.hosting.models.publish([status_of(ready, ModelState.UNLOADED, is_default=False)], [])
    assert (await served.http.get("/health/ready")).status_code == 200
    response = await served.http.post("/v1/classify", content=b"x", headers={"Content-Type": "image/png"})
    assert response.status_code == 404
    assert "unloaded" in response.json()["detail"]


async def test_model_says_that_it_resizes_fast_and_does_so(model: ModelDirectory) -> None:
    image = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)).save(image, "JPEG")
    answers = {}
    for resize in ("exact", "fast"):
        async with serving(model, resize=resize) as served:
            assert (await served.http.get("/v1/models/tiny")).json()["resize"] == resize
            answer = await served.http.post(
                "/v1/features?outputs=stage4", content=image.getvalue(), headers={"content-type": "image/jpeg"}
            )
            answers[resize] = np.array(answer.json()["results"][0]["features"]["stage4"])
    off = np.abs(answers["fast"] - answers["exact"])
    assert 0 < off.max() < 0.2
