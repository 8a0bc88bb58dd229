"""Log lines as text or as one JSON object each; structured fields travel in the record's `fields`.

No line holds an image's bytes, a file's name, a query's values, a predicted class or a secret: an access line is made
from the fields that `service.http.middleware` names, and from nothing else. Lines that are written while a request is
served carry its id, and their tracebacks leave out the exceptions' messages: whatever a library was given can be in
those. What fails outside of requests keeps its message, since an operator has nothing else to go by.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson

ACCESS_LOGGER = "service.access"

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)
"""The id of the request that is being served, in its task and in the threads that work for it; None outside of any."""


class _Formatter(logging.Formatter):
    """Common to both forms: when, and the structured fields."""

    def __init__(self, process: str | None = None) -> None:
        super().__init__()
        self._always: dict[str, Any] = {} if process is None else {"process": process}

    @staticmethod
    def moment(record: logging.LogRecord) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        request_id = current_request_id.get()
        served = {} if request_id is None else {"request_id": request_id}
        return self._always | served | getattr(record, "fields", {})

    def exception(self, record: logging.LogRecord) -> str | None:
        """Return the traceback of a record that has one; without messages while a request is served."""
        if not record.exc_info or record.exc_info[1] is None:
            return None
        if current_request_id.get() is None:
            return self.formatException(record.exc_info)
        return "\n".join(_without_messages(record.exc_info[1], seen=set()))


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
        if exception := self.exception(record):
            line["exception"] = exception
        try:
            return orjson.dumps(line, default=str).decode()
        except orjson.JSONEncodeError:  # for whole numbers of more than 64 bits, and text that UTF-8 has no form for
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
        exception = self.exception(record)
        return f"{line}\n{exception}" if exception else line


def _without_messages(error: BaseException, *, seen: set[int]) -> list[str]:
    """Return an exception's frames and type, those of what led to it before it, and those of a group's after it."""
    seen.add(id(error))
    lines: list[str] = []
    origin = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if origin is not None and id(origin) not in seen:
        lines += [*_without_messages(origin, seen=seen), "", "Which led to:", ""]
    lines.append("Traceback (most recent call last):")
    lines += "".join(traceback.format_tb(error.__traceback__)).splitlines()
    lines.append(f"{type(error).__module__}.{type(error).__qualname__}")
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            lines += ["", "Of the group:", "", *_without_messages(member, seen=seen)]
    return lines


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
    # What no line says need not be found out for each: where it was written, and in which thread and process.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.getLogger("PIL").setLevel(logging.WARNING)  # its debug lines hold the images' metadata
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings quote what they found in a body
