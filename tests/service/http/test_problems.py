from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service import errors
from service.http.problems import (
    KINDS,
    internal_problem,
    kind_of,
    problem_for,
    problem_for_http,
    problem_for_validation,
)

STATUSES = {
    "malformed_request": 400,
    "unauthorized": 401,
    "unknown_model": 404,
    "not_acceptable": 406,
    "receive_timeout": 408,
    "too_large": 413,
    "unsupported_media_type": 415,
    "invalid_parameter": 422,
    "bad_image": 422,
    "overloaded": 429,
    "inference_failed": 500,
    "not_ready": 503,
    "deadline_exceeded": 504,
}


def tree(root: type[errors.ServiceError]) -> Iterator[type[errors.ServiceError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def test_mapping_is_total_over_the_error_tree_and_holds_nothing_else() -> None:
    abstract = {errors.RequestError}
    assert set(KINDS) == set(tree(errors.ServiceError)) - abstract


def test_statuses_are_those_of_the_contract() -> None:
    mapped = {kind.code: kind.status for kind in KINDS.values()}
    assert mapped | STATUSES == mapped


def test_error_of_a_class_outside_the_table_is_its_parents_kind() -> None:
    class Special(errors.TooLarge):
        pass

    assert kind_of(Special("x")).code == "too_large"


def test_document_names_everything_rfc_9457_and_the_contract_ask_for() -> None:
    faults = {1: errors.ImageFault("undecodable", "The image is truncated or corrupt.")}
    response = problem_for(errors.BadImages(faults), request_id="r-1")
    assert response.media_type == "application/problem+json"
    assert response.status_code == 422
    assert json.loads(bytes(response.body)) == {
        "type": "/problems/bad_image",
        "title": "Images cannot be used",
        "status": 422,
        "detail": "1 of the images cannot be used (index 1).",
        "code": "bad_image",
        "request_id": "r-1",
        "errors": [{"index": 1, "code": "undecodable", "detail": "The image is truncated or corrupt."}],
    }


@pytest.mark.parametrize(
    ("error", "header", "value"),
    [
        (errors.Overloaded("full", retry_after_s=2.2), "retry-after", "3"),
        (errors.Overloaded("full", retry_after_s=0.0), "retry-after", "1"),
        (errors.NotReady("loading"), "retry-after", "5"),
        (errors.Unauthorized("no key"), "www-authenticate", "Bearer"),
    ],
)
def test_headers_say_what_to_do(error: errors.ServiceError, header: str, value: str) -> None:
    assert problem_for(error, request_id="r").headers[header] == value


@pytest.mark.parametrize("kind", [errors.StartupError, errors.SettingsError, errors.RepositoryError])
def test_operators_errors_tell_callers_nothing(kind: type[errors.ServiceError]) -> None:
    response = problem_for(kind("/secret/path is missing"), request_id="r")
    assert response.status_code == 500
    assert b"secret" not in response.body


def test_internal_problem_is_a_bare_500() -> None:
    document = json.loads(bytes(internal_problem(request_id="r").body))
    assert (document["status"], document["code"], document["request_id"]) == (500, "internal", "r")


def test_framework_errors_are_problems_too_and_keep_their_headers() -> None:
    response = problem_for_http(HTTPException(405, headers={"Allow": "GET"}), request_id="r")
    assert (response.status_code, response.code, response.headers["allow"]) == (405, "method_not_allowed", "GET")
    assert problem_for_http(HTTPException(404), request_id="r").code == "not_found"
    assert problem_for_http(HTTPException(418, "Teapot"), request_id="r").code == "http_418"


def test_validation_errors_name_their_parameters() -> None:
    error = RequestValidationError(
        [
            {"type": "extra_forbidden", "loc": ("query", "topk"), "msg": "Extra inputs are not permitted"},
            {"type": "greater_than", "loc": ("query", "timeout_ms"), "msg": "Input should be greater than 0"},
        ]
    )
    detail = json.loads(bytes(problem_for_validation(error, request_id="r").body))["detail"]
    assert detail == "topk: there is no such parameter; timeout_ms: Input should be greater than 0."
