"""The server: answers over HTTP with a model directory that the exporter has made."""

VERSION = "0.1.0"
"""The release, as pyproject.toml has it; that of the HTTP interface is `http.openapi.document.INTERFACE_VERSION`."""
