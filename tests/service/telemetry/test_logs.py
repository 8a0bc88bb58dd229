from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.telemetry.logs import configure_logging, current_request_id


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level = before, level


def written(form: str, message: str, *, exc_info: bool = False, **fields: object) -> str:
    stream = io.StringIO()
    configure_logging(level="info", form=form, stream=stream)  # type: ignore[arg-type]
    logging.getLogger("service.test").info(message, extra={"fields": fields}, exc_info=exc_info)
    return stream.getvalue()


def test_json_line_is_one_object_with_its_fields() -> None:
    line = written("json", "request", status=200, timings_ms={"total": 1.5})
    document = json.loads(line)
    assert line.count("\n") == 1
    assert (document["message"], document["level"], document["logger"]) == ("request", "info", "service.test")
    assert (document["status"], document["timings_ms"]) == (200, {"total": 1.5})


def test_text_line_has_its_fields() -> None:
    assert "service.test: request status=200 code=ok" in written("text", "request", status=200, code="ok")


def test_lines_of_several_processes_say_which_one_wrote_them() -> None:
    stream = io.StringIO()
    configure_logging(level="info", form="json", stream=stream, process="worker-1")
    logging.getLogger("service.test").info("request", extra={"fields": {"status": 200}})
    document = json.loads(stream.getvalue())
    assert (document["process"], document["status"]) == ("worker-1", 200)


@pytest.mark.parametrize("form", ["json", "text"])
def test_request_cannot_forge_a_line(form: str) -> None:
    assert written(form, "request", path="/x\n2026-01-01 info service: all is well\r").count("\n") == 1


@pytest.mark.parametrize("form", ["json", "text"])
def test_traceback_is_logged(form: str) -> None:
    try:
        {"an": "effect"}["the cause"]
    except KeyError:
        line = written(form, "unexpected failure", exc_info=True)
    assert "KeyError: 'the cause'" in line


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    configure_logging(level="warning", form="text", stream=stream)
    logging.getLogger("service.test").info("quiet")
    assert stream.getvalue() == ""


SECRET = "terces"[::-1]
"""Put together, so that no line of source in a traceback has it."""


def failed(form: str) -> str:
    """The line and traceback of an exception that quotes a request, raised from another that does."""
    stream = io.StringIO()
    configure_logging(level="info", form=form, stream=stream)  # type: ignore[arg-type]
    try:
        try:
            int(SECRET)
        except ValueError as error:
            error.add_note(SECRET)
            raise ExceptionGroup(SECRET, [KeyError(SECRET)]) from error
    except ExceptionGroup:
        logging.getLogger("service.test").exception("unexpected failure")
    return stream.getvalue()


@pytest.mark.parametrize("form", ["json", "text"])
def test_traceback_of_a_request_has_frames_and_types_but_no_messages(form: str) -> None:
    served = current_request_id.set("abc")
    try:
        written = failed(form)
    finally:
        current_request_id.reset(served)
    for part in ("builtins.ValueError", "builtins.ExceptionGroup", "builtins.KeyError", "in failed"):
        assert part in written
    assert SECRET not in written


@pytest.mark.parametrize("form", ["json", "text"])
def test_traceback_outside_of_requests_has_messages(form: str) -> None:
    assert failed(form).count(SECRET) == 4


@pytest.mark.parametrize("form", ["json", "text"])
def test_lines_of_a_request_carry_its_id(form: str) -> None:
    served = current_request_id.set("abc")
    try:
        line = written(form, "within")
    finally:
        current_request_id.reset(served)
    assert ('"request_id":"abc"' if form == "json" else "request_id=abc") in line
    assert "request_id" not in written(form, "outside")


def test_json_line_holds_what_is_no_json_of_its_own_too() -> None:
    line = json.loads(written("json", "odd", number=2**70, text="\udc80", path=Path("/a")))
    assert (line["number"], line["text"], line["path"]) == (2**70, "\udc80", "/a")
