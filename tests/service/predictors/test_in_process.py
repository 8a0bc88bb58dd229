from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.errors import RepositoryError, SettingsError
from service.model.directory import open_model
from service.model.postprocess import Choice, softmax
from service.predictors import over_http
from service.predictors.in_process import open_predictor
from service.predictors.ordered import in_order
from service.predictors.types import Fault, PredictorFailed, ScoresByBoth
from service.settings import Settings, load_settings
from tests.service import tiny_model
from tests.service.conftest import Served, serving
from tests.service.pictures import expected, photo


def settings_of(repository: Path, **more: object) -> Settings:
    options = {"repository": repository, "device": "cpu", "threads": 1, **more}
    return load_settings({name: str(value) for name, value in options.items()}, environment={})


async def test_many_images_are_answered_in_order_with_the_bad_ones_named(repository: Path) -> None:
    images = [b"no image" if number % 10 == 3 else photo(seed=number) for number in range(50)]
    async with open_predictor(settings_of(repository)) as predictor:
        assert predictor.model.name == tiny_model.NAME
        under_way = in_order(
            images, lambda image: predictor.features(image, ["embedding"]), concurrency=predictor.concurrency
        )
        async with aclosing(under_way) as answers:
            seen = [pair async for pair in answers]
    assert [image for image, _ in seen] == images
    for image, answer in seen:
        if image == b"no image":
            assert isinstance(answer, Fault)
            assert answer.code == "unsupported_format"
        else:
            assert not isinstance(answer, Fault)
            np.testing.assert_allclose(answer["embedding"], expected(image, "embedding"), atol=1e-5)


async def test_predictions_are_exactly_the_servers(repository: Path, served: Served) -> None:
    images = [photo(seed=seed) for seed in range(4)]
    async with (
        open_predictor(settings_of(repository)) as local,
        over_http.open_predictor("http://service", transport=httpx.ASGITransport(served.app)) as remote,
    ):
        assert local.model == remote.model
        for image in images:
            assert await local.classify(image) == await remote.classify(image)


async def test_scores_by_both_resizes_are_those_of_either_setting(repository: Path) -> None:
    """A large JPEG file is decoded at a fraction; a small one and a PNG file have the same pixels either way."""
    large, small, other = (
        photo("JPEG", width=400, height=300, quality=90), photo("JPEG", quality=90), photo(width=400, height=300),
    )  # fmt: skip
    alone = {}
    for resize in ("exact", "fast"):
        async with open_predictor(settings_of(repository, resize=resize)) as predictor:
            outputs = await predictor.features(large, ["logits"])
            assert not isinstance(outputs, Fault)
            alone[resize] = softmax(outputs["logits"])
    async with open_predictor(settings_of(repository, resize="fast"), concurrency=2) as predictor:
        images = (large, small, other, b"no image", large)
        answers = await asyncio.gather(*map(predictor.scores_by_both_resizes, images))
    for both in (answers[0], answers[4]):
        assert isinstance(both, ScoresByBoth)
        assert both.fast is not None
        np.testing.assert_allclose(both.exact, alone["exact"], atol=1e-6)
        np.testing.assert_allclose(both.fast, alone["fast"], atol=1e-6)
    assert np.abs(alone["exact"] - alone["fast"]).max() > 1e-5
    assert [isinstance(each, ScoresByBoth) and each.fast is None for each in answers[1:3]] == [True, True]
    assert isinstance(answers[3], Fault)


async def test_a_choice_and_a_temperature_count_alike_here_and_over_http(tmp_path: Path) -> None:
    calibrated = open_model(tiny_model.write(tmp_path, temperature=3.0))
    choices = [Choice(7), Choice(7, min_score=0.1), Choice(classes=(0, 2, 5)), Choice(1, 0.01, (0, 2, 5))]
    async with (
        serving(calibrated) as served,
        open_predictor(settings_of(tmp_path)) as local,
        over_http.open_predictor("http://service", transport=httpx.ASGITransport(served.app)) as remote,
    ):
        assert local.model == remote.model
        assert local.model.temperature == 3.0
        for choice in choices:
            answer = await local.classify(photo(), choice)
            assert not isinstance(answer, Fault)
            assert answer == await remote.classify(photo(), choice)
            assert all(each.score >= choice.min_score for each in answer)
            assert {each.class_id for each in answer} <= set(choice.classes or range(7))


async def test_more_images_than_there_is_room_for_wait_their_turn(repository: Path) -> None:
    async with open_predictor(settings_of(repository), concurrency=1) as predictor:
        answers = await asyncio.gather(*(predictor.classify(photo(seed=seed), Choice(1)) for seed in range(5)))
    assert [len(answer) for answer in answers if not isinstance(answer, Fault)] == [1] * 5


async def test_an_output_that_the_model_does_not_have_is_named(repository: Path) -> None:
    async with open_predictor(settings_of(repository)) as predictor:
        with pytest.raises(PredictorFailed, match="depth"):
            await predictor.features(photo(), ["depth"])


async def test_limits_of_the_settings_hold(repository: Path) -> None:
    async with open_predictor(settings_of(repository, max_image_pixels=100)) as predictor:
        answer = await predictor.classify(photo())
    assert isinstance(answer, Fault)
    assert answer.code == "too_many_pixels"


async def test_a_model_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="holds no model"):
        async with open_predictor(settings_of(tmp_path)):
            raise AssertionError("nothing was loaded")


async def test_several_devices_are_for_a_server(repository: Path) -> None:
    with pytest.raises(SettingsError, match="one device"):
        async with open_predictor(settings_of(repository, devices="cpu,cpu")):
            raise AssertionError("nothing was loaded")
