"""Which sizes a model is served at, and that every one of them is answered as it should be, in bounded memory."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from service.engine.in_process import InProcessEngine
from service.engine.room import Room
from service.engine.types import Outputs, Shape
from service.errors import InvalidParameter
from service.model.directory import ModelDirectory, open_model
from service.model.loading import graphs_of, input_shape, load_session
from service.model.sizes import bytes_of, explain_sizes_of, sizes_of
from service.settings import Settings
from tests.service import tiny_dynamic, tiny_model
from tests.service.tiny_dynamic import MIN_SIDE

OWN = (tiny_model.SIZE, tiny_model.SIZE)
ODD: list[Shape] = [(29, 29), (57, 91), OWN, (30, 400), (113, 64)]


@pytest.fixture
def model(tmp_path: Path) -> ModelDirectory:
    return open_model(tiny_dynamic.write(tmp_path))


@pytest.mark.parametrize(
    ("shape", "refusal"),
    [
        (OWN, None),
        ((29, 300), None),
        ((28, 300), "sides from 29 to 2048 pixels are taken, and at most 10000 pixels in all"),
        ((100, 101), "sides from 29 to 2048 pixels are taken, and at most 10000 pixels in all"),
    ],
)
def test_a_dynamic_model_is_served_within_the_settings_bound(
    model: ModelDirectory, shape: Shape, refusal: str | None
) -> None:
    assert sizes_of(model.manifest, Settings(max_input_pixels=10_000)).refusal(shape) == refusal


def test_a_model_of_one_size_says_which(tmp_path: Path) -> None:
    sizes = sizes_of(open_model(tiny_model.write(tmp_path)).manifest, Settings())
    assert sizes.refusal(OWN) is None
    assert sizes.refusal((57, 56)) == "images of 56x56 pixels are taken, and no others"


@pytest.mark.parametrize("chosen", [{"device": "tensorrt"}, {"devices": "cuda,tensorrt:1"}])
def test_with_tensorrt_a_dynamic_model_has_its_own_size_alone(model: ModelDirectory, chosen: dict[str, str]) -> None:
    settings = Settings(**chosen)  # type: ignore[arg-type]
    assert not sizes_of(model.manifest, settings).is_free
    assert all(graph.free is None for graph in graphs_of(model, settings, buckets=(1,)))


def test_a_bound_below_the_models_own_size_leaves_that(model: ModelDirectory) -> None:
    sizes = sizes_of(model.manifest, Settings(max_input_pixels=100))
    assert sizes.refusal(OWN) is None
    assert sizes.refusal((57, 56)) is not None


def test_explanations_are_bounded_by_what_they_take(model: ModelDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.model.sizes._EXPLAIN_MOST_BYTES", 40_000)
    sizes = explain_sizes_of(model.manifest, Settings())
    side = int(sizes.max_pixels**0.5)
    assert bytes_of(model.manifest.explain_shapes_at(side, side)) <= 40_000
    assert bytes_of(model.manifest.explain_shapes_at(side + 1, side + 1)) > 40_000
    assert sizes.refusal((side, side)) is None
    assert sizes.refusal((side + 1, side)) is not None


def test_an_older_manifest_explains_its_own_size_alone(model: ModelDirectory) -> None:
    explain = model.manifest.explain
    assert explain is not None
    older = explain.model_copy(
        update={"layers": tuple(layer.model_copy(update={"stride": None}) for layer in explain.layers)}
    )
    assert not explain_sizes_of(model.manifest.model_copy(update={"explain": older}), Settings()).is_free


def test_results_of_every_size_fit_in_what_is_kept_for_them(model: ModelDirectory) -> None:
    settings = Settings(max_input_pixels=20_000)
    for graph in graphs_of(model, settings, buckets=(1, 2)):
        assert graph.free is not None
        choice = random.Random(5)
        for _ in range(2000):
            height = choice.randint(MIN_SIDE, 20_000 // MIN_SIDE)
            width = choice.randint(MIN_SIDE, max(MIN_SIDE, min(2048, graph.free.max_pixels // height)))
            if height * width <= graph.free.max_pixels:
                assert bytes_of(graph.free.outputs_at((height, width))) <= graph.free.max_output_bytes


async def test_images_of_every_size_get_the_answers_of_their_size(model: ModelDirectory) -> None:
    settings = Settings(threads=1)
    graphs = graphs_of(model, settings, buckets=(1, 2, 4))
    engine = InProcessEngine(
        graphs,
        partial(load_session, model, device="cpu", settings=settings),
        input_shape=input_shape(model.manifest),
        room=Room(64),
    )
    await engine.start()
    await engine.wait_ready()
    try:
        for graph, reference in zip(graphs, (tiny_dynamic.reference, tiny_dynamic.explained), strict=True):
            outputs = frozenset(graph.outputs)

            async def ask(shape: Shape, seed: int, outputs: frozenset[str] = outputs) -> tuple[np.ndarray, Outputs]:
                image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
                with engine.reserve(1, shape=shape) as reservation:
                    with reservation.writing(0) as pixels:
                        pixels[...] = image
                    (answer,) = await reservation.infer([0], outputs)
                return image, answer.outputs

            answered = await asyncio.gather(*(ask(shape, seed) for seed, shape in enumerate(ODD * 3)))
            for image, outputs_of in answered:
                expected = reference(image[None])
                assert {name: values.shape for name, values in outputs_of.items()} == {
                    name: values.shape[1:] for name, values in expected.items()
                }
                for name, values in outputs_of.items():
                    np.testing.assert_allclose(values, expected[name][0], atol=1e-5)
        with pytest.raises(InvalidParameter, match="at most 1048576 pixels"):
            engine.reserve(1, shape=(1024, 1025))
    finally:
        await engine.stop()
