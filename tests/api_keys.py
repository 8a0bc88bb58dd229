"""Entries of API keys that tests make up."""

from __future__ import annotations

import hashlib


def entry_of(key: str, name: str = "tester") -> str:
    """Return what the setting `api_keys` has for a key."""
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"
