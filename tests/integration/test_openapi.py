"""The service held against its published description, by requests generated from it: every operation, all it says."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from service.http.app import interface
from service.model.directory import ModelDirectory
from tests.integration.conftest import Threaded, service_thread
from tests.service.pictures import photo

PHOTOS = (photo("JPEG", width=16, height=12), photo("PNG", width=9, height=9))
FILES = st.sampled_from([*PHOTOS, b"", b"text"])
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
EXAMPLES = 30

schemathesis.openapi.media_type("image/*", FILES)
schemathesis.openapi.media_type("application/octet-stream", FILES)

OPERATIONS: dict[str, dict[str, Any]] = {
    operation["operationId"]: operation for path in interface()["paths"].values() for operation in path.values()
}


def can_be_wrong(operation: dict[str, Any]) -> bool:
    """Whether an operation takes anything but text, which is never of the wrong type."""
    return "requestBody" in operation or any(parameter.get("in") == "query" for parameter in operation["parameters"])


CASES = [
    *((name, POSITIVE) for name in OPERATIONS),
    *((name, NEGATIVE) for name, operation in OPERATIONS.items() if can_be_wrong(operation)),
]


@pytest.fixture(scope="module")
def service(model: ModelDirectory) -> Iterator[Threaded]:
    with service_thread(model, max_images=4) as running:
        yield running


def fit(case: schemathesis.Case[Any], model: ModelDirectory, accept: str) -> None:
    """Put in place of what a schema cannot know what this server has: its model, images, enough time."""
    for name, value in (("model", model.manifest.name), ("name", model.manifest.name), ("version", "3")):
        if name in case.path_parameters:
            case.path_parameters[name] = value
    if "model" in case.query:
        case.query["model"] = model.manifest.name
    if "version" in case.query:
        case.query["version"] = str(model.manifest.version)
    timeout_ms = case.query.get("timeout_ms")
    if isinstance(timeout_ms, int) and 0 < timeout_ms < 60_000:
        case.query["timeout_ms"] = 60_000  # a deadline that cannot be met is rightly answered 504
    if "outputs" in case.query:
        case.query["outputs"] = ["embedding"]
    if "classes" in case.query:
        case.query["classes"] = ["0"]
    case.query.pop("size", None)  # which sizes there are is the model's affair
    case.query.pop("layer", None)  # the tiny model has one layer, and its photos few pixels
    case.query.pop("query", None)
    if isinstance(case.body, bytes):
        case.body = PHOTOS[0]
    images = PHOTOS[:1] if accept.startswith("image/") else PHOTOS  # a picture is of one image
    if isinstance(case.body, dict) and "images" in case.body:
        case.body["images"] = [base64.b64encode(image).decode() for image in images]
    elif isinstance(case.body, dict) and "image" in case.body:
        case.body["image"] = list(images)
    elif isinstance(case.body, dict) and "input" in case.body:
        case.body = {**case.body, "input": [base64.b64encode(image).decode() for image in images]}
        case.body |= {"model": model.manifest.name, "dimensions": None}
    case.headers["Accept"] = accept


def hold(service: Threaded, name: str, mode: GenerationMode, check: Any, **more: st.SearchStrategy[Any]) -> None:
    """Generate requests for an operation, the same in every run, and check each."""
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{service.port}/openapi.json")
    schema.config.checks.negative_data_rejection.expected_statuses += ["413"]  # too many images, whatever they are
    strategy = schema.find_operation_by_id(name).as_strategy(generation_mode=mode)
    tried = settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    tried(given(case=strategy, **more)(check))()


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_no_generated_request_meets_a_5xx_or_an_undocumented_answer(
    service: Threaded, name: str, mode: GenerationMode
) -> None:
    def holds(case: schemathesis.Case[Any]) -> None:
        timeout_ms = case.query.get("timeout_ms")
        if isinstance(timeout_ms, int) and 0 < timeout_ms < 60_000:
            case.query["timeout_ms"] = 60_000
        # A string that the document allows need not be an image: such a request may be refused. And in a form that
        # carries bytes alone, a number in an image's place is an image like any other: one that cannot be decoded.
        untyped = [negative_data_rejection] if case.media_type == "multipart/form-data" else []
        case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance, *untyped])

    hold(service, name, mode, holds)


REFUSED = {"v2_infer", "v2_infer_version", "v2_load_model", "v2_unload_model"}
"""Operations whose schemas, by the protocol, allow what no server need take: any tensor, any parameter."""


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in REFUSED])
def test_what_the_document_allows_is_answered_in_every_form_where_the_images_are_images(
    service: Threaded, model: ModelDirectory, name: str
) -> None:
    def holds(case: schemathesis.Case[Any], accept: str) -> None:
        fit(case, model, accept)
        # What was put in place of the generated values counts as wrong, being none of schemathesis's own.
        response = case.call_and_validate(timeout=60, excluded_checks=[negative_data_rejection])
        assert response.status_code == 200, response.text
        assert response.headers["content-type"][0].partition(";")[0] == accept

    hold(service, name, POSITIVE, holds, accept=st.sampled_from(list(OPERATIONS[name]["responses"]["200"]["content"])))
