"""Where what was copied from elsewhere is kept if nobody names a place."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path | None:
    """Return this program's folder in the user's cache directory, as XDG has it; None for a user without a home."""
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg, "dat-serve")
    if home := os.environ.get("HOME"):
        return Path(home, ".cache", "dat-serve")
    return None
