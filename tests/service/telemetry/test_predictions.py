"""Scores, entropies and classes of answers, as the metrics count them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from service.model.directory import ModelDirectory
from service.telemetry.metrics import Metrics
from service.telemetry.model_metrics import EndedRequest, ModelMetrics
from service.telemetry.predictions import OTHER, certainty_of
from tests.service import tiny_model
from tests.service.conftest import serving
from tests.service.http.routes.v2.bodies import PATH, binary, document, tensor
from tests.service.pictures import photo
from tests.service.telemetry.test_metrics import shown

TINY = {"model": "tiny", "version": "1"}
NAMES = ("ant", "bee", "crane", "crane")
PNG = {"Content-Type": "image/png"}


def logits_of(*classes: int, sure: float = 5.0) -> list[NDArray[np.float32]]:
    """Logits of images that are taken for these classes."""
    return [np.where(np.arange(len(NAMES)) == each, sure, 0.0).astype(np.float32) for each in classes]


def count(metrics: Metrics, model: ModelMetrics, logits: Sequence[NDArray[np.float32]], *, ended: int = 1) -> None:
    for _ in range(ended):
        metrics.request_began()
        metrics.request_ended(EndedRequest("/r", 200, "ok", 0.5, model, logits=logits))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0, 1e4, 1e30])
def test_scores_and_entropies_are_those_of_the_softmax(scale: float) -> None:
    logits = (np.random.default_rng(0).normal(size=(50, 11)) * scale).astype(np.float32)
    found = certainty_of(logits)
    wide = logits.astype(np.float64)
    shares = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    entropies = -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=1) / math.log(11)
    np.testing.assert_array_equal(found.classes, logits.argmax(axis=1))
    np.testing.assert_allclose(found.scores, shares.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.entropies, entropies, atol=1e-5)
    assert found.entropies.min() >= 0
    assert found.entropies.max() <= 1 + 1e-6


def test_a_temperature_is_that_of_the_answers_scores() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 11)).astype(np.float32)
    found = certainty_of(logits, 0.5)
    expected = certainty_of(logits * 2)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    np.testing.assert_allclose(found.entropies, expected.entropies, atol=1e-5)
    metrics = Metrics()
    count(metrics, metrics.of_model("tiny", 1, temperature=0.5), list(logits))
    assert metrics.registry.get_sample_value("dat_prediction_score_sum", TINY) == pytest.approx(
        expected.scores.sum(), rel=1e-5
    )


def test_images_without_finite_logits_are_left_out() -> None:
    logits = np.zeros((5, 3), np.float32)
    logits[1, 0], logits[2, 1], logits[3, 2] = np.nan, np.inf, -np.inf
    logits[4, 2] = 1.0
    found = certainty_of(logits)
    assert found.classes.tolist() == [0, 2]
    assert np.isfinite(found.scores).all()


def test_of_one_class_all_is_certain() -> None:
    found = certainty_of(np.array([[3.0], [-2.0]], np.float32))
    assert (found.scores.tolist(), found.entropies.tolist()) == ([1.0, 1.0], [0.0, 0.0])


def test_a_lone_request_is_counted_at_once_and_many_together() -> None:
    metrics = Metrics()
    model = metrics.of_model("tiny", 1)
    value = metrics.registry.get_sample_value
    count(metrics, model, logits_of(1, 2))
    assert value("dat_prediction_score_count", TINY) == 2
    metrics.request_began()  # from here on something else is in flight
    count(metrics, model, logits_of(0), ended=9)
    assert value("dat_prediction_score_count", TINY) == 2
    assert shown(metrics, "dat_prediction_entropy_count") == {("tiny", "1"): 11}
    assert value("dat_prediction_score_sum", TINY) == pytest.approx(11 / (1 + 3 * math.exp(-5)), rel=1e-5)


def test_many_logits_do_not_wait() -> None:
    metrics = Metrics()
    model = metrics.of_model("tiny", 1)
    metrics.request_began()
    metrics.render()  # so that what comes now may wait for a second
    count(metrics, model, [np.zeros(200_000, np.float32)] * 6)
    assert metrics.registry.get_sample_value("dat_prediction_score_count", TINY) == 6


def test_classes_are_counted_where_that_is_wanted_and_the_rest_together() -> None:
    metrics = Metrics()
    assert shown(metrics, "dat_predictions_total") == {}
    count(metrics, metrics.of_model("silent", 1, class_names=NAMES), logits_of(0, 1))
    assert shown(metrics, "dat_predictions_total") == {}
    model = metrics.of_model("tiny", 1, class_names=NAMES, most_classes=2)
    count(metrics, model, logits_of(0, 3, 3, 2, 2, 2))
    count(metrics, model, logits_of(3, 1))
    assert shown(metrics, "dat_predictions_total") == {
        ("2", "crane", "tiny", "1"): 3,
        ("3", "crane", "tiny", "1"): 3,  # another class of the same name
        (OTHER, "", "tiny", "1"): 2,
    }


def test_predictions_of_a_version_that_is_gone_are_shown_once_more() -> None:
    metrics = Metrics()
    count(metrics, metrics.of_model("tiny", 1, class_names=NAMES, most_classes=9), logits_of(0))
    metrics.forget("tiny", 1)
    assert shown(metrics, "dat_predictions_total")
    for name in ("dat_predictions_total", "dat_prediction_score_count", "dat_prediction_entropy_count"):
        assert shown(metrics, name) == {}


async def test_all_calls_that_ask_for_classes_are_counted_and_no_others(model: ModelDirectory) -> None:
    async with serving(model, class_metrics=tiny_model.CLASSES) as served:
        http = served.http
        asked = [
            await http.post("/v1/classify", files=[("image", photo(seed=seed)) for seed in range(3)]),
            await http.post("/v1/features?outputs=logits&outputs=embedding", content=photo(), headers=PNG),
            await http.post(PATH, **binary(document(tensor()))),
            await http.post("/v1/features?outputs=embedding", content=photo(), headers=PNG),
        ]
        assert [each.status_code for each in asked] == [200] * 4
        assert (await http.post("/v1/classify", content=b"no image", headers=PNG)).status_code == 422
        served.metrics.settle()
        assert served.sample("dat_prediction_score_count") == 5
        assert served.sample("dat_predictions_total") == 5
        first = asked[0].json()["results"][0]["predictions"][0]
        assert served.sample("dat_predictions_total", class_id=str(first["class_id"]), label=first["label"]) >= 1
