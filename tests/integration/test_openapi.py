"""The published description of the interface, and the service held against it by generated requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from service.problems import all_kinds
from service.repository import ModelDirectory
from tests.integration.conftest import Threaded, service_thread
from tests.service.images import photo

INFERENCE_STATUSES = {"200", "400", "401", "404", "405", "406", "408", "413", "415", "422", "429", "500", "503", "504"}
FILES = st.sampled_from([photo("JPEG", width=16, height=12), photo("PNG", width=9, height=9), b"", b"text"])

schemathesis.openapi.media_type("image/*", FILES)
schemathesis.openapi.media_type("application/octet-stream", FILES)


@pytest.fixture(scope="module")
def service(model: ModelDirectory) -> Iterator[Threaded]:
    with service_thread(model, max_images=4) as running:
        yield running


@pytest.fixture(scope="module")
def document(service: Threaded) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"http://127.0.0.1:{service.port}/openapi.json").json()
    return answer


OPERATIONS = (
    "classify",
    "features",
    "explain",
    "list_models",
    "get_model",
    "live",
    "ready",
    "metrics",
    "v2_server_metadata",
    "v2_live",
    "v2_ready",
    "v2_model_metadata",
    "v2_model_version_metadata",
    "v2_model_ready",
    "v2_model_version_ready",
    "v2_model_config",
    "v2_model_version_config",
    "v2_stats",
    "v2_model_stats",
    "v2_model_version_stats",
    "v2_infer",
    "v2_infer_version",
    "v2_repository_index",
    "v2_load_model",
    "v2_unload_model",
)


def operations_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the operations by their ids, with what they share with others written out in them."""
    operations = {op["operationId"]: op for path in document["paths"].values() for op in path.values()}
    for operation in operations.values():
        operation["responses"] = {status: within(document, each) for status, each in operation["responses"].items()}
        if "requestBody" in operation:
            operation["requestBody"] = within(document, operation["requestBody"])
    return operations


def within(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return a part of the document, or what it refers to."""
    if "$ref" not in part:
        return part
    found: Any = document
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return dict(found)


def test_every_operation_is_described_and_tried_here(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert set(operations_of(document)) == set(OPERATIONS)


@pytest.mark.parametrize("operation", ["classify", "features", "explain"])
def test_inference_documents_every_body_and_every_error(document: dict[str, Any], operation: str) -> None:
    described = operations_of(document)[operation]
    forms = {"image/*", "application/octet-stream", "multipart/form-data", "application/json"}
    assert set(described["requestBody"]["content"]) == forms
    assert set(described["responses"]) == INFERENCE_STATUSES
    for status, answer in described["responses"].items():
        assert "X-Request-ID" in answer["headers"]
        assert status == "200" or list(answer["content"]) == ["application/problem+json"]
    codes = {kind.code for kind in all_kinds().values() if str(kind.status) in INFERENCE_STATUSES}
    assert all(f"`{code}`" in str(described["responses"]) for code in codes)


@pytest.mark.parametrize("operation", ["v2_infer", "v2_infer_version"])
def test_protocol_documents_every_body_and_every_error_in_its_own_form(
    document: dict[str, Any], operation: str
) -> None:
    described = operations_of(document)[operation]
    assert set(described["requestBody"]["content"]) == {"application/json", "application/octet-stream"}
    assert set(described["responses"]) == INFERENCE_STATUSES - {"406"}
    for status, answer in described["responses"].items():
        assert "X-Request-ID" in answer["headers"]
        form = {"$ref": "#/components/schemas/ProtocolError"}
        assert status == "200" or answer["content"]["application/json"]["schema"] == form


CASES = [
    *((operation, GenerationMode.POSITIVE) for operation in OPERATIONS),
    ("classify", GenerationMode.NEGATIVE),  # the others take nothing that could be invalid
    ("features", GenerationMode.NEGATIVE),
    ("explain", GenerationMode.NEGATIVE),
    ("v2_infer", GenerationMode.NEGATIVE),
    ("v2_repository_index", GenerationMode.NEGATIVE),
    ("v2_load_model", GenerationMode.NEGATIVE),
]


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_no_generated_request_meets_a_5xx_or_an_undocumented_answer(
    service: Threaded, operation: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{service.port}/openapi.json")

    @settings(max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=schema.find_operation_by_id(operation).as_strategy(generation_mode=mode))
    def holds(case: schemathesis.Case[Any]) -> None:
        timeout_ms = case.query.get("timeout_ms")
        if isinstance(timeout_ms, int) and 0 < timeout_ms < 60_000:
            case.query["timeout_ms"] = 60_000  # a deadline that cannot be met is rightly answered 504
        # A string that the document allows need not be an image: such a request may be refused. And in a form that
        # carries bytes alone, a number in an image's place is an image like any other: one that cannot be decoded.
        untyped = [negative_data_rejection] if case.media_type == "multipart/form-data" else []
        case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance, *untyped])

    holds()
