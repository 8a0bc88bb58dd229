"""The service on a real Ray cluster of three nodes on this machine, of which one is killed under load."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from deploy.ray_options import OTHER_REQUESTS
from tests.conftest import ExportOnce
from tests.deploy.ray_environment import BIN, MISSING, ray_environment
from tests.deploy.ray_service import JPEG, PHOTOS, Load, RayService
from tests.docs.pages import blocks_of, commands_of
from tests.faults.load import until
from tests.integration.conftest import PATIENCE_S, ROOT, Connection
from tests.service import tiny_model

_log = logging.getLogger(__name__)

pytestmark = pytest.mark.skipif(not BIN.exists(), reason=MISSING)


MAIN = json.dumps(
    {
        "min_replicas": 2,
        "max_replicas": 2,
        "max_replicas_per_node": 1,
        "receive_timeout_ms": 60_000,
        "timeout_ms": 60_000,
    }
)


@pytest.fixture(scope="module")
def service(exported: ExportOnce) -> Iterator[RayService]:
    """The demo model in two replicas, on a node each."""
    proxy = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": "",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray_proxy:middlewares",
        "PYTHONPATH": str(ROOT),
    }
    with ray_environment(**proxy) as environment:
        popen = subprocess.Popen(
            [BIN / "python", "-m", "tests.deploy.ray_cluster", str(exported("dat_demo"))],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        service = RayService(popen)
        try:
            service.hear()
            service.port = service.ask(
                "deploy", "main", '{"min_replicas":2,"max_replicas":2,"max_replicas_per_node":1}'
            )
            yield service
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
                popen.communicate(timeout=PATIENCE_S)
            popen.kill()
            popen.wait()


USAGE = (
    "from ray._common.usage import usage_lib as u; print(u.usage_stats_enabled(), repr(u._usage_stats_report_url()))"
)


def test_ray_has_nobody_to_report_to() -> None:
    commands = [words for block in blocks_of(ROOT / "docs/deploy/ray.md") for words in commands_of(block)]
    exported = [word.split("=", 1) for first, *words in commands if first == "export" for word in words]
    usage = {name: value for name, value in exported if name.startswith("RAY_USAGE")}
    for program, variables in ((f"import deploy.ray_serve; {USAGE}", {}), (USAGE, usage)):
        with ray_environment(**variables) as environment:
            said = subprocess.check_output([BIN / "python", "-c", program], cwd=ROOT, env=environment, text=True)
            assert said == "False ''\n"


def assert_problem(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["code"] == code
    assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]]


def test_behind_rays_proxy_the_service_answers_as_it_does_alone(service: RayService) -> None:
    answer = httpx.post(
        service.url("/v1/classify?top_k=3"), content=PHOTOS[0], headers={**JPEG, "X-Request-ID": "mine"}, timeout=60
    )
    assert answer.status_code == 200
    assert len(answer.json()["results"][0]["predictions"]) == 3
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
    assert httpx.get(service.url("/health/ready"), timeout=60).json() == {"status": "ready"}
    assert_problem(service.classify(b"no image"), 422, "bad_image")
    assert_problem(httpx.get(service.url("/nothing"), timeout=60), 404, "not_found")
    assert httpx.post(service.url("/v2/models/dat_demo/infer"), json={}, timeout=60).json().keys() == {"error"}


def test_metrics_are_those_of_all_replicas_whichever_is_asked(service: RayService) -> None:
    before = service.metric("dat_requests_total", route="/v1/classify", code="ok")
    for _ in range(3):
        with ThreadPoolExecutor(8) as clients:
            assert all(answer.status_code == 200 for answer in clients.map(service.classify, PHOTOS * 2))
    assert service.metric("dat_requests_total", route="/v1/classify", code="ok") == before + 24
    assert len(service.replicas()) == 2


@pytest.fixture
def several(service: RayService, tmp_path: Path) -> Iterator[str]:
    """An application of two models in one replica; the name of it."""
    for name, seed in (("first", 1), ("second", 2)):
        tiny_model.write(tmp_path, name=name, seed=seed)
    service.ask("deploy", "several", json.dumps({"repository": str(tmp_path), "model": "first,second"}))
    yield "/several"
    service.ask("delete", "several")


def test_a_replica_serves_several_models_beside_an_application_of_another(service: RayService, several: str) -> None:
    answers = {
        asked: service.classify(PHOTOS[0], app=several, params={"model": asked} if asked else {}).raise_for_status()
        for asked in ("", "first", "second", "second:3")
    }
    named = {asked: answer.json()["model"]["name"] for asked, answer in answers.items()}
    assert named == {"": "first", "first": "first", "second": "second", "second:3": "second"}
    assert_problem(service.classify(PHOTOS[0], app=several, params={"model": "dat_demo"}), 404, "unknown_model")
    assert service.classify(PHOTOS[0]).json()["model"]["name"] == "dat_demo"
    assert service.metric("dat_images_total", app=several, model="second", outcome="ok") == 2
    assert service.metric("dat_model_state", app=several, state="ready") == 2


SMALL = json.dumps({"max_queued_images": 4, "max_images": 4, "max_delay_ms": 3000, "receive_timeout_ms": 60_000})
"""One replica with room for four images, in which four are no full batch and wait for more."""


@pytest.fixture
def small(service: RayService) -> Iterator[RayService]:
    """The same, and beside it an application with one small replica at /small."""
    service.ask("deploy", "small", SMALL)
    yield service
    service.ask("delete", "small")


def test_what_a_replica_has_no_room_for_is_refused_and_may_come_back(small: RayService) -> None:
    with ThreadPoolExecutor(5) as clients:
        answers = list(clients.map(lambda _: small.classify(PHOTOS[0], app="/small"), range(5)))
    assert Counter(answer.status_code for answer in answers) == {200: 4, 429: 1}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert_problem(refused, 429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1


def test_what_rays_own_queue_has_no_room_for_is_refused_in_the_same_form(small: RayService) -> None:
    # None of these requests is whole, so that the service, which has nothing to run, refuses none of them.
    taken = 4 + OTHER_REQUESTS + 4  # in the replica, and waiting for it
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(small.port)) for _ in range(taken + 8)]
        for connection in connections:
            connection.head("/small/v1/classify", "Content-Type: image/jpeg", f"Content-Length: {len(PHOTOS[0])}")
        refused = {connection.socket: connection for connection in connections}
        answers = []
        while len(answers) < 8:
            readable, _, _ = select.select(list(refused), [], [], PATIENCE_S)
            assert readable, "more requests wait than have room"
            answers += [refused.pop(each).response() for each in readable]
    for status, headers, problem in answers:
        assert (status, problem["code"], headers["retry-after"]) == (429, "overloaded", "1")


def test_who_leaves_is_dropped_from_the_replicas_queue(small: RayService) -> None:
    with Connection(small.port) as leaving:
        leaving.head("/small/v1/classify", "Content-Type: image/jpeg", f"Content-Length: {len(PHOTOS[0])}")
        leaving.send(PHOTOS[0])
        until(lambda: small.metric("dat_queued_images", app="/small") == 1)
    until(lambda: small.metric("dat_dropped_images_total", app="/small", reason="cancelled") == 1)
    assert small.metric("dat_images_total", app="/small", outcome="answered") == 0


def test_a_replica_that_is_told_to_end_finishes_what_it_has(small: RayService) -> None:
    with ThreadPoolExecutor(1) as client:
        waiting = client.submit(small.classify, PHOTOS[0], app="/small")
        until(lambda: small.metric("dat_queued_images", app="/small") == 1)
        small.ask("delete", "small")
        assert waiting.result().status_code == 200


@pytest.mark.full
def test_an_engine_that_has_ended_comes_back_and_a_replica_in_which_one_hangs_is_replaced(service: RayService) -> None:
    service.ask("deploy_breakable", "breakable")
    (before,) = service.replicas(app="/breakable")
    service.ask("break_engine", "breakable")
    until(lambda: service.classify(PHOTOS[0], app="/breakable").status_code == 200)
    assert service.replicas(app="/breakable") == {before}
    service.ask("hang_engine", "breakable")
    assert_problem(service.classify(PHOTOS[0], app="/breakable"), 503, "not_ready")
    until(lambda: len(now := service.replicas(app="/breakable")) == 1 and now != {before})
    assert service.classify(PHOTOS[0], app="/breakable").status_code == 200
    service.ask("delete", "breakable")


@pytest.mark.full
def test_replicas_are_added_while_there_are_more_requests_than_asked_for(service: RayService) -> None:
    placement = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1, "upscale_delay_s": 0}
    service.ask("deploy", "growing", json.dumps(placement | {"max_delay_ms": 1000, "batch_buckets": "8"}))
    assert len(service.replicas(app="/growing")) == 1
    load = Load(service, clients=4, app="/growing")
    with load.running():
        until(lambda: len(service.replicas(app="/growing")) == 2)
    assert load.ends.keys() == {"right"}
    service.ask("delete", "growing")


@pytest.mark.full
def test_ray_says_why_a_replica_cannot_start(service: RayService) -> None:
    said = service.ask("deploy_in_vain", "vain", '{"model":"nobody"}')
    assert "holds no model 'nobody'; it holds: dat_demo" in said
    said = service.ask("deploy_in_vain", "vain", '{"device":"cuda","num_gpus":0}')
    assert "CUDAExecutionProvider" in said


@pytest.mark.full
def test_an_upgrade_leaves_no_request_without_its_answer(service: RayService) -> None:
    two = {"min_replicas": 2, "max_replicas": 2}
    service.ask("deploy", "upgraded", json.dumps(two))
    before = service.replicas(app="/upgraded")
    load = Load(service, clients=4, app="/upgraded")
    with load.running():
        load.wait_for_more(20)
        service.ask("deploy", "upgraded", json.dumps(two | {"timeout_ms": 20_000}))
        load.wait_for_more(20)
    assert load.ends.keys() == {"right"}
    assert service.replicas(app="/upgraded").isdisjoint(before)
    service.ask("delete", "upgraded")


@pytest.mark.full
def test_what_is_not_answered_when_the_time_to_drain_is_over_is_refused(service: RayService) -> None:
    service.ask("deploy", "late", json.dumps({"max_delay_ms": 25_000, "drain_timeout_ms": 1}))
    with ThreadPoolExecutor(1) as client:
        waiting = client.submit(service.classify, PHOTOS[0], app="/late")
        until(lambda: service.metric("dat_queued_images", app="/late") == 1)
        service.ask("delete", "late")
        assert_problem(waiting.result(), 503, "not_ready")


def held_by_both(service: RayService, stack: contextlib.ExitStack) -> list[Connection]:
    """Send requests without the rest of their bodies until each of the two replicas has several of them."""
    held: list[Connection] = []
    while True:
        samples = [sample for sample in service.metrics() if sample.name == "dat_requests_in_flight"]
        if len(samples) == 2 and all(sample.value > 3 for sample in samples):
            return held
        assert len(held) < 200, "Ray sends one replica everything"
        held.append(stack.enter_context(Connection(service.port)))
        held[-1].head("/v1/classify", "Content-Type: image/jpeg", f"Content-Length: {len(PHOTOS[0])}")
        held[-1].send(PHOTOS[0][:100])


@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("SIGSTOP", marks=pytest.mark.full)])
def test_when_a_node_is_lost_under_load_every_request_is_answered_or_refused_and_its_replica_comes_back(
    service: RayService, how: str
) -> None:
    service.ask("add_node")  # each replica has a node of its own, and this is where the lost one can come back
    until(lambda: len(service.replicas()) == 2)
    before = service.replicas()
    with contextlib.ExitStack() as stack:
        half_sent = held_by_both(service, stack)
        load = Load(service, clients=6)
        stack.enter_context(load.running())
        load.wait_for_more(50)
        lost_s = time.monotonic()
        assert service.ask("lose_node", how) > 1
        for connection in half_sent:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(PHOTOS[0][100:])
        ends = Counter(connection.response()[0] for connection in half_sent)
        until(lambda: len(now := service.replicas()) == 2 and now != before)
        back_s = time.monotonic() - lost_s
        load.wait_for_more(50)
    figures = (how, dict(load.ends), max(load.took_s), dict(ends), back_s)
    _log.info("%s: load %s, the slowest in %.1f s; held in flight %s; two replicas after %.1f s", *figures)
    assert ends.keys() == {200, 503}
    assert load.ends.keys() <= {"right", "503 not_ready come back"}
