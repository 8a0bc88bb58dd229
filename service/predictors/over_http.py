"""A model behind a server, asked over HTTP with as many images a request as wait for one to leave, and it takes.

The version that the server names first is asked to the end, by its number: where another takes its place meanwhile, the
server refuses, and no answers of two versions mix.

A request that the server had no room or no time for, or that the connection failed, is sent again by the RetryPolicy;
inference changes nothing on the server, so that asking twice is safe. Where the policy gives up, so does the predictor:
a server that has turned one image away for so long would turn away the next.
"""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import httpx
import numpy as np

from service.engine.types import Outputs
from service.errors import BadImages
from service.model.directory import Label
from service.model.postprocess import BEST, Choice
from service.predictors.groups import GroupLimits, Groups
from service.predictors.retries import RetryPolicy, retry_after_s
from service.predictors.types import Fault, Prediction, PredictorFailed, PredictorModel, Ranking

DEFAULT_CONCURRENCY = 64
_EMPTY = Fault("empty_image", "The image holds no bytes.")
"""As the server would say of it among others; alone it would be a request without a body."""
R = TypeVar("R")
_AGAIN = frozenset({408, 429, 502, 503, 504})
"""Statuses that say nothing against the request: it was too early, too late or too slow."""
_OF_THE_IMAGE = frozenset({413, 500})
"""Statuses that concern one image, whatever becomes of others; besides them the problem with bad images."""
_CLASS_OUTPUT = "logits"
"""What the exporter calls the output with the classes; over HTTP no output says that it has them."""
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10.0, 120.0


class HttpPredictor:
    """Answers by a server; see `open_predictor`."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        model: PredictorModel,
        *,
        concurrency: int,
        retries: RetryPolicy,
        limits: GroupLimits,
    ) -> None:
        self._client = client
        self._model = model
        self._concurrency = concurrency
        self._retries = retries
        self._limits = limits
        self._requests = math.ceil(concurrency / limits.images)
        self._rankings: dict[Choice, Groups[Ranking | Fault]] = {}
        self._features: dict[tuple[str, ...], Groups[Outputs | Fault]] = {}

    @property
    def model(self) -> PredictorModel:
        """The model that answers."""
        return self._model

    @property
    def concurrency(self) -> int:
        """How many images should be under way."""
        return self._concurrency

    async def classify(self, image: bytes, choice: Choice = BEST) -> Ranking | Fault:
        """Return the most likely classes of one image; see `Predictor`."""
        if not image:
            return _EMPTY
        if choice not in self._rankings:
            self._rankings[choice] = self._groups(partial(self._classify, choice))
        return await self._rankings[choice].ask(image)

    async def features(self, image: bytes, outputs: Sequence[str]) -> Outputs | Fault:
        """Return outputs for one image; see `Predictor`."""
        if not image:
            return _EMPTY
        names = tuple(outputs)
        if names not in self._features:
            self._features[names] = self._groups(partial(self._extract, names))
        return await self._features[names].ask(image)

    async def confirm(self) -> None:
        """Raise PredictorFailed unless the model is still the one that it was; see `Predictor`."""
        path, query = _address_of(self._model.name, self._model.version)
        response = await self._until_answered("GET", path, accept="application/json", params=query)
        now = _model_of(_json_of(response))
        if now != self._model:
            raise PredictorFailed(
                f"{response.url} is another model than before: its weights were {self._model.weights_sha256}, exported "
                f"{self._model.created}, and are {now.weights_sha256}, exported {now.created}"
            )

    async def close(self) -> None:
        """Give up what is under way."""
        for rankings in self._rankings.values():
            await rankings.close()
        for features in self._features.values():
            await features.close()

    def _groups(self, send: Callable[[Sequence[bytes]], Awaitable[Sequence[R]]]) -> Groups[R]:
        return Groups(send, requests=self._requests, limits=self._limits)

    async def _classify(self, choice: Choice, images: Sequence[bytes]) -> list[Ranking | Fault]:
        query: dict[str, Any] = {} if choice.top_k is None else {"top_k": choice.top_k}
        if choice.min_score:  # which older servers do not know
            query["min_score"] = repr(choice.min_score)
        if choice.classes is not None:
            query["classes"] = ",".join(map(str, choice.classes))
        response = await self._ask("/v1/classify", images, query, accept="application/json")
        if isinstance(response, Fault):
            return await _each_alone(response, images, partial(self._classify, choice))
        return [_ranking_of(result) for result in response.json()["results"]]

    async def _extract(self, outputs: tuple[str, ...], images: Sequence[bytes]) -> list[Outputs | Fault]:
        response = await self._ask("/v1/features", images, {"outputs": list(outputs)}, accept="application/x-npz")
        extract = partial(self._extract, outputs)
        if isinstance(response, Fault):
            return await _each_alone(response, images, extract)
        with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in outputs}
            rows = {int(index): row for row, index in enumerate(archive["index"])} if len(images) > 1 else {0: 0}
        found: list[Outputs | Fault] = []
        for index, image in enumerate(images):
            if index in rows:
                found.append({name: array[rows[index]] for name, array in arrays.items()})
            else:  # the archive has no room for what is wrong with it
                found += await extract([image])
        return found

    async def _ask(
        self, path: str, images: Sequence[bytes], query: Mapping[str, Any], *, accept: str
    ) -> httpx.Response | Fault:
        """Send a request until the server has answered for good; raises PredictorFailed as the protocol says."""
        query = {**query, "model": f"{self._model.name}:{self._model.version}", "priority": "bulk"}
        if len(images) == 1:
            body: dict[str, Any] = {"content": images[0], "headers": {"Content-Type": "application/octet-stream"}}
        else:
            body = {"files": [("image", ("image", image)) for image in images]}
            query["on_error"] = "skip"
        response = await self._until_answered("POST", path, accept=accept, params=query, **body)
        return response if response.is_success else _fault_of(response)

    async def _until_answered(self, method: str, path: str, *, accept: str, **content: Any) -> httpx.Response:
        """Send a request until it is answered for good, well or not; raises PredictorFailed where it never is."""
        began_s, tries = time.monotonic(), 0
        while True:
            tries += 1
            wanted_s = None
            request = self._client.build_request(method, path, **content)
            request.headers["Accept"] = accept
            try:
                response = await self._client.send(request)
            except httpx.TransportError as error:
                trouble = _sentence(error)
            else:
                if response.status_code not in _AGAIN:
                    return response
                trouble = _problem_of(response)[1].detail
                wanted_s = retry_after_s(response.headers.get("Retry-After"))
            wait_s = self._retries.wait_s(tries, elapsed_s=time.monotonic() - began_s, retry_after_s=wanted_s)
            if wait_s is None:
                raise PredictorFailed(f"{self._client.base_url} has not answered in {tries} tries: {trouble}")
            await asyncio.sleep(wait_s)


async def _each_alone(
    fault: Fault, images: Sequence[bytes], ask: Callable[[Sequence[bytes]], Awaitable[list[R]]]
) -> list[R | Fault]:
    """Return the fault of one image; of several, ask again for each, for the fault may be another's."""
    if len(images) == 1:
        return [fault]
    return [answer for image in images for answer in await ask([image])]


def _ranking_of(result: Mapping[str, Any]) -> Ranking | Fault:
    if "error" in result:
        return Fault(result["error"]["code"], result["error"]["detail"])
    return [Prediction(each["class_id"], each["label"], each["score"]) for each in result["predictions"]]


def _sentence(error: httpx.TransportError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _problem_of(response: httpx.Response) -> tuple[str, Fault]:
    """Return a refusal's code, and what it says: of the image where it names one, else of the request.

    A refusal that is not the service's own, but a proxy's, has only its status to tell.
    """
    try:
        problem = response.json()
        first = (problem.get("errors") or [problem])[0]
        return str(problem["code"]), Fault(str(first["code"]), str(first["detail"]))
    except (ValueError, KeyError, AttributeError, TypeError):
        code = f"http_{response.status_code}"
        return code, Fault(code, f"{response.status_code} {response.reason_phrase}")


def _fault_of(response: httpx.Response) -> Fault:
    """Return the fault of an image that was refused; raises PredictorFailed where others would be refused as well."""
    code, fault = _problem_of(response)
    if response.status_code in _OF_THE_IMAGE or code == BadImages.code:
        return fault
    raise PredictorFailed(f"{response.url.copy_with(query=None)} answered {response.status_code}: {fault.detail}")


@asynccontextmanager
async def open_predictor(
    url: str,
    *,
    api_key: str | None = None,
    model: str | None = None,
    concurrency: int | None = None,
    retries: RetryPolicy | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[HttpPredictor]:
    """Find out what the server at `url` serves, and give a predictor of it.

    `model` is NAME or NAME:VERSION; left out, it is the server's default. `transport` takes the network's place in
    tests. Raises PredictorFailed at once where the server cannot be reached or refuses.
    """
    under_way = concurrency or DEFAULT_CONCURRENCY
    try:
        client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            limits=httpx.Limits(max_connections=None),  # there are only as many requests as are let go
            timeout=httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            transport=transport,
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise PredictorFailed(f"{url!r} is not an address: {error}") from error
    async with client:
        listed = await _get(client, "/v1/models", {})
        name, _, version = (model or _default_model(client, listed)).partition(":")
        path, query = _address_of(name, version or None)
        described = _model_of(await _get(client, path, query))
        predictor = HttpPredictor(
            client, described, concurrency=under_way, retries=retries or RetryPolicy(), limits=_limits_of(listed)
        )
        try:
            yield predictor
        finally:
            await predictor.close()


def _address_of(name: str, version: str | int | None) -> tuple[str, dict[str, str]]:
    """Return the path and the query of what a server says of a model."""
    return f"/v1/models/{name}", {} if version is None else {"version": str(version)}


def _model_of(details: Mapping[str, Any]) -> PredictorModel:
    return PredictorModel(
        name=details["name"],
        version=details["version"],
        labels=tuple(Label(each["class_id"], each["name"], each["synset"]) for each in details["labels"]),
        outputs={each["name"]: tuple(each["shape"]) for each in details["outputs"]},
        class_output=_CLASS_OUTPUT,
        precision=details["precision"],
        created=details["created"],
        weights_sha256=details["weights_sha256"],
        resize=details.get("resize", "exact"),  # servers before there was a choice
        temperature=details.get("temperature"),
    )


def _limits_of(listed: Mapping[str, Any]) -> GroupLimits:
    """Return what to send together to a server; one that does not tell its limits is asked within our own."""
    told = listed.get("limits")
    if told is None:  # a server before it told
        return GroupLimits()
    return GroupLimits().within(max_images=told["max_images"], max_body_bytes=told["max_body_bytes"])


def _default_model(client: httpx.AsyncClient, listed: Any) -> str:
    try:
        return str(listed["default"])
    except (KeyError, TypeError) as error:
        raise PredictorFailed(
            f"{client.base_url} does not say which model it asks by default: is this the service, in this version?"
        ) from error


async def _get(client: httpx.AsyncClient, path: str, query: Mapping[str, str]) -> Any:
    try:
        response = await client.get(path, params=query)
    except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
        raise PredictorFailed(f"{client.base_url} cannot be reached: {_sentence(error)}") from error
    return _json_of(response)


def _json_of(response: httpx.Response) -> Any:
    if not response.is_success:
        raise PredictorFailed(f"{response.url} answered {response.status_code}: {_problem_of(response)[1].detail}")
    try:
        return response.json()
    except ValueError as error:
        raise PredictorFailed(f"{response.url} did not answer with JSON: is this the service?") from error
