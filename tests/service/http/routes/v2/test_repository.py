"""The protocol's repository: what it lists, and who may have models loaded and unloaded."""

from __future__ import annotations

import dataclasses
from typing import Any

import httpx
import pytest

from service.access.keys import ApiKey
from service.model.directory import ModelDirectory
from service.serving.states import ModelState, VersionStatus
from tests.api_keys import entry_of
from tests.service.conftest import Served, serving
from tests.service.fixed_hosting import FakeControl, status_of

LOAD, UNLOAD, INDEX = (f"/v2/repository/{path}" for path in ("models/tiny/load", "models/tiny/unload", "index"))
USER = ApiKey.parse(entry_of("user's", "user"))
ADMIN = dataclasses.replace(ApiKey.parse(entry_of("admin's", "admin")), role="admin")


def error_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    message: str = response.json()["error"]
    return message


async def test_index_has_every_version_with_its_state_as_triton_says_it(served: Served) -> None:
    (ready,) = served.hosting.fixed
    others = [
        VersionStatus("tiny", 2, ModelState.DRAINING),
        VersionStatus("tiny", 4, ModelState.FAILED, "its files are not what its manifest says"),
        VersionStatus("coming", 1, ModelState.LOADING),
        VersionStatus("gone", 1, ModelState.UNLOADED),
    ]
    served.hosting.models.publish([*others, status_of(ready)], [ready])
    entries = (await served.http.post(INDEX)).json()
    assert [(each["name"], each["version"], each["state"]) for each in entries] == [
        ("tiny", "2", "UNLOADING"),
        ("tiny", "3", "READY"),
        ("tiny", "4", "UNAVAILABLE"),
        ("coming", "1", "LOADING"),
        ("gone", "1", "UNAVAILABLE"),
    ]
    assert [each["reason"] for each in entries][1:3] == ["", "its files are not what its manifest says"]
    assert all(each["reason"] for each in entries if each["state"] != "READY")
    (only,) = (await served.http.post(INDEX, json={"ready": True})).json()
    assert only == {"name": "tiny", "version": "3", "state": "READY", "reason": ""}


@pytest.mark.parametrize("path", [LOAD, UNLOAD, LOAD.replace("tiny", "other")])
async def test_nothing_is_loaded_or_unloaded_where_model_control_is_off(served: Served, path: str) -> None:
    assert "--model-control is off" in error_of(await served.http.post(path), 403)
    assert (await served.http.get("/v2/models/tiny/ready")).status_code == 200


async def test_only_keys_of_admins_load_and_unload(model: ModelDirectory) -> None:
    control = FakeControl()
    async with serving(model, control=control, api_keys=(USER, ADMIN)) as served:
        for path in (LOAD, UNLOAD):
            error_of(await served.http.post(path), 401)
            refused = await served.http.post(path, headers={"Authorization": "Bearer user's"})
            assert "role=admin" in error_of(refused, 403)
        assert control.asked == []
        for path in (UNLOAD, LOAD):
            assert (await served.http.post(path, headers={"Authorization": "Bearer admin's"})).status_code == 200
        assert control.asked == [("unload", "tiny"), ("load", "tiny")]
        assert (await served.http.post(INDEX, headers={"Authorization": "Bearer user's"})).status_code == 200


async def test_model_is_unloaded_and_loaded_again(model: ModelDirectory) -> None:
    async with serving(model, control=FakeControl()) as served:
        for body in ({}, {"json": {}}, {"json": {"parameters": {"unload_dependents": False}}}):
            response = await served.http.post(UNLOAD, **body)
            assert (response.status_code, response.content) == (200, b"")
            assert (await served.http.get("/v2/models/tiny/ready")).status_code == 503
            (entry,) = (await served.http.post(INDEX)).json()
            assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "It is not loaded.")
            response = await served.http.post(LOAD, **(body if "parameters" not in str(body) else {}))
            assert (response.status_code, response.content) == (200, b"")
            assert (await served.http.get("/v2/models/tiny/ready")).status_code == 200


async def test_model_that_cannot_be_loaded_is_422_with_the_reason_and_one_that_is_not_there_404(
    model: ModelDirectory,
) -> None:
    control = FakeControl()
    control.failures["tiny"] = "tiny version 4: model.onnx does not match its sha256"
    async with serving(model, control=control) as served:
        assert error_of(await served.http.post(LOAD), 422) == control.failures["tiny"]
        assert served.sample("dat_requests_total", status="422", code="load_failed") == 1
        assert (await served.http.get("/v2/models/tiny/ready")).status_code == 200
        for path in (LOAD, UNLOAD):
            assert "'other'" in error_of(await served.http.post(path.replace("tiny", "other")), 404)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (LOAD, {"parameters": {"config": "{}"}}, "'config'"),
        (LOAD, {"parameters": {"config": "{}", "file:1/model.onnx": "AAAA"}}, "'file:1/model.onnx'"),
        (LOAD, {"parameters": []}, "parameters"),
        (UNLOAD, {"parameters": {"unload_dependents": "yes"}}, "true or false"),
        (UNLOAD, {"parameters": {"force": True}}, "unload_dependents"),
        (UNLOAD, [], "JSON is wrong"),
    ],
)
async def test_parameters_that_could_not_be_followed_are_refused(
    model: ModelDirectory, path: str, body: Any, says: str
) -> None:
    control = FakeControl()
    async with serving(model, control=control) as served:
        assert says in error_of(await served.http.post(path, json=body), 400)
        assert control.asked == []
