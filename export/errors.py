"""The one error that the exporter shows to people."""

from __future__ import annotations


class ExportError(Exception):
    """The export cannot be done, or its result is not what was asked; `str(error)` names what is wrong."""
