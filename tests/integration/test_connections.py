"""Requests that end otherwise than the client meant, on real connections."""

from __future__ import annotations

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.http.connection.protocol import MAX_HEAD_BYTES
from service.model.directory import ModelDirectory
from tests.integration.conftest import PATIENCE_S, Connection, Process, service_thread
from tests.service import tiny_model
from tests.service.pictures import photo

PHOTO = photo("JPEG")
JPEG = "Content-Type: image/jpeg"
LIMIT = 1_000_000
KEPT_ALIVE = f"Content-Length: {len(PHOTO)}"


def test_content_length_over_the_limit_is_refused_before_the_body(process: Process) -> None:
    with Connection(process.port) as connection:
        connection.head("/v1/classify", JPEG, f"Content-Length: {LIMIT + 1}")
        status, headers, problem = connection.response()
        assert (status, problem["code"], headers["connection"]) == (413, "too_large", "close")


def test_refused_request_that_expects_continue_gets_its_answer_and_no_continue(process: Process) -> None:
    with Connection(process.port) as connection:
        connection.head("/v1/classify", "Content-Type: text/plain", "Content-Length: 5", "Expect: 100-continue")
        status, headers, problem = connection.response()
        assert (status, problem["code"], headers["connection"]) == (415, "unsupported_media_type", "close")
        assert connection.closed()


def test_accepted_request_that_expects_continue_is_told_to(process: Process) -> None:
    with Connection(process.port) as connection:
        connection.head("/v1/classify", JPEG, KEPT_ALIVE, "Expect: 100-continue")
        assert connection.response_head()[0] == 100
        connection.send(PHOTO)
        assert connection.response()[0] == 200


def test_chunked_body_is_cut_off_at_the_limit(process: Process) -> None:
    with Connection(process.port) as connection:
        connection.head("/v1/classify", JPEG, "Transfer-Encoding: chunked")
        chunk = b"%x\r\n" % 100_000 + bytes(100_000) + b"\r\n"
        for _ in range(11):
            connection.send(chunk)
        status, headers, problem = connection.response()
        assert (status, problem["code"], headers["connection"]) == (413, "too_large", "close")


@pytest.mark.parametrize("chunked", [False, True])
def test_common_clients_read_the_answer_to_a_body_that_is_refused_while_they_send_it(
    process: Process, chunked: bool
) -> None:
    url = f"http://127.0.0.1:{process.port}/v1/classify"
    body = bytes(4 * LIMIT)
    pieces = [body[start : start + 65536] for start in range(0, len(body), 65536)]
    answer = httpx.post(url, content=iter(pieces) if chunked else body, headers={"Content-Type": "image/jpeg"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")

    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=PATIENCE_S)
    connection.request(
        "POST",
        "/v1/classify",
        iter(pieces) if chunked else body,
        {"Content-Type": "image/jpeg"},
        encode_chunked=chunked,
    )
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["code"]) == (413, "too_large")
    connection.close()


def test_body_that_does_not_arrive_in_time_is_408(process: Process) -> None:
    with Connection(process.port) as connection:
        connection.head("/v1/classify", JPEG, KEPT_ALIVE)
        connection.send(PHOTO[:10])
        status, headers, problem = connection.response()
        assert (status, problem["code"], headers["connection"]) == (408, "receive_timeout", "close")


def test_connection_is_kept_after_an_error_whose_body_was_read(process: Process) -> None:
    with Connection(process.port) as connection:
        for body, status in ((b"not a photo", 422), (PHOTO, 200), (b"", 400), (PHOTO, 200)):
            connection.head("/v1/classify", JPEG, f"Content-Length: {len(body)}")
            connection.send(body)
            assert connection.response()[0] == status


def test_pipelined_requests_are_answered_in_order_errors_among_them(process: Process) -> None:
    with Connection(process.port) as connection:
        for body in (PHOTO, b"not a photo", PHOTO):
            connection.head("/v1/classify", JPEG, f"Content-Length: {len(body)}")
            connection.send(body)
        assert [connection.response()[0] for _ in range(3)] == [200, 422, 200]


def test_33_mib_and_100_megapixels_beside_valid_requests(process: Process) -> None:
    url = f"http://127.0.0.1:{process.port}/v1/classify"
    headers = {"Content-Type": "image/jpeg"}
    with httpx.Client(timeout=PATIENCE_S) as client, ThreadPoolExecutor(4) as pool:
        first = client.post(url, content=PHOTO, headers=headers).json()["results"]
        large = [pool.submit(httpx.post, url, content=bytes(33 * 2**20), headers=headers) for _ in range(2)]
        valid = [pool.submit(client.post, url, content=PHOTO, headers=headers) for _ in range(6)]
        assert [answer.result().status_code for answer in large] == [413, 413]
        assert [answer.result().json()["results"] for answer in valid] == [first] * 6


V2_FILE = ("/v2/models/tiny/infer", "Inference-Header-Content-Length: 0", "X-Image-Datatype: BYTES")


@pytest.mark.parametrize("head", [("/v1/classify", JPEG), V2_FILE], ids=["v1", "v2"])
def test_client_that_goes_away_is_dropped_from_the_queue(model: ModelDirectory, head: tuple[str, ...]) -> None:
    with service_thread(model, batch_buckets="1") as service:
        service.session.close()
        held = threading.Thread(target=_ask, args=(service.port,))
        held.start()
        service.session.wait_for_run()
        queued, gone = service.queued_event(), service.request_ended_event(499)
        with Connection(service.port) as connection:
            connection.head(*head, KEPT_ALIVE, "Expect: 100-continue")
            assert connection.response_head()[0] == 100
            connection.send(PHOTO)
            assert queued.wait(PATIENCE_S)
        assert gone.wait(PATIENCE_S)
        service.session.gate.set()
        held.join(PATIENCE_S)
        assert _ask(service.port) == 200
        assert service.session.sizes == [1, 1]
        assert (
            service.parts.metrics.registry.get_sample_value(
                "dat_dropped_images_total",
                {"model": tiny_model.NAME, "version": str(tiny_model.VERSION), "reason": "cancelled"},
            )
            == 1
        )


def test_client_that_goes_away_is_noticed_though_it_has_sent_another_request_meanwhile(model: ModelDirectory) -> None:
    with service_thread(model, batch_buckets="1") as service:
        service.session.close()
        gone = service.request_ended_event(499)
        with Connection(service.port) as connection:
            connection.head("/v1/classify", JPEG, KEPT_ALIVE)
            connection.send(PHOTO)
            service.session.wait_for_run()
            connection.head("/v1/classify", JPEG, KEPT_ALIVE)
            connection.send(PHOTO)
        assert gone.wait(PATIENCE_S)
        failed = {"bucket": "1", "outcome": "failed"}  # which the run is when nobody opens the gate for long
        assert service.parts.metrics.registry.get_sample_value("dat_batches_total", failed) is None


def _ask(port: int) -> int:
    headers = {"Content-Type": "image/jpeg"}
    url = f"http://127.0.0.1:{port}/v1/classify"
    return httpx.post(url, content=PHOTO, headers=headers, timeout=PATIENCE_S).status_code


@pytest.mark.parametrize("in_one_piece", [True, False])
@pytest.mark.parametrize("where", ["line", "header", "headers"])
def test_head_over_the_limit_is_refused_however_it_arrives(process: Process, where: str, in_one_piece: bool) -> None:
    filler = b"x" * (MAX_HEAD_BYTES + 1)
    heads = {
        "line": b"GET /health/live?" + filler + b" HTTP/1.1\r\n",
        "header": b"GET /health/live HTTP/1.1\r\nX-Filler: " + filler + b"\r\n",
        "headers": b"GET /health/live HTTP/1.1\r\n" + b"X-Filler: 0123456789\r\n" * (len(filler) // 16),
    }
    data = heads[where] + b"Host: service\r\n\r\n"
    with Connection(process.port) as connection:
        if in_one_piece:
            connection.send(data)
        else:
            connection.send(data[:-30_000])
            connection.send(data[-30_000:])
        status, headers, problem = connection.response()
        assert (status, headers["connection"], problem["code"]) == (400, "close", "malformed_request")
        assert headers["x-request-id"] == problem["request_id"]


def test_endless_head_is_refused_without_its_end(process: Process) -> None:
    with Connection(process.port) as connection:
        connection.send(b"GET /health/live HTTP/1.1\r\nX-Endless: ")
        connection.send(b"x" * (MAX_HEAD_BYTES + 1))
        assert connection.response_head()[0] == 400


def test_heads_below_the_limit_are_taken_again_and_again_on_one_connection(process: Process) -> None:
    filler = "x" * (MAX_HEAD_BYTES - 1000)
    with Connection(process.port) as connection:
        for _ in range(3):
            connection.head("/health/live", f"X-Filler: {filler}", method="GET")
            assert connection.response()[0] == 200
            connection.head("/v1/classify", f"X-Filler: {filler}", JPEG, KEPT_ALIVE)
            connection.send(PHOTO)
            assert connection.response()[0] == 200


def test_answer_without_a_body_is_sent(process: Process) -> None:
    with Connection(process.port) as connection:
        connection.head("/docs", method="HEAD")
        assert connection.response_head()[0] == 200
        connection.head("/health/live", method="GET")
        assert connection.response()[0] == 200


def test_head_that_does_not_arrive_in_time_is_408(process: Process) -> None:
    with Connection(process.port) as connection:
        connection.send(b"GET /health/live HTTP/1.1\r\nHost: serv")
        status, headers, problem = connection.response()
        assert (status, problem["code"], headers["connection"]) == (408, "receive_timeout", "close")
        assert headers["x-request-id"] == problem["request_id"]
        assert connection.closed()


GET = b"GET /health/live HTTP/1.1\r\n"
POST = b"POST /v1/classify HTTP/1.1\r\nHost: service\r\nContent-Type: image/jpeg\r\n"


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (GET + b"\r\n", "The request has no Host, which HTTP/1.1 wants."),
        (GET + b"Host: a\r\nHost: b\r\n\r\n", "The request has more than one Host."),
        (GET + b"Host: a b\r\n\r\n", "The Host of the request is no name"),
        (GET + b"Host: a\r\nX-Folded: b\r\n c\r\n\r\n", "whitespace after header value"),
        (GET + b"Host : a\r\n\r\n", "Invalid header token"),
        (GET.lower() + b"Host: a\r\n\r\n", "Invalid method"),
        (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", "Invalid method"),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "CONNECT is not offered"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "no request of HTTP/1.1"),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", "Invalid HTTP version"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), "Invalid method"),  # TLS
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "can't be present with Content-Length"),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", "Duplicate Content-Length"),
        (POST + b"Content-Length: -5\r\n\r\n", "Invalid character in Content-Length"),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "chunked alone is taken"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "Invalid character in chunk size"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX", "after chunk data"),
    ],
)
def test_what_is_no_request_is_400_that_names_what_is_wrong(process: Process, data: bytes, detail: str) -> None:
    with Connection(process.port) as connection:
        connection.send(data)
        status, headers, problem = connection.response()
        assert (status, headers["connection"], problem["code"]) == (400, "close", "malformed_request")
        assert detail in problem["detail"]
        assert headers["x-request-id"] == problem["request_id"]
        assert connection.closed()


@pytest.mark.parametrize("size", [1, 8 * 2**20])
def test_answer_to_what_is_no_request_is_read_by_a_client_that_goes_on_sending(process: Process, size: int) -> None:
    with Connection(process.port) as connection:
        connection.send(b"POST /v1/classify HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        status, headers, problem = connection.response()
        assert (status, headers["connection"], problem["code"]) == (400, "close", "malformed_request")
        assert connection.closed()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health/live HTTP/1.0\r\n", 200),
        (b"GET http://elsewhere:81/health/live HTTP/1.1\r\nHost: service\r\n", 200),
        (b"GET /health/live HTTP/1.1\r\nHost:\r\n", 200),
        (b"GET /health/live HTTP/1.1\r\nHost: [::1]:8000\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\nHost: service\r\n", 404),
        (b"TRACE / HTTP/1.1\r\nHost: service\r\n", 405),
    ],
)
def test_unusual_request_is_answered(process: Process, head: bytes, status: int) -> None:
    with Connection(process.port) as connection:
        connection.send(head + b"\r\n")
        assert connection.response()[0] == status


def test_clients_that_offer_http_2_first_are_answered_and_keep_their_connection(process: Process) -> None:
    """As curl's --http2 does, and Java's HttpClient by default."""
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    with Connection(process.port) as connection:
        for _ in range(2):
            connection.head("/v1/classify", JPEG, KEPT_ALIVE, *upgrade)
            connection.send(PHOTO)
            assert connection.response()[0] == 200
            connection.head("/v1/classify", JPEG, KEPT_ALIVE, "Expect: 100-continue", *upgrade)
            assert connection.response_head()[0] == 100
            connection.send(PHOTO)
            assert connection.response()[0] == 200


def test_connection_without_a_request_is_closed_after_the_setting_and_kept_until_then(model: ModelDirectory) -> None:
    with service_thread(model, keep_alive_timeout_ms=1000) as served, Connection(served.port) as connection:
        for _ in range(2):
            connection.head("/v1/classify", JPEG, KEPT_ALIVE)
            connection.send(PHOTO)
            assert connection.response()[0] == 200
        assert connection.closed()
