"""Keys, TLS, deadlines, cancellation, health, reflection and the end of calls over gRPC, on real sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from service.access.keys import make_key
from service.errors import StartupError
from service.grpc.door import ReservedPort
from service.grpc.failures import DETAILS, PUSHBACK
from service.grpc.messages import (
    ErrorInfo,
    HealthCheckRequest,
    HealthCheckResponse,
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
    RetryInfo,
    ServerReflectionRequest,
    ServerReflectionResponse,
    Status,
    of_protocol,
)
from service.model.directory import ModelDirectory
from tests.integration.conftest import PATIENCE_S, ROOT, Threaded, service_process, service_thread
from tests.integration.test_tls import Files
from tests.integration.test_tls import files as files
from tests.service import tiny_model
from tests.service.pictures import pixels

INFER, STREAM = (f"/inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer"))
PIXELS = pixels(tiny_model.SIZE, tiny_model.SIZE)[None]


def request(**parameters: int) -> Any:
    asked = ModelInferRequest(model_name=tiny_model.NAME, raw_input_contents=[PIXELS.tobytes()], id="7")
    asked.inputs.add(name="image", datatype="UINT8", shape=PIXELS.shape)
    for name, value in parameters.items():
        asked.parameters[name].int64_param = value
    return asked


def method(channel: grpc.Channel, route: str = INFER, answer: Any = ModelInferResponse) -> Any:
    make = {INFER: channel.unary_unary, STREAM: channel.stream_stream}.get(route, channel.unary_unary)
    return make(
        route, request_serializer=lambda message: message.SerializeToString(), response_deserializer=answer.FromString
    )


def info_of(error: grpc.RpcError) -> tuple[str, float | None]:
    """Return the stable name of a failure, and the seconds after which to ask again."""
    metadata = dict(error.trailing_metadata())
    reason, info, retry = "", ErrorInfo(), RetryInfo()
    retry_s = None
    for detail in Status.FromString(metadata[DETAILS]).details:
        if detail.Unpack(info):
            reason = info.reason
        if detail.Unpack(retry):
            retry_s = retry.retry_delay.ToNanoseconds() / 1e9
            assert int(metadata[PUSHBACK]) >= retry_s * 1000
    return reason, retry_s


@pytest.fixture
def service(model: ModelDirectory) -> Iterator[tuple[Threaded, grpc.Channel]]:
    with (
        service_thread(model, grpc_port=0, drain_timeout_ms=PATIENCE_S * 1000) as running,
        grpc.insecure_channel(running.grpc_address) as channel,
    ):
        yield running, channel


def test_callers_request_id_comes_back(service: tuple[Threaded, grpc.Channel]) -> None:
    _, channel = service
    _, call = method(channel).with_call(request(), metadata=[("x-request-id", "mine")], timeout=PATIENCE_S)
    assert dict(call.trailing_metadata())["x-request-id"] == "mine"
    with pytest.raises(grpc.RpcError) as raised:
        method(channel)(ModelInferRequest(model_name="none"), metadata=[("x-request-id", "mine")], timeout=PATIENCE_S)
    assert dict(raised.value.trailing_metadata())["x-request-id"] == "mine"
    assert info_of(raised.value) == ("unknown_model", None)


@pytest.mark.parametrize("how", ["cancelled", "deadline", "parameter"])
def test_call_that_nobody_waits_for_is_ended_where_it_is(service: tuple[Threaded, grpc.Channel], how: str) -> None:
    running, channel = service
    running.session.close()
    first = method(channel).future(request())  # holds the engine, while it is kept
    running.session.wait_for_run()
    queued = running.queued_event()
    status, code = {"cancelled": (499, "CANCELLED")}.get(how, (504, "DEADLINE_EXCEEDED"))
    ended = running.request_ended_event(status)
    asked = request(timeout=100_000) if how == "parameter" else request()
    waiting = method(channel).future(asked, timeout=0.1 if how == "deadline" else PATIENCE_S)
    assert queued.wait(PATIENCE_S)
    if how == "cancelled":
        waiting.cancel()
    else:
        assert waiting.code() is grpc.StatusCode[code]
    assert ended.wait(PATIENCE_S)
    running.session.gate.set()
    assert first.result().id == "7"
    assert sum(running.session.sizes) == 1


def test_full_queue_says_when_to_come_back(model: ModelDirectory) -> None:
    settings = {"max_images": 1, "max_queued_images": 1, "grpc_port": 0}
    with service_thread(model, **settings) as running, grpc.insecure_channel(running.grpc_address) as channel:
        running.session.close()
        first = method(channel).future(request(), timeout=PATIENCE_S)
        running.session.wait_for_run()
        with pytest.raises(grpc.RpcError) as raised:
            method(channel)(request(), timeout=PATIENCE_S)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        reason, retry_s = info_of(raised.value)
        assert reason == "overloaded"
        assert retry_s is not None
        assert retry_s > 0
        running.session.gate.set()
        assert first.result().id == "7"


def test_what_is_in_flight_is_finished_and_nothing_new_is_taken(service: tuple[Threaded, grpc.Channel]) -> None:
    running, channel = service
    running.session.close()
    begun = method(channel).future(request(), timeout=PATIENCE_S)
    running.session.wait_for_run()
    queued = running.queued_event()
    more = threading.Event()

    def requests() -> Iterator[Any]:
        yield request()
        more.wait(PATIENCE_S)  # the client keeps the stream open

    stream = method(channel, STREAM, ModelStreamInferResponse)(requests())
    assert queued.wait(PATIENCE_S)
    watched = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=HealthCheckResponse.FromString,
    )(HealthCheckRequest())
    assert next(watched).status == HealthCheckResponse.SERVING
    running.server.should_exit = True
    assert next(watched).status == HealthCheckResponse.NOT_SERVING
    with grpc.insecure_channel(running.grpc_address) as other, pytest.raises(grpc.RpcError) as raised:
        method(other)(request(), timeout=PATIENCE_S)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    running.session.gate.set()
    assert begun.result().id == "7"
    assert next(stream).infer_response.id == "7"
    with pytest.raises(grpc.RpcError) as raised:
        next(stream)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert info_of(raised.value)[0] == "not_ready"
    more.set()
    running.thread.join(PATIENCE_S)
    assert not running.thread.is_alive()


def test_what_is_not_finished_in_the_drain_time_is_told_so(model: ModelDirectory) -> None:
    with (
        service_thread(model, grpc_port=0, drain_timeout_ms=1) as running,
        grpc.insecure_channel(running.grpc_address) as channel,
    ):
        running.session.close()
        begun = method(channel).future(request(), timeout=PATIENCE_S)
        running.session.wait_for_run()
        running.server.should_exit = True
        assert begun.code() is grpc.StatusCode.UNAVAILABLE
        assert info_of(begun.exception())[0] == "not_ready"


def test_health(service: tuple[Threaded, grpc.Channel]) -> None:
    _, channel = service
    check = method(channel, "/grpc.health.v1.Health/Check", HealthCheckResponse)
    for name in ("", "inference.GRPCInferenceService"):
        assert check(HealthCheckRequest(service=name), timeout=PATIENCE_S).status == HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as raised:
        check(HealthCheckRequest(service="other"), timeout=PATIENCE_S)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(service: tuple[Threaded, grpc.Channel], version: str) -> None:
    _, channel = service
    reflect = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=ServerReflectionResponse.FromString,
    )
    asked = [
        ServerReflectionRequest(list_services=""),
        ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
        ServerReflectionRequest(file_by_filename="status.proto"),
        ServerReflectionRequest(file_containing_symbol="nothing"),
    ]
    services, inference, status, nothing = reflect(iter(asked), timeout=PATIENCE_S)
    assert "inference.GRPCInferenceService" in [each.name for each in services.list_services_response.service]
    (file,) = inference.file_descriptor_response.file_descriptor_proto
    assert FileDescriptorProto.FromString(file).service[0].name == "GRPCInferenceService"
    files = [
        FileDescriptorProto.FromString(each).name for each in status.file_descriptor_response.file_descriptor_proto
    ]
    assert files == ["google/protobuf/any.proto", "google/protobuf/duration.proto", "status.proto"]
    assert nothing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_keys_of_several_workers(repository: Path) -> None:
    key, entry = make_key("phone-app")
    options = ("--workers", "2", "--grpc-port", "0", "--api-keys", f"{entry}:rate=0.001:burst=6")
    bearer = [("authorization", f"Bearer {key}")]
    with service_process(repository, *options) as process:

        def ask(_: int) -> Any:
            # A connection each: whichever worker takes it, the account is the same.
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(process.grpc_address, options=options) as channel:
                return method(channel).future(request(), metadata=bearer, timeout=PATIENCE_S).exception()

        with ThreadPoolExecutor(4) as pool:
            failures = [each for each in pool.map(ask, range(12)) if each is not None]
        assert len(failures) == 6
        assert {each.code() for each in failures} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert {info_of(each)[0] for each in failures} == {"rate_limited"}
        with grpc.insecure_channel(process.grpc_address) as channel:
            live = method(channel, "/inference.GRPCInferenceService/ServerLive", of_protocol("ServerLiveResponse"))
            assert live(of_protocol("ServerLiveRequest")(), timeout=PATIENCE_S).live
            for metadata in ([], [("authorization", "Bearer dat_wrong")]):
                with pytest.raises(grpc.RpcError) as raised:
                    method(channel)(request(), metadata=metadata, timeout=PATIENCE_S)
                assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
                with pytest.raises(grpc.RpcError) as raised:
                    next(method(channel, STREAM, ModelStreamInferResponse)(iter([request()]), metadata=metadata))
                assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert key not in str(process.lines)


def test_tls_of_the_same_files_as_https(repository: Path, files: Files) -> None:
    tls = ("--tls-certificate", files.server, "--tls-key", files.server_key, "--tls-ca-certificates", files.ca)
    authority, key, chain = (Path(path).read_bytes() for path in (files.ca, files.client_key, files.client))
    with service_process(repository, *tls, "--grpc-port", "0") as process:
        with grpc.secure_channel(process.grpc_address, grpc.ssl_channel_credentials(authority, key, chain)) as channel:
            assert method(channel)(request(), timeout=PATIENCE_S).id == "7"
        for without in (grpc.secure_channel(process.grpc_address, grpc.ssl_channel_credentials(authority)),
                        grpc.insecure_channel(process.grpc_address)):  # fmt: skip
            with without as channel, pytest.raises(grpc.RpcError) as raised:
                method(channel)(request(), timeout=PATIENCE_S)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def started(repository: Path, *options: str) -> str:
    """Return what a service says that cannot start."""
    ended = subprocess.run(
        [sys.executable, "-m", "service", "--repository", str(repository), "--port", "0", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    return ended.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_taken_port_is_named(repository: Path, workers: str) -> None:
    """Also where who has it would share it, as another service of the same user would."""
    taken = ReservedPort("127.0.0.1", 0)
    port = taken.address.rpartition(":")[2]
    said = started(repository, "--host", "127.0.0.1", "--grpc-port", port, "--workers", workers)
    assert f"cannot listen for gRPC on 127.0.0.1 port {port}: Address already in use" in said
    with pytest.raises(StartupError):
        ReservedPort("127.0.0.1", int(port))


def test_connections_that_a_predecessor_has_closed_do_not_keep_the_port() -> None:
    """Such a one is in the state TIME-WAIT for a minute, on the side that closed first."""
    reserved = ReservedPort("127.0.0.1", 0)
    host, _, port = reserved.address.rpartition(":")
    with socket.socket() as listener:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # as gRPC's own has them
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind((host, int(port)))
        listener.listen()
        with socket.create_connection((host, int(port))) as client:
            accepted, _ = listener.accept()
            accepted.close()
            assert client.recv(1) == b""
    del reserved
    assert ReservedPort("127.0.0.1", int(port)).address == f"{host}:{port}"


def test_what_grpc_cannot_do_is_said_at_the_start(repository: Path, files: Files) -> None:
    tls = ("--tls-certificate", files.server, "--tls-key", files.locked_key, "--tls-key-password", "the password")
    assert "--grpc-port: gRPC takes no private key with a password" in started(repository, *tls, "--grpc-port", "0")
    said = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['grpc'] = None; sys.argv[0] = 'service'\n"
         "from service.__main__ import main; sys.exit(main(sys.argv[1:]))",
         "--repository", str(repository), "--port", "0", "--grpc-port", "0"],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert said.returncode == 2
    assert "--grpc-port: grpc is not installed; requirements/grpc.txt has what gRPC needs" in said.stderr


def test_service_without_grpc_imports_nothing_of_it(repository: Path) -> None:
    script = (
        "import sys, service.commands.serve, service.processes.worker, service.http.app\n"
        "found = [name for name in sys.modules if name.split('.')[0] in ('grpc', 'google')]\n"
        "sys.exit(f'imported: {found}' if found else None)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=PATIENCE_S, check=True)
