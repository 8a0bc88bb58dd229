"""`openapi`: print the OpenAPI document, which is the same for every server."""

from __future__ import annotations

import argparse
import json

from service.http.app import interface


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: no setting changes the document."""


def run(_: argparse.Namespace) -> int:
    """Print the document."""
    print(json.dumps(interface(), indent=2, ensure_ascii=False))
    return 0
