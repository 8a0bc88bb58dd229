"""Addresses of what lies elsewhere: `s3://BUCKET/PREFIX`, `gs://`, `az://CONTAINER/PREFIX`, `https://` and `http://`.

Invariants: an address holds no user, password, query or fragment, so that it may stand in logs and messages; it ends
without a slash.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any
from urllib.parse import SplitResult, urlsplit

BUCKETS = ("s3", "gs", "az")
"""Schemes of object stores, which list what they hold."""
SCHEMES = (*BUCKETS, "https", "http")


class BadAddress(ValueError):
    """This is no address; the message does not repeat it, for it may hold a secret."""


class RemoteAddress:
    """The address of a file or of a tree of files elsewhere; raises BadAddress where the text is none."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        _check(text)
        self._text = text.rstrip("/")

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"RemoteAddress({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteAddress) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    @property
    def scheme(self) -> str:
        """One of SCHEMES."""
        return self._text.partition("://")[0]

    @property
    def is_bucket(self) -> bool:
        """Whether what lies there can be listed."""
        return self.scheme in BUCKETS

    @property
    def is_plain(self) -> bool:
        """Whether anybody on the way could change what is read."""
        return self.scheme == "http"

    @property
    def folder_name(self) -> str:
        """A name for a folder that is kept for this address alone, by which people know it too."""
        known = re.sub(r"[^a-z0-9.]+", "-", self._text.lower()).strip("-.")[:64]
        return f"{known}-{hashlib.sha256(self._text.encode()).hexdigest()[:12]}"


def is_remote(text: Any) -> bool:
    """Tell whether a text is meant for an address rather than for a path."""
    return isinstance(text, str) and "://" in text


def _check(text: str) -> None:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise BadAddress("this is not an address") from None
    if parts.scheme not in SCHEMES or not text.startswith(f"{parts.scheme}://"):
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise BadAddress(f"addresses begin with one of {known}")
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise BadAddress("an address holds no user or password; credentials come from the environment")
    if "?" in text or "#" in text:
        raise BadAddress("an address holds neither ? nor #; credentials come from the environment")
    if not parts.hostname or not _is_plain_path(parts):
        raise BadAddress("after :// a bucket or host is wanted, and maybe a path without empty parts, . and ..")


def _is_plain_path(parts: SplitResult) -> bool:
    path = parts.path.removeprefix("/").rstrip("/")
    return not path or not {"", ".", ".."} & set(path.split("/"))
