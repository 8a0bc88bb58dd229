"""The OpenAPI document is whole, valid, plain, and the one in the repository; whatever operations there are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31

from service import __main__ as command_line
from service.http.app import interface
from service.http.openapi.components import ERROR_HEADERS
from service.model.directory import ModelDirectory
from tests.service.conftest import GatedSession, make_parts, serving

COMMITTED = Path(__file__).parents[4] / "openapi.json"
DOCUMENT = interface()
OPERATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    operation.get("operationId", f"{method} {path}"): (method, path, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}
JSON_TYPES = ("application/json", "application/problem+json")
each_operation = pytest.mark.parametrize("name", OPERATIONS)


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    """What a part is, or refers to."""
    while "$ref" in part:
        place: Any = DOCUMENT
        for key in part["$ref"].removeprefix("#/").split("/"):
            place = place[key]
        part = place
    return part


def validator(schema: Any) -> jsonschema_rs.Validator:
    return jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def examples_of(described: dict[str, Any]) -> list[Any]:
    """The examples beside a schema, of a body, a parameter or a header."""
    beside = [described["example"]] if "example" in described else []
    named = [each["value"] for each in described.get("examples", {}).values()]
    return [*beside, *named, *resolved(described["schema"]).get("examples", ())]


def schemas(part: Any) -> Iterator[dict[str, Any]]:
    """Every schema object below a part of the document."""
    if isinstance(part, list):
        for each in part:
            yield from schemas(each)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in ("properties", "schemas"):
                yield from value.values()
            elif key in ("schema", "items", "additionalProperties") and isinstance(value, dict):
                yield value
            if key not in ("example", "examples", "default"):
                yield from schemas(value)


def test_the_committed_document_is_what_is_served() -> None:
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == DOCUMENT, (
        "run `make openapi` and look at the difference"
    )


def test_the_command_prints_the_committed_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["openapi"]) == 0
    assert capsys.readouterr().out == COMMITTED.read_text(encoding="utf-8")


async def test_no_setting_changes_the_document(model: ModelDirectory) -> None:
    async with serving(model, api_keys=f"a:{'0' * 64}", explain=False, top_k=2, port=1) as served:
        assert (await served.http.get("/openapi.json")).json() == DOCUMENT


def test_the_document_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    assert [str(error) for error in jsonschema_rs.Draft202012Validator(OPENAPI_31).iter_errors(DOCUMENT)] == []
    for schema in schemas(DOCUMENT):
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_every_reference_leads_somewhere_and_every_component_is_referred_to() -> None:
    text = json.dumps(DOCUMENT)
    named = {f"#/components/{kind}/{name}" for kind, parts in DOCUMENT["components"].items() for name in parts}
    assert {part.split('"')[0] for part in text.split('"$ref": "')[1:]} == {
        name for name in named if not name.startswith("#/components/securitySchemes/")
    }


def test_the_document_says_what_it_is() -> None:
    assert DOCUMENT["info"].keys() >= {"title", "version", "description", "license"}
    assert DOCUMENT["servers"]
    assert DOCUMENT["externalDocs"]["url"]
    described = {tag["name"] for tag in DOCUMENT["tags"] if tag["description"]}
    assert described == {tag for _, _, operation in OPERATIONS.values() for tag in operation["tags"]}


async def test_every_route_that_answers_for_programs_is_described(model: ModelDirectory) -> None:
    app = make_parts(model, lambda _: GatedSession()).app
    prefixes = ("/v1/", "/v2", "/health/", "/metrics")
    served = {path for route in app.routes if (path := getattr(route, "path", "")).startswith(prefixes)}
    assert served <= set(DOCUMENT["paths"])


def test_operations_have_names_of_their_own_in_one_style() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name == name.lower() for name in names)
    assert {"classify", "features", "explain", "list_models", "get_model", "live", "ready", "metrics"} <= set(names)


@each_operation
def test_operation_says_what_it_does(name: str) -> None:
    _, _, operation = OPERATIONS[name]
    assert operation["summary"]
    assert operation["description"]
    assert len(operation["tags"]) == 1


@each_operation
def test_parameters_are_described_and_never_null(name: str) -> None:
    _, path, operation = OPERATIONS[name]
    parameters = [resolved(parameter) for parameter in operation["parameters"]]
    assert [each["name"] for each in parameters if each["in"] == "path"] == [
        part.strip("{}") for part in path.split("/") if part.startswith("{")
    ]
    assert "X-Request-ID" in {each["name"] for each in parameters}
    for parameter in parameters:
        assert parameter["description"], parameter["name"]
        assert not validator(parameter["schema"]).is_valid(None), parameter["name"]
        for example in examples_of(parameter):
            validator(parameter["schema"]).validate(example)


@each_operation
def test_body_has_a_description_and_examples_that_fit_its_schema(name: str) -> None:
    method, _, operation = OPERATIONS[name]
    assert ("requestBody" in operation) == (method == "post")
    body = resolved(operation.get("requestBody", {"description": "none", "content": {}}))
    assert body["description"]
    for media_type, content in body["content"].items():
        assert examples_of(content) or media_type not in JSON_TYPES
        for example in examples_of(content):
            validator(content["schema"]).validate(example)


@each_operation
def test_response_has_its_headers_and_examples_that_fit_its_schema(name: str) -> None:
    _, _, operation = OPERATIONS[name]
    for status, referred in operation["responses"].items():
        response = resolved(referred)
        assert response["description"]
        wanted = {"X-Request-ID", *ERROR_HEADERS.get(int(status), ())}
        assert wanted <= set(response["headers"]), status
        for header in map(resolved, response["headers"].values()):
            assert header["description"]
            for example in examples_of(header):
                validator(header["schema"]).validate(example)
        for media_type, content in response.get("content", {}).items():
            assert content["schema"], (status, media_type)
            assert examples_of(content) or media_type not in JSON_TYPES, (status, media_type)
            for example in examples_of(content):
                validator(content["schema"]).validate(example)


@each_operation
def test_errors_are_of_one_form_and_those_that_any_operation_can_meet_are_there(name: str) -> None:
    _, path, operation = OPERATIONS[name]
    errors = {int(status): resolved(each) for status, each in operation["responses"].items() if int(status) >= 400}
    assert {405, 500} <= errors.keys()
    assert ("requestBody" in operation) <= ({400, 408, 413, 415} <= errors.keys())
    assert ("security" not in operation) <= (401 in errors)
    form, schema = (
        ("application/json", "ProtocolError") if path.startswith("/v2") else ("application/problem+json", "Problem")
    )
    for error in errors.values():
        assert set(error["content"]) == {form}
        assert error["content"][form]["schema"] == {"$ref": f"#/components/schemas/{schema}"}


def test_a_key_is_described_as_something_that_a_server_may_ask_for() -> None:
    assert DOCUMENT["security"] == [{}, {"api_key": []}]
    assert DOCUMENT["components"]["securitySchemes"]["api_key"].items() >= {"type": "http", "scheme": "bearer"}.items()


@each_operation
async def test_a_key_is_described_where_one_is_asked_for_and_nowhere_else(name: str, model: ModelDirectory) -> None:
    method, path, operation = OPERATIONS[name]
    place = path.replace("{model}", model.manifest.name).replace("{name}", model.manifest.name)
    async with serving(model, api_keys=f"a:{'0' * 64}") as served:
        answer = await served.http.request(method, place.replace("{version}", str(model.manifest.version)))
    assert (answer.status_code == 401) == (operation.get("security") != [])


def test_schemas_have_names_that_make_good_code() -> None:
    names = set(DOCUMENT["components"]["schemas"])
    assert {"ClassifyResponse", "ClassifyResult", "Prediction", "FeaturesResponse", "Problem", "ImageBatch"} <= names
    assert names.isdisjoint({"HTTPValidationError", "ValidationError"})
    assert all(name.isidentifier() and name[0].isupper() for name in names)
    for schema in schemas(DOCUMENT):
        assert not isinstance(schema.get("title"), str), schema


def test_a_choice_of_schemas_has_a_name() -> None:
    named = list(DOCUMENT["components"]["schemas"].values())
    for schema in schemas(DOCUMENT):
        choices = [choice for choice in schema.get("anyOf", schema.get("oneOf", ())) if choice != {"type": "null"}]
        assert len(choices) < 2 or schema in named, schema
