"""Requests to several models, and to several versions of one: each is answered by one of them, wholly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.model.directory import ModelDirectory, open_model
from service.serving import served as serving_room
from service.serving.states import ModelState
from service.settings import Settings
from tests.service import tiny_model
from tests.service.conftest import PATIENCE_S, GatedSession, Served, load_on_cpu, serving
from tests.service.fixed_hosting import engine_of, served_by, status_of
from tests.service.http.routes.v2.bodies import binary, document, tensor
from tests.service.http.test_ends import RAW, Exchange
from tests.service.pictures import expected, photo, pixels

LARGE, LARGE_SIZE, LARGE_SEED = "large", 2 * tiny_model.SIZE, 8
NEW_VERSION, NEW_SEED = 4, 9
PHOTO = photo("PNG")
FILE: dict[str, Any] = {"content": PHOTO, "headers": {"Content-Type": "image/png"}}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ModelDirectory:
    """A model of twice the size, with other weights, that cannot say where it looks."""
    root = tmp_path_factory.mktemp("large")
    return open_model(tiny_model.write(root, name=LARGE, version=1, size=LARGE_SIZE, seed=LARGE_SEED, explain=False))


@pytest.fixture
async def both(model: ModelDirectory, large: ModelDirectory) -> AsyncIterator[Served]:
    async with serving(model, others=[large]) as running:
        yield running


def answers_of(response: httpx.Response) -> tuple[dict[str, Any], np.ndarray]:
    """The model that answered, and the logits of the one image."""
    assert response.status_code == 200, response.text
    answer = response.json()
    assert response.headers["x-model-name"] == answer["model"]["name"]
    assert response.headers["x-model-version"] == str(answer["model"]["version"])
    return answer["model"], np.array(answer["results"][0]["features"]["logits"], np.float32)


@pytest.mark.parametrize(
    ("query", "name", "version", "size", "seed"),
    [
        ("", "tiny", 3, tiny_model.SIZE, tiny_model.SEED),
        ("&model=tiny", "tiny", 3, tiny_model.SIZE, tiny_model.SEED),
        ("&model=tiny:3", "tiny", 3, tiny_model.SIZE, tiny_model.SEED),
        ("&model=large", LARGE, 1, LARGE_SIZE, LARGE_SEED),
        ("&model=large%3A1", LARGE, 1, LARGE_SIZE, LARGE_SEED),
    ],
)
async def test_model_that_is_named_answers_and_the_first_where_none_is(
    both: Served, query: str, name: str, version: int, size: int, seed: int
) -> None:
    reference, logits = answers_of(await both.http.post(f"/v1/features?outputs=logits{query}", **FILE))
    assert reference == {"name": name, "version": version}
    np.testing.assert_allclose(logits, expected(PHOTO, "logits", size=size, seed=seed), atol=1e-3)
    labels = {"model": name, "version": str(version)}
    assert both.sample("dat_requests_total", **labels, route="/v1/features", code="ok") == 1
    assert both.sample("dat_images_total", **labels, outcome="ok") == 1
    assert both.sample("dat_requests_total", route="/v1/features") == 1


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("tiny:9", "no version '9' of 'tiny'"),
        ("tiny:03", "no version '03' of 'tiny'"),
        ("tiny:latest", "no version 'latest' of 'tiny'"),
        ("tiny:", "no version '' of 'tiny'"),
        ("tiny:3:3", "no version '3:3' of 'tiny'"),
        ("tiny:-3", "no version '-3' of 'tiny'"),
        ("other", "no model 'other'"),
        ("other:1", "no model 'other'"),
        (":3", "no model ''"),
        ("", "no model ''"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features", "/v1/explain"])
async def test_model_or_version_that_is_not_there_is_404_with_a_sentence(
    both: Served, path: str, reference: str, says: str
) -> None:
    response = await both.http.post(path, params={"model": reference}, **FILE)
    assert (response.status_code, response.json()["code"]) == (404, "unknown_model")
    assert says in response.json()["detail"]
    assert both.sample("dat_requests_total", model="", version="", route=path, status="404") == 1


async def test_what_a_model_lacks_is_said_of_that_model(both: Served) -> None:
    assert (await both.http.post("/v1/explain?model=tiny", **FILE)).status_code == 200
    response = await both.http.post("/v1/explain?model=large", **FILE)
    assert (response.status_code, response.json()["code"]) == (404, "explain_unavailable")
    assert LARGE in response.json()["detail"]


async def test_settings_of_a_model_are_its_own(model: ModelDirectory, large: ModelDirectory) -> None:
    async with serving(model) as served:
        own = Settings(top_k=2, v2_outputs=("embedding",), threads=1)
        engine = engine_of(large, lambda graph: load_on_cpu(large, graph), own, served.metrics)
        await engine.start()
        await engine.wait_ready()
        published = [*served.hosting.fixed, served_by(engine, large, own, served.metrics)]
        served.hosting.models.publish([status_of(each) for each in published], published)
        for name, classes, output in (("tiny", 5, "logits"), (LARGE, 2, "embedding")):
            answer = (await served.http.post(f"/v1/classify?model={name}", **FILE)).json()
            assert len(answer["results"][0]["predictions"]) == classes
            metadata = (await served.http.get(f"/v2/models/{name}")).json()
            assert [each["name"] for each in metadata["outputs"]] == [output]
        await engine.stop()


async def test_tensors_are_of_the_size_of_the_model_in_the_path(both: Served) -> None:
    image = pixels(LARGE_SIZE, LARGE_SIZE)
    given = tensor(shape=[1, *image.shape], parameters={"binary_data_size": image.nbytes})
    request = binary(document(given), image.tobytes())
    for path in ("/v2/models/large/infer", "/v2/models/large/versions/1/infer"):
        answer = (await both.http.post(path, **request)).json()
        assert (answer["model_name"], answer["model_version"]) == (LARGE, "1")
        logits = tiny_model.reference(image[None], seed=LARGE_SEED)["logits"].ravel()
        np.testing.assert_allclose(answer["outputs"][0]["data"], logits, atol=1e-3)
    refused = await both.http.post("/v2/models/tiny/infer", **request)
    assert refused.status_code == 400
    assert "[batch, 56, 56, 3]" in refused.json()["error"]


async def test_statistics_are_of_each_version_and_of_those_asked_for(both: Served) -> None:
    await both.http.post("/v1/classify?model=large", **FILE)
    await both.http.post("/v1/classify?model=large", **FILE)
    await both.http.post("/v1/classify", **FILE)
    for path, counts in (
        ("/v2/models/stats", {"tiny": 1, LARGE: 2}),
        ("/v2/models/tiny/stats", {"tiny": 1}),
        ("/v2/models/large/versions/1/stats", {LARGE: 2}),
    ):
        found = (await both.http.get(path)).json()["model_stats"]
        assert {each["name"]: each["inference_count"] for each in found} == counts
        assert {each["name"]: each["inference_stats"]["success"]["count"] for each in found} == counts


async def test_log_says_which_version_a_request_came_to(both: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="service.access"):
        await both.http.post("/v1/classify?model=large", **FILE)
        await both.http.post("/v1/classify?model=other", **FILE)
        await both.http.get("/health/ready")
    lines = [record.__dict__["fields"] for record in caplog.records if record.name == "service.access"]
    assert [(fields.get("model"), fields.get("version")) for fields in lines] == [
        (LARGE, 1),
        (None, None),
        (None, None),
    ]


async def new_version(served: Served, root: Path) -> serving_room.Served:
    """Load a newer version of the tiny model, with other weights."""
    directory = open_model(tiny_model.write(root, version=NEW_VERSION, seed=NEW_SEED))
    settings = Settings(threads=1)
    engine = engine_of(directory, lambda graph: load_on_cpu(directory, graph), settings, served.metrics)
    await engine.start()
    await engine.wait_ready()
    return served_by(engine, directory, settings, served.metrics)


async def test_request_that_runs_while_its_version_is_replaced_is_answered_wholly_by_that(
    model: ModelDirectory, tmp_path: Path
) -> None:
    session = GatedSession()
    async with serving(model, session) as served:
        (old,) = served.hosting.fixed
        new = await new_version(served, tmp_path)
        session.close()
        running = asyncio.create_task(served.http.post("/v1/features?outputs=logits", **FILE))
        await session.run_began()
        served.hosting.models.publish([status_of(old, ModelState.DRAINING, is_default=False), status_of(new)], [new])
        unused = asyncio.create_task(old.wait_unused())
        for query in ("", "&model=tiny", "&model=tiny:4"):
            reference, logits = answers_of(await served.http.post(f"/v1/features?outputs=logits{query}", **FILE))
            assert reference == {"name": "tiny", "version": NEW_VERSION}
            np.testing.assert_allclose(logits, expected(PHOTO, "logits", seed=NEW_SEED), atol=1e-3)
        assert (await served.http.post("/v1/features?model=tiny:3", **FILE)).status_code == 404
        assert not unused.done()
        session.gate.set()
        reference, logits = answers_of(await running)
        assert reference == {"name": "tiny", "version": 3}
        np.testing.assert_allclose(logits, expected(PHOTO, "logits"), atol=1e-3)
        async with asyncio.timeout(PATIENCE_S):
            await unused
        assert served.sample("dat_requests_total", version="3", route="/v1/features", code="ok") == 1
        await new.engine.stop()


async def test_request_that_is_being_sent_keeps_the_version_that_it_came_to(
    model: ModelDirectory, tmp_path: Path
) -> None:
    async with serving(model) as served:
        (old,) = served.hosting.fixed
        new = await new_version(served, tmp_path)
        exchange = Exchange(served.app, RAW)
        exchange.send(RAW.body[:20], more=True)
        async with asyncio.timeout(PATIENCE_S):
            await exchange.is_read.wait()
        served.hosting.models.publish([status_of(new)], [new])
        unused = asyncio.create_task(old.wait_unused())
        await asyncio.sleep(0)
        assert not unused.done()
        exchange.send(RAW.body[20:])
        await exchange.end()
        assert exchange.status == 200
        assert exchange.headers["x-model-version"] == "3"
        async with asyncio.timeout(PATIENCE_S):
            await unused
        await new.engine.stop()


async def test_names_that_come_while_the_server_runs_pass_the_framework_by_as_others_do(
    model: ModelDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(model) as served:
        new = await new_version(served, tmp_path)
        served.hosting.models.publish(
            [*map(status_of, served.hosting.fixed), status_of(new)], [*served.hosting.fixed, new]
        )
        monkeypatch.setattr(served.app.router, "middleware_stack", None)  # whoever comes here fails
        for version in ("3", "4"):
            response = await served.http.post(f"/v2/models/tiny/versions/{version}/infer", **binary(document()))
            assert response.json()["model_version"] == version
        assert (await served.http.post("/v2/models/other/infer", **binary(document()))).status_code == 404
        await new.engine.stop()
