from __future__ import annotations

import pytest

from service.errors import MalformedRequest
from service.http.connection.heads import check_head, framing_of

HOST = (b"host", b"service")


@pytest.mark.parametrize(
    "host",
    [
        b"service", b"service:8000", b"dat_serve:80", b"127.0.0.1", b"[::1]:8000", b"[fe80::1%25eth0]", b"", b":80",
        b"service:", b"a%20b", b"xn--bcher-kva.example",
    ],
)  # fmt: skip
def test_host_is_a_name_or_an_address_with_a_port_or_empty(host: bytes) -> None:
    assert check_head(b"GET", b"/", [(b"host", host)], http_version="1.1") == b"/"


@pytest.mark.parametrize(
    "host", [b"a b", b"a/b", b"user@a", b"a:b", b"a:1:2", b"::1", b"[::1", b"a%2", b"b\xc3\xbccher", b"a,b;?", b"a\\b"]
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_host_that_is_none_is_refused(host: bytes, version: str) -> None:
    with pytest.raises(MalformedRequest, match="The Host of the request is no name") as caught:
        check_head(b"GET", b"/", [(b"host", host)], http_version=version)
    assert "bcher" not in str(caught.value)


def test_http_1_1_wants_one_host_and_http_1_0_at_most_one() -> None:
    check_head(b"GET", b"/", [], http_version="1.0")
    with pytest.raises(MalformedRequest, match="no Host"):
        check_head(b"GET", b"/", [], http_version="1.1")
    for version in ("1.0", "1.1"):
        with pytest.raises(MalformedRequest, match="more than one Host"):
            check_head(b"GET", b"/", [HOST, HOST], http_version=version)


@pytest.mark.parametrize("coding", [b"gzip", b"gzip, chunked", b"identity", b"chunked, chunked", b""])
def test_transfer_coding_that_would_not_be_undone_is_refused(coding: bytes) -> None:
    check_head(b"POST", b"/", [HOST, (b"transfer-encoding", b"Chunked")], http_version="1.1")
    with pytest.raises(MalformedRequest, match="chunked alone"):
        check_head(b"POST", b"/", [HOST, (b"transfer-encoding", coding)], http_version="1.1")


@pytest.mark.parametrize(
    ("target", "with_path"),
    [
        (b"/v1/models", b"/v1/models"),
        (b"/?next=http://other", b"/?next=http://other"),
        (b"*", b"*"),
        (b"http://service/v1/models?a=b", b"http://service/v1/models?a=b"),
        (b"http://service", b"http://service/"),
        (b"http://service:8000?a=b", b"http://service:8000/?a=b"),
    ],
)
def test_whole_address_without_a_path_means_the_root(target: bytes, with_path: bytes) -> None:
    assert check_head(b"GET", target, [HOST], http_version="1.1") == with_path


def test_service_is_no_proxy() -> None:
    with pytest.raises(MalformedRequest, match="CONNECT"):
        check_head(b"CONNECT", b"other:443", [HOST], http_version="1.1")


def test_framing_is_what_says_where_the_body_ends() -> None:
    assert framing_of([HOST, (b"accept", b"*/*")]) == b""
    assert framing_of([(b"content-length", b"5"), HOST]) == b"content-length: 5\r\n"
    assert framing_of([(b"transfer-encoding", b"chunked")]) == b"transfer-encoding: chunked\r\n"
