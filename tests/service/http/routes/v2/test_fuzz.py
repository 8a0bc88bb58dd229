"""Malformed requests of every kind at once: none meets a fault of the service, or leaves anything behind."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.model.directory import ModelDirectory
from tests.service.conftest import Served, serving
from tests.service.http.routes.v2.bodies import LOGITS, PATH, PIXELS, SHAPE, binary, document, logits_of, tensor
from tests.service.pictures import photo

PIXEL_BYTES = PIXELS.tobytes()
FILE = photo("PNG", width=9, height=9)
FILE_ELEMENT = len(FILE).to_bytes(4, "little") + FILE

numbers = st.one_of(
    st.integers(-3, 300),
    st.integers(),
    st.floats(),
    st.sampled_from([PIXELS.nbytes, len(FILE_ELEMENT), 2**31, 2**63, 2**64, -(2**63)]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8))
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=8,
)
nested = st.one_of(anything, st.just(PIXELS.tolist()), st.just(PIXELS.ravel().tolist()), st.just([[[]] * 2] * 3))
shapes = st.one_of(
    st.just(SHAPE), st.just([1]), st.just([1, 1]), st.just([2**40, *SHAPE[1:]]), st.lists(numbers, max_size=6), anything
)
parameters = st.one_of(
    st.dictionaries(
        st.sampled_from(
            ["binary_data_size", "binary_data", "binary_data_output", "classification", "timeout", "priority",
             "sequence_id", "shared_memory_region", "datatype", "other"]
        ),
        scalars,
        max_size=3,
    ),
    anything,
)  # fmt: skip
inputs = st.fixed_dictionaries(
    {},
    optional={
        "name": st.one_of(st.just("image"), scalars),
        "shape": shapes,
        "datatype": st.one_of(st.sampled_from(["UINT8", "BYTES", "FP32", "FP16", "INT64"]), scalars),
        "parameters": parameters,
        "data": nested,
    },
)
outputs = st.fixed_dictionaries(
    {}, optional={"name": st.one_of(st.sampled_from(["logits", "stage1"]), scalars), "parameters": parameters}
)
plausible = st.builds(
    lambda shape, datatype, size: tensor(shape=shape, datatype=datatype, parameters={"binary_data_size": size}),
    shapes,
    st.sampled_from(["UINT8", "BYTES", "FP32", "FP16"]),
    numbers,
)
documents = st.one_of(
    anything,
    st.fixed_dictionaries(
        {"inputs": st.one_of(st.lists(st.one_of(inputs, plausible), max_size=2), anything)},
        optional={"id": scalars, "parameters": parameters, "outputs": st.lists(outputs, max_size=2)},
    ),
)
behind = st.one_of(
    st.binary(max_size=40),
    st.just(PIXEL_BYTES),
    st.just(FILE_ELEMENT),
    st.builds(
        lambda length, rest: length.to_bytes(4, "little") + rest, st.integers(0, 2**32 - 1), st.binary(max_size=9)
    ),
    st.integers(0, PIXELS.nbytes).map(lambda size: PIXEL_BYTES[:size]),
)
lengths = st.one_of(st.none(), st.integers(-2, 400), st.text("0123456789-+ ex", max_size=6))
compressions: dict[str, Any] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": bytes,
    "gzip ": bytes,
}


def test_no_malformed_body_is_a_fault_of_the_service(model: ModelDirectory) -> None:
    with asyncio.Runner() as runner:
        serves = serving(model, max_images=4)
        served = runner.run(serves.__aenter__())

        @given(
            asked=documents,
            behind=behind,
            length=lengths,
            coding=st.sampled_from(list(compressions)),
            cut=st.one_of(st.none(), st.integers(0, 60)),
            raw_type=st.sampled_from([None, "BYTES", "UINT8", "X"]),
        )
        @settings(
            max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        def holds(
            asked: Any, behind: bytes, length: object, coding: str, cut: int | None, raw_type: str | None
        ) -> None:
            text = json.dumps(asked).encode()
            headers = {"Content-Encoding": coding}
            if length is not None or behind:
                headers["Inference-Header-Content-Length"] = str(len(text) if length is None else length)
            if raw_type is not None:
                headers["X-Image-Datatype"] = raw_type
            runner.run(ask(served, compressions[coding](text + behind)[:cut], headers))

        try:
            holds()
        finally:
            runner.run(serves.__aexit__(None, None, None))


async def ask(served: Served, body: bytes, headers: dict[str, str]) -> None:
    response = await served.http.post(PATH, content=body, headers=headers)
    assert response.status_code in (200, 400, 413, 415, 422, 504), (response.status_code, response.text)
    assert response.status_code == 200 or list(response.json()) == ["error"]
    assert served.engine.slots_in_use == 0
    healthy = await served.http.post(PATH, **binary(document(outputs=[{"name": "logits"}])))
    assert logits_of(healthy).shape == LOGITS.shape
