"""Against the real application with the tiny model, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest

from service.model.directory import ModelDirectory
from service.model.postprocess import Choice
from service.predictors.over_http import HttpPredictor, open_predictor
from service.predictors.retries import RetryPolicy
from service.predictors.types import Fault, PredictorFailed
from tests.api_keys import entry_of
from tests.service import tiny_model
from tests.service.conftest import Served, serving
from tests.service.pictures import expected, photo

URL = "http://service"
PHOTOS = [photo(seed=seed) for seed in range(5)]


@dataclass
class Network:
    """The way to an application; answers the next inference calls with what is in `instead`, where that is not None."""

    served: Served
    instead: list[httpx.Response | Exception | None] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)

    def transport(self) -> httpx.AsyncBaseTransport:
        inside = httpx.ASGITransport(self.served.app)

        class Through(httpx.AsyncBaseTransport):
            async def handle_async_request(_, request: httpx.Request) -> httpx.Response:  # noqa: N805
                if request.method == "POST":
                    await request.aread()
                    self.requests.append(request)
                    if self.instead:
                        answer = self.instead.pop(0)
                        if isinstance(answer, Exception):
                            raise answer
                        if answer is not None:
                            return answer
                return await inside.handle_async_request(request)

        return Through()


@dataclass(frozen=True)
class Recorded(RetryPolicy):
    """Never waits, gives up after as many tries as are allowed, and writes down what it was asked."""

    tries: int = 5
    asked: list[tuple[int, float | None]] = field(default_factory=list)

    def wait_s(self, tries: int, *, elapsed_s: float, retry_after_s: float | None) -> float | None:
        self.asked.append((tries, retry_after_s))
        return 0.0 if tries < self.tries else None


def images_of(request: httpx.Request) -> int:
    """How many images a request carries, in a form or raw."""
    return max(request.content.count(b'; name="image"'), 1)


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    document = {"code": code, "detail": f"It is {code}.", "status": status}
    return httpx.Response(status, content=json.dumps(document), headers=headers)


async def test_predictions_and_features_are_the_models(served: Served) -> None:
    async with open_predictor(URL, transport=httpx.ASGITransport(served.app)) as predictor:
        assert (predictor.model.name, predictor.model.version) == (tiny_model.NAME, tiny_model.VERSION)
        assert [label.name for label in predictor.model.labels] == list(tiny_model.LABELS)
        rankings = await asyncio.gather(*(predictor.classify(image, Choice(2)) for image in PHOTOS))
        features = await asyncio.gather(*(predictor.features(image, ["embedding", "stage4"]) for image in PHOTOS))
    for image, ranking, arrays in zip(PHOTOS, rankings, features, strict=True):
        assert not isinstance(ranking, Fault)
        logits = expected(image, "logits")
        assert [each.class_id for each in ranking] == np.argsort(-logits)[:2].tolist()
        assert not isinstance(arrays, Fault)
        for name in ("embedding", "stage4"):
            np.testing.assert_allclose(arrays[name], expected(image, name), atol=1e-5)


async def test_images_asked_for_together_share_requests(served: Served) -> None:
    network = Network(served)
    async with open_predictor(URL, transport=network.transport(), concurrency=16) as predictor:
        await asyncio.gather(*(predictor.classify(photo(seed=seed)) for seed in range(12)))
    assert len(network.requests) == 2  # the first alone, the others while it was under way


@pytest.mark.parametrize("ask", [lambda p, i: p.classify(i), lambda p, i: p.features(i, ["embedding"])])
async def test_a_bad_image_is_named_and_harms_no_other_of_its_request(
    served: Served, ask: Callable[[HttpPredictor, bytes], Any]
) -> None:
    images = [PHOTOS[0], PHOTOS[1], b"no image", PHOTOS[2], b""]
    async with open_predictor(URL, transport=httpx.ASGITransport(served.app), concurrency=16) as predictor:
        answers = await asyncio.gather(*(ask(predictor, image) for image in images))
    faults = {place: answer.code for place, answer in enumerate(answers) if isinstance(answer, Fault)}
    assert faults == {2: "unsupported_format", 4: "empty_image"}


async def test_a_server_is_asked_within_the_limits_that_it_tells(model: ModelDirectory) -> None:
    largest_bytes = max(map(len, PHOTOS))
    for limits, most in (
        ({"max_images": 2}, 2),
        ({"max_body_bytes": 3 * (largest_bytes + 300)}, 3),
        ({"max_body_bytes": largest_bytes}, 1),
    ):
        async with serving(model, **limits) as served:
            network = Network(served)
            async with open_predictor(URL, transport=network.transport(), concurrency=8) as predictor:
                answers = await asyncio.gather(*(predictor.classify(image) for image in PHOTOS * 4))
        assert not any(isinstance(answer, Fault) for answer in answers)
        sizes = [images_of(request) for request in network.requests]
        assert max(sizes) == most, limits
        assert sum(sizes) == len(PHOTOS) * 4, limits  # none was sent twice


@pytest.mark.parametrize("told", [None, 64], ids=["limits that are not told", "limits that it does not keep"])
async def test_a_server_that_refuses_several_images_is_asked_for_each(told: int | None) -> None:
    """One of before it told its limits, or one behind a proxy with limits of its own."""
    several = Several({("a", 1): "x"}, told=told)
    sent: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            sent.append(images_of(request))
            if sent[-1] > 1:
                return httpx.Response(413, text="<html>Too large</html>")
        return several.answer(request)

    async with open_predictor(URL, transport=httpx.MockTransport(answer), concurrency=16) as predictor:
        answers = await asyncio.gather(*(predictor.classify(image) for image in PHOTOS))
    assert not any(isinstance(each, Fault) for each in answers)
    assert sent == [1, 4, 1, 1, 1, 1]


async def test_refusals_and_lost_connections_are_tried_again_when_the_server_says(served: Served) -> None:
    network = Network(served)
    network.instead = [
        refusal(429, "overloaded", **{"Retry-After": "7"}),
        httpx.ConnectError("refused"),
        refusal(503, "not_ready", **{"Retry-After": "5"}),
        httpx.Response(502, text="<html>Bad gateway</html>"),
    ]
    retries = Recorded()
    async with open_predictor(URL, transport=network.transport(), retries=retries) as predictor:
        assert not isinstance(await predictor.classify(PHOTOS[0]), Fault)
    assert retries.asked == [(1, 7.0), (2, None), (3, 5.0), (4, None)]
    assert len({request.content for request in network.requests}) == 1


async def test_a_group_that_is_refused_is_sent_again_whole_and_its_answers_are_in_order(served: Served) -> None:
    refusals = [refusal(429, "overloaded", **{"Retry-After": "3"}), httpx.ReadError("lost"), refusal(503, "not_ready")]
    network = Network(served, instead=[None, *refusals])
    images = [*PHOTOS[:3], b"no image", *PHOTOS[3:]]
    retries = Recorded()
    async with open_predictor(URL, transport=network.transport(), retries=retries, concurrency=16) as predictor:
        answers = await asyncio.gather(*(predictor.classify(image, Choice(1)) for image in images))
    assert [images_of(request) for request in network.requests] == [1, 5, 5, 5, 5]
    assert retries.asked == [(1, 3.0), (2, None), (3, None)]
    assert isinstance(answers[3], Fault)
    assert answers[3].code == "unsupported_format"
    for image, answer in zip(PHOTOS, (*answers[:3], *answers[4:]), strict=True):
        assert not isinstance(answer, Fault)
        assert answer[0].class_id == int(expected(image, "logits").argmax())


async def test_a_server_that_goes_on_refusing_is_given_up_with_its_last_word(served: Served) -> None:
    network = Network(served, instead=[refusal(429, "overloaded") for _ in range(3)])
    async with open_predictor(URL, transport=network.transport(), retries=Recorded(tries=3)) as predictor:
        with pytest.raises(PredictorFailed, match=r"not answered in 3 tries: It is overloaded\."):
            await predictor.classify(PHOTOS[0])


async def test_a_failed_batch_is_the_fault_of_its_image(served: Served) -> None:
    network = Network(served, instead=[refusal(500, "inference_failed")])
    async with open_predictor(URL, transport=network.transport()) as predictor:
        assert await predictor.classify(PHOTOS[0]) == Fault("inference_failed", "It is inference_failed.")
        assert not isinstance(await predictor.classify(PHOTOS[0]), Fault)


async def test_what_no_image_is_to_blame_for_ends_it(served: Served) -> None:
    async with open_predictor(URL, transport=httpx.ASGITransport(served.app)) as predictor:
        with pytest.raises(PredictorFailed, match=r"answered 422: .*no 'depth'"):
            await predictor.features(PHOTOS[0], ["depth"])


async def test_the_key_is_shown_to_the_server_and_a_wrong_one_is_an_error_at_once(model: ModelDirectory) -> None:
    async with serving(model, api_keys=entry_of("right")) as served:
        transport = httpx.ASGITransport(served.app)
        async with open_predictor(URL, api_key="right", transport=transport) as predictor:
            assert not isinstance(await predictor.classify(PHOTOS[0]), Fault)
        with pytest.raises(PredictorFailed, match="answered 401"):
            async with open_predictor(URL, api_key="wrong", transport=transport):
                raise AssertionError("it was let in")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1", "cannot be reached"),
        ("127.0.0.1:8000", "cannot be reached"),
        ("http://host:port", "address"),
    ],
)
async def test_an_address_without_a_server_is_an_error_at_once(url: str, reason: str) -> None:
    with pytest.raises(PredictorFailed, match=reason):
        async with open_predictor(url):
            raise AssertionError("there is nobody")


async def test_a_server_of_another_kind_is_an_error() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text="<html>Hello</html>"))
    with pytest.raises(PredictorFailed, match="is this the service"):
        async with open_predictor(URL, transport=transport):
            raise AssertionError("it is another")


@dataclass
class Several:
    """A server of two models in several versions, in a few lines; refuses versions that it has no more."""

    weights: dict[tuple[str, int], str]
    asked: list[str | None] = field(default_factory=list)
    refused_details: int = 0
    told: int | None = None
    """Images that it says a request may have; servers before the choice say nothing."""

    def answer(self, request: httpx.Request) -> httpx.Response:
        query = request.url.params
        if request.url.path == "/v1/models":
            limits = {"max_images": self.told, "max_body_bytes": 1 << 25}
            return httpx.Response(200, json={"default": "a", "models": []} | ({"limits": limits} if self.told else {}))
        if request.method == "GET":
            if self.refused_details:
                self.refused_details -= 1
                return refusal(503, "not_ready")
            name = request.url.path.rpartition("/")[2]
            version = int(query.get("version") or max(number for each, number in self.weights if each == name))
            return self._details(name, version)
        self.asked.append(query.get("model"))
        name, _, number = query["model"].partition(":")
        if (name, int(number)) not in self.weights:
            return refusal(404, "unknown_model")
        ranking = {"predictions": [{"class_id": 0, "label": "zero", "score": 1.0}]}
        return httpx.Response(200, json={"results": [ranking] * images_of(request)})

    def _details(self, name: str, version: int) -> httpx.Response:
        if (name, version) not in self.weights:
            return refusal(404, "unknown_model")
        label = {"class_id": 0, "name": "zero", "synset": None}
        details = {
            "name": name, "version": version, "labels": [label], "outputs": [{"name": "logits", "shape": [1]}],
            "precision": "fp32", "created": "2026-01-01T00:00:00Z", "weights_sha256": self.weights[name, version],
        }  # fmt: skip
        return httpx.Response(200, json=details)


@pytest.mark.parametrize(
    ("model", "asked"), [(None, "a:2"), ("b", "b:7"), ("a:1", "a:1")], ids=["default", "named", "version"]
)
async def test_one_version_is_asked_to_the_end(model: str | None, asked: str) -> None:
    several = Several({("a", 1): "x", ("a", 2): "y", ("b", 7): "z"})
    async with open_predictor(URL, model=model, transport=httpx.MockTransport(several.answer)) as predictor:
        assert f"{predictor.model.name}:{predictor.model.version}" == asked
        await predictor.classify(PHOTOS[0])
        several.weights["a", 3] = several.weights["b", 8] = "newer"
        await predictor.classify(PHOTOS[0])
        await predictor.confirm()
    assert several.asked == [asked, asked]


async def test_a_version_that_was_replaced_ends_it() -> None:
    several = Several({("a", 1): "x"})
    async with open_predictor(URL, transport=httpx.MockTransport(several.answer)) as predictor:
        several.weights = {("a", 2): "y"}
        for ask in (lambda: predictor.classify(PHOTOS[0]), predictor.confirm):
            with pytest.raises(PredictorFailed, match=r"answered 404: It is unknown_model\."):
                await ask()


async def test_another_model_under_the_same_number_is_told_from_the_first() -> None:
    several = Several({("a", 1): "first"})
    async with open_predictor(URL, transport=httpx.MockTransport(several.answer), retries=Recorded()) as predictor:
        several.refused_details = 2
        await predictor.confirm()
        several.weights["a", 1] = "second"
        with pytest.raises(PredictorFailed, match=r"another model than before: its weights were first.*are second"):
            await predictor.confirm()


async def test_a_server_that_has_no_default_model_is_an_error() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"models": []}))
    with pytest.raises(PredictorFailed, match="is this the service, in this version"):
        async with open_predictor(URL, transport=transport):
            raise AssertionError("it is another")
