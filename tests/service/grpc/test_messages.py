"""The descriptors: what protoc makes of the .proto files, and what Triton's client knows under the same names."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from service import errors
from service.grpc.failures import CODES, HTTP_STATUSES, failure_of
from service.grpc.messages import DESCRIPTORS, INFERENCE_SERVICE, POOL
from tests.integration.conftest import PATIENCE_S, ROOT

OWN = POOL.FindFileByName("inference.proto")
THEIRS = (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)


def test_descriptors_are_what_protoc_makes_of_the_files(tmp_path: Path) -> None:
    folder = DESCRIPTORS.parent
    made = tmp_path / "made"
    python = ROOT / ".venv" / "kserve" / "bin" / "python"
    sources = sorted(path.name for path in folder.glob("*.proto"))
    subprocess.run(
        [str(python), "-m", "grpc_tools.protoc", "-I.", "--include_imports", f"--descriptor_set_out={made}", *sources],
        cwd=folder, check=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert made.read_bytes() == DESCRIPTORS.read_bytes()


def theirs(kind: str, name: str) -> Any:
    return next(getattr(file, kind)[name] for file in THEIRS if name in getattr(file, kind))


def shape_of(field: Any) -> tuple[object, ...]:
    """Return all of a field that is seen on the wire or in JSON."""
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof
    return (
        field.number, field.type, field.is_repeated, field.json_name, kind and kind.full_name, oneof and oneof.name
    )  # fmt: skip


def check_message(own: Any, other: Any) -> int:
    """Compare a message, and those in it, and return how many fields there are."""
    assert own.full_name == other.full_name
    for field in own.fields:
        assert shape_of(field) == shape_of(other.fields_by_name[field.name]), field.full_name
    for enum in own.enum_types:
        check_enum(enum, other.enum_types_by_name[enum.name])
    return len(own.fields) + sum(
        check_message(nested, other.nested_types_by_name[nested.name]) for nested in own.nested_types
    )


def check_enum(own: Any, other: Any) -> None:
    assert {value.name: value.number for value in own.values} == {value.name: value.number for value in other.values}


def test_fields_are_those_of_tritons_client() -> None:
    fields = [
        check_message(message, theirs("message_types_by_name", name))
        for name, message in OWN.message_types_by_name.items()
    ]
    assert sum(fields) > 150
    for name, enum in OWN.enum_types_by_name.items():
        check_enum(enum, theirs("enum_types_by_name", name))


def test_methods_are_those_of_tritons_client() -> None:
    other = theirs("services_by_name", "GRPCInferenceService")
    for method in POOL.FindServiceByName(INFERENCE_SERVICE).methods:
        theirs_of = other.methods_by_name[method.name]
        for side in ("input_type", "output_type"):
            assert getattr(method, side).full_name == getattr(theirs_of, side).full_name
        assert (method.client_streaming, method.server_streaming) == (
            theirs_of.client_streaming, theirs_of.server_streaming
        )  # fmt: skip


@pytest.mark.parametrize(
    "kind", [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.ServiceError)]
)
def test_every_error_has_a_status_that_http_has_too(kind: type[errors.ServiceError]) -> None:
    made = {
        errors.BadImages: lambda: errors.BadImages({0: errors.ImageFault("bad", "It is bad.")}),
        errors.Overloaded: lambda: errors.Overloaded("full", retry_after_s=2),
        errors.RateLimited: lambda: errors.RateLimited("fast", retry_after_s=2),
        errors.ConcurrencyLimited: lambda: errors.ConcurrencyLimited("many", retry_after_s=2),
    }
    failure = failure_of(made.get(kind, lambda: kind("the reason"))())
    assert failure.status in HTTP_STATUSES
    assert failure.reason == kind.code
    assert (failure.retry_after_s is not None) == issubclass(kind, errors.Overloaded | errors.NotReady)
    if issubclass(kind, errors.StartupError):
        assert "reason" not in failure.detail
    assert kind in CODES or failure.status in set(CODES.values())
