"""Addresses: which are taken, and that none holds a secret."""

from __future__ import annotations

import pickle

import pytest

from service.remote.address import BadAddress, RemoteAddress, is_remote


@pytest.mark.parametrize(
    "text", ["s3://bucket", "s3://bucket/a/prefix/", "gs://b/p", "az://container/p", "https://h.example:8443/models"]
)
def test_an_address_is_what_it_says_without_a_slash_at_its_end(text: str) -> None:
    address = RemoteAddress(text)
    assert is_remote(text)
    assert str(address) == text.rstrip("/")
    assert address == RemoteAddress(f"{text}/") == pickle.loads(pickle.dumps(address))
    assert (address.is_bucket, address.is_plain) == (not text.startswith("https"), False)


@pytest.mark.parametrize(
    "text",
    [
        "ftp://host/a", "S3://bucket", "s3:///prefix", "s3://", "https://host:port/", "https://[::1/", "s3://b/../c",
        "https://host//a", "://b",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadAddress):
        RemoteAddress(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://me:secret@host/a",
        "https://secret@host/",
        "https://host/a?sig=secret",
        "az://c/p#secret",
        "ftp://secret",
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(BadAddress) as raised:
        RemoteAddress(text)
    assert "secret" not in str(raised.value)


def test_addresses_have_folders_of_their_own() -> None:
    texts = ["s3://b/a-b", "s3://b/a/b", "gs://b/a/b", "s3://b/A/b", "https://h:1/x", "https://h/1/x"]
    names = [RemoteAddress(text).folder_name for text in texts]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and "/" not in name and not name.startswith(".") for name in names)
    assert RemoteAddress("s3://b/a/").folder_name == RemoteAddress("s3://b/a").folder_name
