"""A model behind a server, asked over HTTP with one image a request; the server makes the batches.

A request that the server had no room or no time for, or that the connection failed, is sent again by the RetryPolicy;
inference changes nothing on the server, so that asking twice is safe. Where the policy gives up, so does the predictor:
a server that has turned one image away for so long would turn away the next.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np

from service.engine.types import Outputs
from service.errors import BadImages
from service.predictors.retries import RetryPolicy, retry_after_s
from service.predictors.types import Fault, Prediction, PredictorFailed, PredictorModel, Ranking
from service.repository import Label

DEFAULT_CONCURRENCY = 32
_AGAIN = frozenset({408, 429, 502, 503, 504})
"""Statuses that say nothing against the request: it was too early, too late or too slow."""
_OF_THE_IMAGE = frozenset({413, 500})
"""Statuses that concern one image, whatever becomes of others; besides them the problem with bad images."""
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10.0, 120.0


class HttpPredictor:
    """Answers by a server; see `open_predictor`."""

    def __init__(
        self, client: httpx.AsyncClient, model: PredictorModel, *, concurrency: int, retries: RetryPolicy
    ) -> None:
        self._client = client
        self._model = model
        self._concurrency = concurrency
        self._retries = retries

    @property
    def model(self) -> PredictorModel:
        """The model that answers."""
        return self._model

    @property
    def concurrency(self) -> int:
        """How many requests there may be at a time."""
        return self._concurrency

    async def classify(self, image: bytes, *, top_k: int | None = None) -> Ranking | Fault:
        """Return the most likely classes of one image; see `Predictor`."""
        query = {} if top_k is None else {"top_k": top_k}
        response = await self._ask("/v1/classify", image, query, accept="application/json")
        if isinstance(response, Fault):
            return response
        (result,) = response.json()["results"]
        return [Prediction(each["class_id"], each["label"], each["score"]) for each in result["predictions"]]

    async def features(self, image: bytes, outputs: Sequence[str]) -> Outputs | Fault:
        """Return outputs for one image; see `Predictor`."""
        response = await self._ask("/v1/features", image, {"outputs": list(outputs)}, accept="application/x-npz")
        if isinstance(response, Fault):
            return response
        with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
            return {name: archive[name][0] for name in outputs}

    async def _ask(self, path: str, image: bytes, query: Mapping[str, Any], *, accept: str) -> httpx.Response | Fault:
        """Send one image until the server has answered for good; raises PredictorFailed as the protocol says."""
        began_s, tries = time.monotonic(), 0
        while True:
            tries += 1
            wanted_s = None
            try:
                response = await self._client.post(
                    path,
                    content=image,
                    params={**query, "model": self._model.name, "priority": "bulk"},
                    headers={"Accept": accept, "Content-Type": "application/octet-stream"},
                )
            except httpx.TransportError as error:
                trouble = _sentence(error)
            else:
                if response.is_success:
                    return response
                if response.status_code not in _AGAIN:
                    return _fault_of(response)
                trouble = _problem_of(response)[1].detail
                wanted_s = retry_after_s(response.headers.get("Retry-After"))
            wait_s = self._retries.wait_s(tries, elapsed_s=time.monotonic() - began_s, retry_after_s=wanted_s)
            if wait_s is None:
                raise PredictorFailed(f"{self._client.base_url} has not answered in {tries} tries: {trouble}")
            await asyncio.sleep(wait_s)


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

    `model` may be left out where it serves only one. `transport` takes the network's place in tests. Raises
    PredictorFailed at once where the server cannot be reached or refuses.
    """
    connections = concurrency or DEFAULT_CONCURRENCY
    try:
        client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            timeout=httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S, pool=None),
            transport=transport,
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise PredictorFailed(f"{url!r} is not an address: {error}") from error
    async with client:
        name = model or await _only_model(client)
        details = await _get(client, f"/v1/models/{name}")
        described = PredictorModel(
            name=details["name"],
            version=details["version"],
            labels=tuple(Label(each["class_id"], each["name"], each["synset"]) for each in details["labels"]),
            outputs=tuple(each["name"] for each in details["outputs"]),
        )
        yield HttpPredictor(client, described, concurrency=connections, retries=retries or RetryPolicy())


async def _only_model(client: httpx.AsyncClient) -> str:
    names = [str(each["name"]) for each in (await _get(client, "/v1/models"))["models"]]
    if len(names) != 1:
        raise PredictorFailed(f"{client.base_url} serves {', '.join(names) or 'no model'}; name one with --model")
    return names[0]


async def _get(client: httpx.AsyncClient, path: str) -> Any:
    try:
        response = await client.get(path)
    except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
        raise PredictorFailed(f"{client.base_url} cannot be reached: {_sentence(error)}") from error
    if not response.is_success:
        raise PredictorFailed(f"{response.url} answered {response.status_code}: {_problem_of(response)[1].detail}")
    try:
        return response.json()
    except ValueError as error:
        raise PredictorFailed(f"{response.url} did not answer with JSON: is this the service?") from error
