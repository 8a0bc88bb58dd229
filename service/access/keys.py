"""API keys: how a setting names them, how a new one is made, and how one that is shown is known.

A key is random and long, so that no list of likely ones exists to try: a plain SHA-256 of it, which costs a
microsecond, gives it away as little as a slow hash would. Settings hold that hash and never the key: whoever reads
them cannot ask.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from service.errors import Unauthorized

PREFIX = "dat_"
"""Begins every key that is made here, so that scanners for leaked secrets can be told of it."""
ENTRY_FORM = "NAME:SHA256[:rate=REQUESTS_PER_S][:burst=REQUESTS][:concurrency=REQUESTS]"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_BYTES = 32


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key as the settings have it: its public name, its SHA-256, and what it may ask for."""

    name: str
    digest: bytes = field(repr=False)
    rate_per_s: float | None = None
    """Requests a second in the long run; None for any number."""
    burst: float = math.inf
    """Requests that may come at once after a pause; only with a rate."""
    concurrency: int | None = None
    """Requests that may be in flight at a time; None for any number."""
    role: Literal["user", "admin"] = "user"
    """An admin may load and unload models as well."""

    @classmethod
    def parse(cls, entry: str) -> ApiKey:
        """Return the key that an entry of ENTRY_FORM names; raises ValueError that repeats nothing of the entry.

        What is not an entry is likely to be a key, and must not be shown.
        """
        name, _, rest = entry.partition(":")
        digest, *limits = rest.split(":")
        if not _NAME.fullmatch(name) or not _DIGEST.fullmatch(digest):
            raise ValueError(
                f"is not of the form {ENTRY_FORM}; keys themselves are not taken. "
                "`python -m service key NAME` makes a key and its entry"
            )
        values: dict[str, float] = {}
        for limit in limits:
            kind, _, value = limit.partition("=")
            if kind not in ("rate", "burst", "concurrency") or kind in values:
                raise ValueError("has a limit that is not one of rate=, burst= and concurrency=, each at most once")
            values[kind] = _positive(kind, value)
        return cls.limited(name, bytes.fromhex(digest), **values)

    @classmethod
    def limited(
        cls,
        name: str,
        digest: bytes,
        *,
        rate: float | None = None,
        burst: float | None = None,
        concurrency: float | None = None,
    ) -> ApiKey:
        """Return a key with such limits; a rate without a burst allows one second's worth at once, at least 1."""
        if burst is not None and rate is None:
            raise ValueError("has a burst without a rate")
        if rate is not None and burst is None:
            burst = max(1.0, math.ceil(rate))
        return cls(
            name, digest, rate, math.inf if burst is None else burst, None if concurrency is None else int(concurrency)
        )


def _positive(kind: str, text: str) -> float:
    """Return a limit's value: a rate may be any number above 0, the others are whole."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < 1e9) or (kind != "rate" and value != int(value)):
        raise ValueError(f"has a {kind} that is not a {'number' if kind == 'rate' else 'whole number'} above 0")
    return value


def parse_entries(entries: str) -> tuple[ApiKey, ...]:
    """Return the keys of entries separated by commas; raises ValueError that names a wrong one by its place."""
    keys: list[ApiKey] = []
    for place, entry in enumerate(entries.split(","), 1):
        try:
            keys.append(ApiKey.parse(entry.strip()))
        except ValueError as error:
            raise ValueError(f"entry {place} {error}") from None
    names = [key.name for key in keys]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several entries have the name {', '.join(twice)}")
    return tuple(keys)


def make_key(name: str) -> tuple[str, str]:
    """Return a new key and its entry for the settings; raises ValueError for a name that cannot be one."""
    if not _NAME.fullmatch(name):
        raise ValueError("a key's name is 1 to 64 letters, digits, and . _ - after the first")
    key = PREFIX + secrets.token_urlsafe(_BYTES)
    return key, f"{name}:{_digest(key.encode()).hex()}"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def find_key(keys: Sequence[ApiKey], authorization: str) -> int:
    """Return the place of the key that an Authorization header bears; raises Unauthorized where it bears none.

    Takes as long for any guess: every key is compared with, each in constant time.
    """
    scheme, _, token = authorization.partition(" ")
    given = _digest(token.strip().encode())
    matches = [hmac.compare_digest(given, key.digest) for key in keys]
    if scheme.lower() != "bearer" or not any(matches):
        raise Unauthorized("This needs an API key: Authorization: Bearer <key>.")
    return matches.index(True)
