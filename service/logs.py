"""Log lines as text or as one JSON object each; structured fields travel in the record's `fields`.

No line holds an image's bytes, a file's name, a query's values, a predicted class or a secret: an access line is made
from the fields that `service.middleware` names, and from nothing else.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

ACCESS_LOGGER = "service.access"


class _Formatter(logging.Formatter):
    """Common to both forms: when, and the structured fields."""

    def __init__(self, process: str | None = None) -> None:
        super().__init__()
        self._always: dict[str, Any] = {} if process is None else {"process": process}

    @staticmethod
    def moment(record: logging.LogRecord) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        return self._always | getattr(record, "fields", {})


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, logger, message, the structured fields, and the traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record; control characters, line ends among them, are escaped by JSON itself."""
        line = {
            "time": self.moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(_Formatter):
    """`time level logger: message key=value ...`, and the traceback if any on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record; control characters in it are escaped, so that no request can forge a line."""
        pairs = "".join(f" {key}={value}" for key, value in self.fields(record).items())
        message = f"{record.getMessage()}{pairs}"
        if not message.isprintable():
            message = "".join(character if character.isprintable() else repr(character)[1:-1] for character in message)
        line = f"{self.moment(record)} {record.levelname.lower():7} {record.name}: {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logging(
    *, level: str, form: Literal["json", "text"], stream: TextIO | None = None, process: str | None = None
) -> None:
    """Send every logger of the process to `stream` (standard error) in one form; replaces what was set before.

    `process` names the process in each line, where a service has several.
    """
    destination = logging.StreamHandler(stream or sys.stderr)
    destination.setFormatter(JsonFormatter(process) if form == "json" else TextFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[destination], force=True)
    logging.captureWarnings(True)
    logging.getLogger("PIL").setLevel(logging.WARNING)  # its debug lines hold the images' metadata
