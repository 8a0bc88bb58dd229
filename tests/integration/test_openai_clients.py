"""`/v1/embeddings` as OpenAI's own client speaks to a live server, and as a vector database is filled from it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

from service.access.keys import make_key
from tests.integration.conftest import PATIENCE_S, service_process
from tests.service import tiny_model
from tests.service.pictures import expected, photo

KEY, ENTRY = make_key("openai")
MODEL = f"{tiny_model.NAME}:{tiny_model.VERSION}"
PHOTOS = [photo("JPEG", seed=seed, width=60 + 20 * seed) for seed in range(4)]


def data_url(data: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def unit(data: bytes) -> NDArray[np.float32]:
    vector = expected(data, "embedding")
    return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def url(repository: Path) -> Iterator[str]:
    with service_process(repository, "--max-body-bytes", "2000000", "--api-keys", ENTRY) as process:
        yield f"http://127.0.0.1:{process.port}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, timeout=PATIENCE_S, max_retries=0) as client:
        yield client


def test_embeddings_are_the_models_of_length_one(client: openai.OpenAI) -> None:
    """Where no format is named the client asks for base64, and decodes it."""
    answer = client.embeddings.create(model=tiny_model.NAME, input=[data_url(data) for data in PHOTOS], user="me")
    assert (answer.object, answer.model) == ("list", MODEL)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (4, 4)
    assert [each.index for each in answer.data] == [0, 1, 2, 3]
    np.testing.assert_allclose([each.embedding for each in answer.data], [unit(data) for data in PHOTOS], atol=1e-3)


def test_every_format_has_the_same_numbers(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "input": base64.b64encode(PHOTOS[0]).decode()}
    by_default = client.embeddings.create(**asked).data[0].embedding
    listed = client.embeddings.create(**asked, encoding_format="float").data[0].embedding
    encoded = client.embeddings.create(**asked, encoding_format="base64").data[0].embedding
    assert isinstance(encoded, str)
    raw = np.frombuffer(base64.b64decode(encoded), "<f4")
    np.testing.assert_array_equal(np.array(by_default, np.float32), raw)
    np.testing.assert_array_equal(np.array(listed, np.float32), raw)


def test_what_openai_has_no_word_for_goes_beside_it(client: openai.OpenAI) -> None:
    parts = [{"type": "image_url", "image_url": {"url": data_url(PHOTOS[0])}}]
    answer = client.embeddings.with_raw_response.create(
        model=MODEL,
        input=parts,  # as vLLM's users send it
        extra_body={"normalize": False},
        extra_query={"timeout_ms": 60_000, "priority": "bulk"},
        extra_headers={"X-Request-ID": "openai-1"},
    )
    assert answer.headers["X-Request-ID"] == "openai-1"
    assert answer.headers["X-Model-Name"] == tiny_model.NAME
    np.testing.assert_allclose(answer.parse().data[0].embedding, expected(PHOTOS[0], "embedding"), atol=1e-3)


def test_async_client_asks_many_at_once(url: str) -> None:
    async def ask() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, timeout=PATIENCE_S) as client:
            asked = [client.embeddings.create(model=MODEL, input=data_url(data)) for data in PHOTOS]
            return [answer.data[0].embedding for answer in await asyncio.gather(*asked)]

    np.testing.assert_allclose(asyncio.run(ask()), [unit(data) for data in PHOTOS], atol=1e-3)


def test_models_are_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == (tiny_model.NAME, "model", "dat-serve")
    assert client.embeddings.create(model=model.id, input=data_url(PHOTOS[0])).model == MODEL


def test_client_shows_what_is_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(
        openai.BadRequestError, match=r"input\[1\] is text, or no image\. The model is a vision"
    ) as text:
        client.embeddings.create(model=MODEL, input=[data_url(PHOTOS[0]), "a cat"])
    assert (text.value.code, text.value.type) == ("malformed_request", "invalid_request_error")
    assert text.value.request_id
    with pytest.raises(openai.BadRequestError, match="No image is fetched from an address"):
        client.embeddings.create(model=MODEL, input="https://example.com/cat.jpg")
    with pytest.raises(openai.BadRequestError, match=r"input\[0\] is text, or no image"):
        client.embeddings.create(model=MODEL, input=[464, 3797])
    with pytest.raises(openai.UnprocessableEntityError, match="Image 0: "):
        client.embeddings.create(model=MODEL, input=data_url(PHOTOS[0][:500]))
    with pytest.raises(openai.UnprocessableEntityError, match="have 3 numbers; none is shortened"):
        client.embeddings.create(model=MODEL, input=data_url(PHOTOS[0]), dimensions=2)
    with pytest.raises(openai.NotFoundError, match="no model 'text-embedding-3-small'") as model:
        client.embeddings.create(model="text-embedding-3-small", input=data_url(PHOTOS[0]))
    assert model.value.code == "unknown_model"
    with pytest.raises(openai.APIStatusError, match="larger than 2000000 bytes"):
        client.embeddings.create(model=MODEL, input=data_url(bytes(2_000_000)))
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="other").embeddings.create(model=MODEL, input=data_url(PHOTOS[0]))


def test_vector_database_is_filled_and_finds_the_same_picture(client: openai.OpenAI) -> None:
    def embedded(*files: bytes) -> list[list[float]]:
        answer = client.embeddings.create(model=MODEL, input=[data_url(data) for data in files])
        return [each.embedding for each in answer.data]

    database = QdrantClient(":memory:")
    try:
        size = len(embedded(PHOTOS[0])[0])
        database.create_collection("photos", VectorParams(size=size, distance=Distance.DOT))
        points = [PointStruct(id=place, vector=vector) for place, vector in enumerate(embedded(*PHOTOS))]
        database.upsert("photos", points)
        for place, data in enumerate(PHOTOS):
            (vector,) = embedded(data)
            found = database.query_points("photos", query=vector, limit=2).points
            assert [found[0].id, round(found[0].score, 3)] == [place, 1.0]
            assert found[1].score < found[0].score
    finally:
        database.close()
